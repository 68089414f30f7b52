"""How long imports take, and commands that start no Ray: CPU seconds of a new process, the least of several.

    python tests/benchmarks/import_times.py [--rounds 5]

CPU time, because other processes of the machine do not count in it. The imports are what they add to a bare Python, or,
where it says so, to `import torch`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SPECS = Path(__file__).resolve().parents[2] / "specs"
IMPORTS = {
    "import ipcnn_ray": "import ipcnn_ray",
    "import torch": "import torch",
    "InterpretableLayer beyond torch": "import torch; from ipcnn_ray import InterpretableLayer",
    "LandmarkTracking beyond torch": "import torch; from ipcnn_ray import LandmarkTracking",
    "load_spec": "from ipcnn_ray import load_spec",
}
SPEC = str(SPECS / "uniform_sweep.yaml")
COMMANDS = (["--help"], ["validate", SPEC], ["plan", SPEC], ["list"], ["status"], ["gc", "--dry-run"])


def cpu_seconds(words: list[str], rounds: int) -> float:
    """Return the least CPU seconds of `python WORDS`."""
    with tempfile.TemporaryDirectory() as home:
        env = {**os.environ, "IPCNN_HOME": home}
        times = []
        for _ in range(rounds):
            before = os.times()
            subprocess.run([sys.executable, *words], check=True, capture_output=True, env=env)
            after = os.times()
            times.append(sum(after[2:4]) - sum(before[2:4]))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    bare, torch = (cpu_seconds(["-c", code], rounds) for code in ("pass", "import torch"))
    for name, code in IMPORTS.items():
        taken = cpu_seconds(["-c", code], rounds) - (torch if "beyond torch" in name else bare)
        print(f"{name:<36}{taken:6.2f} s", flush=True)
    for words in COMMANDS:
        taken = cpu_seconds(["-m", "ipcnn_ray.cli.app", *words], rounds)
        print(f"{'ipcnn ' + ' '.join(Path(word).name for word in words):<36}{taken:6.2f} s", flush=True)


if __name__ == "__main__":
    main()
