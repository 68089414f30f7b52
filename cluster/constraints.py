#!/usr/bin/env python3
"""The exact versions and hashes of all packages of the image, from the ranges in pyproject.toml.

    python cluster/constraints.py                what is pinned stays where the ranges allow it
    python cluster/constraints.py --upgrade      the newest versions

Writes three files beside itself, which `pip install --no-deps` installs:

    constraints.txt         everything but torch, on every Python that pyproject.toml allows
    constraints-cuda.txt    torch for GPUs, with the libraries of CUDA, from PyPI
    constraints-cpu.txt     torch for CPUs, from PyTorch's own index; without hashes, which only that index knows

Needs uv (`pip install uv`) and PyPI. The settings of pip and uv on this machine are not used. Changed versions change
the image: build it anew, and raise the tag in aws.yaml, compose.yaml and kuberay.yaml if Ray's version is another one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PYPI = "https://pypi.org/simple"
PYTORCH_CPU = "https://download.pytorch.org/whl/cpu"
# Compiles kernels for torch.compile, which ipcnn does not use, and needs a C compiler, which the image does not have.
LEFT_OUT = ("triton",)
CUDA = re.compile(r"torch(vision)?==|cuda-|nvidia-(?!ml-py)")
FILES = {kind: ROOT / "cluster" / f"constraints{kind}.txt" for kind in ("", "-cuda", "-cpu")}


def lowest_python() -> str:
    """The lowest Python that pyproject.toml allows."""
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")


def resolved(upgrade: bool) -> list[str]:
    """A block of lines for each package: version and hashes."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("UV_", "PIP_"))}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "constraints.txt")
        file.write_text("".join(FILES[kind].read_text() for kind in ("", "-cuda") if FILES[kind].exists()))
        command = ["uv", "pip", "compile", "--quiet", "--no-config", "--system-certs", "--default-index", PYPI]
        command += ["--universal", "--python-version", lowest_python(), "--generate-hashes", "--no-annotate"]
        command += ["--no-header", *(f"--no-emit-package={name}" for name in LEFT_OUT)]
        command += ["--upgrade"] if upgrade else []
        sources = [str(ROOT / "pyproject.toml"), "--extra", "server"]
        subprocess.run([*command, *sources, "--output-file", str(file)], check=True, env=env, stdout=subprocess.DEVNULL)
        return re.split(r"^(?=[\w])", file.read_text(), flags=re.M)[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    blocks = resolved(parser.parse_args().upgrade)
    cuda = [block for block in blocks if CUDA.match(block)]
    torch = [f"{block.split()[0]}+cpu\n" for block in cuda if block.startswith("torch")]
    files = {"": [block for block in blocks if block not in cuda], "-cuda": cuda}
    files["-cpu"] = [f"--index-url {PYTORCH_CPU}\n", *torch]
    for kind, lines in files.items():
        FILES[kind].write_text("".join(["# Made by: python cluster/constraints.py\n", *lines]))


if __name__ == "__main__":
    main()
