"""How soon a command begins: what it needs is imported when it needs it."""

from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ("torch", "ray", "mlflow", "matplotlib", "scipy", "optuna", "numpy", "boto3", "torchvision")


def imported_by(statement: str) -> set[str]:
    """Which of HEAVY a fresh Python has imported after a statement."""
    code = f"import json, sys\n{statement}\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def test_the_command_starts_without_what_it_may_not_need():
    assert imported_by("import ipcnn_ray.cli.app") == set()


def test_a_network_of_the_table_is_built_without_torchvision():
    assert "torchvision" not in imported_by("import ipcnn_ray.models.build")


def test_the_look_itself():
    assert "numpy" in imported_by("import ipcnn_ray.report.style")
