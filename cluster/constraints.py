#!/usr/bin/env python3
"""The exact versions of everything in the image, from the ranges in pyproject.toml, for its Python (3.12) on Linux.

    python cluster/constraints.py > cluster/constraints.txt
    python cluster/constraints.py --keep > cluster/constraints.txt      what is pinned stays where the ranges allow it

Needs pip 23 or newer and a package index. A package with other versions than before changes the image: build it anew,
and raise the tag in aws.yaml and kuberay.yaml where Ray's version is another one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "3.12"


def requirements() -> list[str]:
    """What the image installs: the package's own dependencies, and those of the MLflow server."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["server"]]


def resolved(keep: bool) -> dict[str, str]:
    """Name -> version of every package that pip would install."""
    pins = ["-c", str(ROOT / "cluster" / "constraints.txt")] if keep else []
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        target = ["--python-version", PYTHON, "--only-binary=:all:", "--target", folder, "--ignore-installed"]
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", *target, "--report", str(report)]
        subprocess.run([*command, *pins, *requirements()], check=True)
        installed = json.loads(report.read_text())["install"]
    names = {one["metadata"]["name"].lower().replace("_", "-"): one["metadata"]["version"] for one in installed}
    return dict(sorted(names.items()))


def main() -> None:
    pins = resolved("--keep" in sys.argv[1:])
    sys.stdout.write(f"# Python {PYTHON}, Linux x86_64; made by: python cluster/constraints.py\n")
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in pins.items())


if __name__ == "__main__":
    main()
