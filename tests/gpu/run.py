"""Everything that needs a GPU, as one command that prints a table.

    python tests/gpu/run.py                                  # on the GPU; at most 11 minutes
    python tests/gpu/run.py --device cpu --small             # the same code with tiny sizes on a CPU
    python tests/gpu/run.py --only agreement resume --out gpu.json

It needs torch, torchvision and the package's small dependencies (pydantic, pyyaml, safetensors, filelock, numpy,
pillow, scipy, h5py); no network. The part `ray` needs Ray, the part `voc` photographs and weights (IPCNN_DATA,
IPCNN_WEIGHTS). A part whose packages or files are missing is listed as not run, with the reason.

Each part runs in a process of its own and has a share of the time; one that fails or takes too long does not stop the
others. The parts that measure time run first, one after the other; then those that only compare, side by side; `voc`
takes what time is left. The rows are written after each part, and what the parts print to a file beside `--out`
(gpu.json: gpu.log). Exit code: 0 if every part that ran met its checks (speed goals that are missed do not count),
else 1.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1]), str(HERE.parent), str(HERE.parent / "benchmarks")]

PARTS: dict[str, tuple[str, float, tuple[str, ...]]] = {
    "layer_cost": ("speed", 45, ()),
    "step_cost": ("speed", 60, ()),
    "throughput": ("speed", 120, ()),
    "pipeline": ("speed", 45, ()),
    "profile": ("steps", 60, ()),
    "fast": ("steps", 90, ()),
    "grid": ("steps", 100, ()),
    "concurrency": ("speed", 75, ()),
    "memory": ("memory", 75, ()),
    "waits": ("waits", 60, ()),
    "agreement": ("agreement", 90, ()),
    "nccl": ("training", 45, ()),
    "resume": ("training", 90, ()),
    "graphs": ("training", 90, ()),
    "ray": ("training", 150, ("ray", "mlflow", "optuna")),
    "voc": ("photographs", 600, ()),
}
"""Part -> its module, the most seconds that it may take, and the packages that it needs beside the common ones; the
most important timing first."""
SIDE_BY_SIDE = ("waits", "agreement", "nccl", "resume", "graphs", "ray")
"""Parts whose rows are no timings."""
SIDE_BY_SIDE_SHARE = 0.4
"""Share of the time that is kept for them, at most what the longest of them may take."""
COMMON = ("torch", "torchvision", "pydantic", "yaml", "safetensors", "filelock", "numpy", "PIL", "scipy", "h5py")
RESERVE_S = 10.0
"""Kept free at the end."""
GRACE_S = 20.0
"""What a part may take beyond its share, which it is told, before it is killed."""
LOG_LINES = 15
"""Last lines of what a part has printed that are shown if it fails."""


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


def run_part(args: argparse.Namespace) -> int:
    """Run one part in this process; print each row as JSON when there is one. Returns the exit code."""
    part = getattr(importlib.import_module(args.module or PARTS[args.part][0]), args.part)
    try:
        for row in part(args.device, args.small, args.seconds):
            print("\nROW " + json.dumps(row), flush=True)
    except Exception:
        traceback.print_exc()
        return 1
    return 0


class Parts:
    """Runs parts in processes of their own until the time `end`, and writes down the rows of each when it ends."""

    def __init__(self, args: argparse.Namespace, end: float) -> None:
        self.args, self.end = args, end
        self.head = environment(args.device)
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.lock = threading.Lock()
        self.log = args.out.with_suffix(".log") if args.out else None
        if self.log:
            self.log.write_text("")

    def run(self, name: str, keep_s: float = 0.0, threads: int | None = None) -> None:
        """Run one part in the time that is left, less `keep_s`, and report it. threads: of its torch."""
        began = time.monotonic()
        left = self.end - began - keep_s - GRACE_S
        absent = [package for package in (*COMMON, *PARTS[name][2]) if find_spec(package) is None]
        if absent:
            self.report(name, [{"what": "not run", "value": f"needs {', '.join(absent)}", "state": "skipped"}])
        elif left < 15:
            self.report(name, [{"what": "not run", "value": "no time left", "state": "skipped"}])
        else:
            rows, printed = in_process(name, self.args, min(PARTS[name][1], left), threads)
            self.report(name, rows, f"{time.monotonic() - began:.0f} s", printed)

    def report(self, name: str, rows: list[dict[str, Any]], took: str = "", printed: str = "") -> None:
        """Print the rows of a part, write down those of all parts so far, and add what it `printed` to the log."""
        with self.lock:
            self.results[name] = rows
            print(f"--- {name} {took}\n{table(name, rows)}", flush=True)
            if any(row.get("state") == "failed" for row in rows):
                print("\n".join(printed.splitlines()[-LOG_LINES:]), flush=True)
            if self.args.out:
                self.args.out.write_text(json.dumps({"environment": self.head, "results": self.results}, indent=1))
            if self.log:
                with self.log.open("a") as log:
                    log.write(f"===== {name} {took}\n{printed}\n")


def in_process(
    name: str, args: argparse.Namespace, seconds: float, threads: int | None = None
) -> tuple[list[dict[str, Any]], str]:
    """Run one part in a process of its own; return its rows, with one that says so if it failed, and what it printed
    beside them."""
    command = [sys.executable, "-X", "faulthandler", __file__, "--part", name, "--module", PARTS[name][0]]
    command += ["--device", args.device, "--seconds", f"{seconds:.0f}", *(["--small"] if args.small else [])]
    path = os.pathsep.join([*sys.path[:4], os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    env = {**os.environ, "PYTHONPATH": path}
    if threads:
        env.setdefault("OMP_NUM_THREADS", str(threads))
    # A file, not a pipe: a process that a part has left behind would keep a pipe open.
    with tempfile.TemporaryFile("w+", errors="replace") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=env, start_new_session=True)
        try:
            code = child.wait(seconds + GRACE_S)
            failure = f"exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            failure = f"did not end within {seconds + GRACE_S:.0f} s"
            child.send_signal(signal.SIGABRT)  # faulthandler prints where it is
            time.sleep(1)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        output.seek(0)
        lines = output.read().splitlines()
    rows = [json.loads(line.removeprefix("ROW ")) for line in lines if line.startswith("ROW ")]
    if failure:
        rows.append({"what": "failed", "value": failure, "state": "failed"})
    return rows, "\n".join(line for line in lines if line and not line.startswith("ROW "))


def table(name: str, rows: list[dict[str, Any]]) -> str:
    """Rows as text: part, what, value, goal, state."""
    return "\n".join(
        f"{name:<12}{row['what']:<52}{row['value']:>24}  {row.get('goal', ''):<14}{row.get('state', '')}"
        for row in rows
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Everything that needs a GPU.")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=11.0, help="the whole command ends within this time")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), help="default: all parts")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to check the code on a CPU")
    parser.add_argument("--out", type=Path, help="write the rows as JSON; what the parts print goes to FILE.log")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=60.0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.part:
        return run_part(args)
    if args.out:
        os.environ["IPCNN_GPU_OUT"] = str(args.out.resolve().parent)  # of the profiler's tables
    parts = Parts(args, time.monotonic() + 60 * args.minutes - RESERVE_S)
    print("\n".join(parts.head), flush=True)
    chosen = [name for name in PARTS if name in (args.only or PARTS)]
    together = [name for name in chosen if name in SIDE_BY_SIDE]
    longest = max((PARTS[name][1] + GRACE_S for name in together), default=0.0)
    keep_s = min(longest, SIDE_BY_SIDE_SHARE * 60 * args.minutes)
    for name in chosen:
        if name not in (*SIDE_BY_SIDE, "voc"):
            parts.run(name, keep_s=keep_s)
    if together:
        threads = max(1, (os.cpu_count() or 1) // len(together))
        with ThreadPoolExecutor(len(together)) as pool:
            for done in [pool.submit(parts.run, name, threads=threads) for name in together]:
                done.result()
    if "voc" in chosen:
        parts.run("voc")
    rows = [row for rows in parts.results.values() for row in rows]
    failed = sum(row.get("state") == "failed" for row in rows)
    print(f"{len(rows)} rows, {failed} failed", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
