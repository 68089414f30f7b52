"""Everything that needs a GPU, as one command that prints a table.

    python tests/gpu/run.py                                  # on the GPU; at most 11 minutes
    python tests/gpu/run.py --device cpu --small             # the same code with tiny sizes on a CPU
    python tests/gpu/run.py --only agreement resume --out gpu.json

It needs torch, torchvision and the package's small dependencies (pydantic, pyyaml, safetensors, filelock, numpy,
pillow, scipy, h5py); no network. The part `ray` needs Ray, the part `voc` photographs and weights (IPCNN_DATA,
IPCNN_WEIGHTS). A part whose packages or files are missing is listed as not run, with the reason.

Each part runs in a process of its own and has a share of the time; one that fails or takes too long does not stop the
others. Exit code: 0 if every part that ran met its checks (speed goals that are missed do not count), else 1.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "benchmarks")]

PARTS: dict[str, tuple[str, float, tuple[str, ...]]] = {
    "agreement": ("agreement", 90, ()),
    "nccl": ("training", 45, ()),
    "resume": ("training", 90, ()),
    "layer_cost": ("speed", 45, ()),
    "step_cost": ("speed", 60, ()),
    "throughput": ("speed", 120, ()),
    "pipeline": ("speed", 45, ()),
    "profile": ("steps", 60, ()),
    "evaluation": ("steps", 45, ()),
    "concurrency": ("speed", 75, ()),
    "ray": ("training", 150, ("ray", "mlflow", "optuna")),
    "voc": ("photographs", 600, ()),
}
"""Part -> its module, the most seconds that it may take, and the packages that it needs beside the common ones. The
last part takes what time is left."""
COMMON = ("torch", "torchvision", "pydantic", "yaml", "safetensors", "filelock", "numpy", "PIL", "scipy", "h5py")
RESERVE_S = 10.0
"""Kept free at the end, for the table."""


def environment(device: str) -> list[str]:
    """Lines that say what machine this is."""
    import torch

    lines = [
        f"{platform.platform()}, Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores"
    ]
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        memory = properties.total_memory / 2**30
        lines.append(
            f"{properties.name}, {memory:.0f} GiB, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
        )
    absent = [name for name in (*COMMON, "ray", "mlflow") if find_spec(name) is None]
    versions = [
        f"{name} {metadata.version(name)}" for name in ("torchvision", "pydantic", "numpy") if name not in absent
    ]
    return [*lines, ", ".join(versions), f"not installed: {', '.join(absent) or 'nothing of what is used'}"]


def run_part(name: str, device: str, small: bool, seconds: float) -> int:
    """Run one part in this process; print its rows as JSON. Returns the exit code."""
    module = importlib.import_module(PARTS[name][0])
    try:
        rows = getattr(module, name)(device, small, seconds)
    except Exception:
        traceback.print_exc()
        return 1
    sys.stdout.write("\nROWS " + json.dumps(rows) + "\n")
    return 0


def in_process(name: str, args: argparse.Namespace, seconds: float) -> list[dict[str, Any]]:
    """Run one part in a process of its own; return its rows, or one row that says why there are none."""
    absent = [package for package in (*COMMON, *PARTS[name][2]) if find_spec(package) is None]
    if absent:
        return [{"what": "not run", "value": f"needs {', '.join(absent)}", "state": "skipped"}]
    command = [sys.executable, __file__, "--part", name, "--device", args.device, "--seconds", f"{seconds:.0f}"]
    if args.small:
        command.append("--small")
    path = os.pathsep.join([*sys.path[:4], os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 20, check=False, env=env)
    except subprocess.TimeoutExpired:
        return [{"what": "did not end", "value": f"within {seconds + 20:.0f} s", "state": "failed"}]
    for line in reversed(done.stdout.splitlines()):
        if line.startswith("ROWS "):
            rows: list[dict[str, Any]] = json.loads(line.removeprefix("ROWS "))
            return rows
    sys.stderr.write(done.stderr[-4000:])
    return [
        {"what": "failed", "value": (done.stderr.strip().splitlines() or ["no output"])[-1][:200], "state": "failed"}
    ]


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Rows as text: part, what, value, goal, state."""
    lines = [f"{'part':<12}{'what':<52}{'value':>24}  {'goal':<14}state"]
    for name, rows in results.items():
        for row in rows:
            goal, state = row.get("goal", ""), row.get("state", "")
            lines.append(f"{name:<12}{row['what']:<52}{row['value']:>24}  {goal:<14}{state}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Everything that needs a GPU.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=11.0, help="the whole command ends within this time")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="default: all parts")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check the code on a CPU")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        return run_part(args.part, args.device, args.small, args.seconds)
    if args.out:
        os.environ["IPCNN_GPU_OUT"] = str(args.out.resolve().parent)  # of the profiler's tables
    end = time.monotonic() + 60 * args.minutes - RESERVE_S
    head = environment(args.device)
    print("\n".join(head), flush=True)
    results: dict[str, list[dict[str, Any]]] = {}
    for name in args.only or PARTS:
        left = end - time.monotonic() - 20
        if left < 15:
            results[name] = [{"what": "not run", "value": "no time left", "state": "skipped"}]
        else:
            began = time.monotonic()
            results[name] = in_process(name, args, min(PARTS[name][1], left))
            print(f"{name}: {time.monotonic() - began:.0f} s", flush=True)
        if args.out:
            args.out.write_text(json.dumps({"environment": head, "results": results}, indent=1))
    print(table(results))
    return int(any(row.get("state") == "failed" for rows in results.values() for row in rows))


if __name__ == "__main__":
    sys.exit(main())
