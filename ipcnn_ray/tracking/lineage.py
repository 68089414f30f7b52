"""From what code, packages and hardware a run comes: tags of its record. Nothing here names a person or a path."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections import Counter
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from ipcnn_ray import __version__

PACKAGE = Path(__file__).resolve().parents[1]
SHIPPED = "shipped.json"
"""Beside a package that was shipped to a cluster: what `code` said of it there where it was submitted."""
DISTRIBUTION = "ipcnn-ray"
VERSIONS = ("torch", "torchvision", "ray", "mlflow", "numpy")
COMMAND_S = 20.0
UNKNOWN = "unknown"


def lineage() -> dict[str, str]:
    """Tags `code.*` (version, commit, dirty), `env.*` (Python, packages, CUDA) and `host.*` (platform, CPU, GPUs) of
    this process's machine; `unknown` where something cannot be told."""
    return {"code.version": __version__, **code(PACKAGE), **environment(), **host()}


def code(package: Path) -> dict[str, str]:
    """Commit and dirtiness of the checkout that `package` belongs to, or the commit that it was installed from.

    A package that only lies inside somebody else's repository (an environment in a project's folder) does not belong
    to it. Dirty are changed and new files of the package itself; a spec is recorded whole in any case.
    """
    if (shipped := package.parent / SHIPPED).is_file():
        return {key: str(value) for key, value in json.loads(shipped.read_text(encoding="utf-8")).items()}
    git = ["git", "-C", str(package)]
    if _output([*git, "ls-files", "--error-unmatch", "__init__.py"]) is not None:
        commit = _output([*git, "rev-parse", "HEAD"])
        changes = _output([*git, "status", "--porcelain", "--untracked-files=all", "--", "."])
        if commit is not None and changes is not None:
            return {"code.commit": commit, "code.dirty": str(bool(changes)).lower()}
    return {"code.commit": _installed_from() or UNKNOWN, "code.dirty": UNKNOWN}


def _installed_from() -> str | None:
    """The commit that pip installed the package from, if from a repository."""
    try:
        found = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit = json.loads(found).get("vcs_info", {}).get("commit_id") if found else None
    return str(commit) if commit else None


def environment() -> dict[str, str]:
    """Versions of what the numbers may depend on; reads files, imports nothing."""
    tags = {"env.python": platform.python_version()}
    for name in VERSIONS:
        try:
            tags[f"env.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            tags[f"env.{name}"] = "not installed"
    return {**tags, "env.cuda": _cuda()}


def _cuda() -> str:
    """CUDA version that torch was built for."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return UNKNOWN
    file = Path(torch.origin).with_name("version.py")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    found = re.search(r"^cuda\b[^=\n]*=\s*(?:'([^']*)'|\"([^\"]*)\"|None)", text, re.MULTILINE)
    if found is None:
        return UNKNOWN
    return found[1] or found[2] or "none"


def host() -> dict[str, str]:
    """Platform, CPU and GPUs of this machine."""
    free = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 0)
    return {
        "host.platform": platform.platform(),
        "host.cpu": _cpu(),
        "host.cores": str(len(free)),
        "host.gpu": _gpus(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return found[1].strip() if found else platform.processor() or platform.machine() or UNKNOWN


def _gpus() -> str:
    """Such as `4 x NVIDIA H200 (driver 570.86)`; `none` without NVIDIA's driver."""
    listed = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    counts = Counter(line.strip() for line in (listed or "").splitlines() if "," in line)
    kinds = []
    for line, number in counts.items():
        name, _, driver = line.rpartition(",")
        kinds.append(f"{number} x {name.strip()} (driver {driver.strip()})")
    return ", ".join(kinds) or "none"


def _output(command: list[str]) -> str | None:
    """What a command prints; None where it is not there, fails, or hangs. Inside a git hook, GIT_DIR names the
    repository of the hook: such variables do not count here."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_S, check=True, env=env)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
