"""An example for users in a process of its own, on few pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PATH = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "examples")])
FEW = {"images": 32, "epochs": 2, "image_size": 48, "batch_size": 8}


def run_example(module: str, before: str = "pass") -> dict[str, float]:
    """Run `main` of an example, after a statement; return its metrics."""
    code = f"import json, {module}; {before}; print('\\n' + json.dumps({module}.main(**{FEW})))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])
