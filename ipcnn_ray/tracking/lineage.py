"""Tags for the code, packages and hardware behind a run. They contain no names of persons or paths."""

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
"""File beside a package that was packed for a cluster: what `code` returned where it was packed."""
DISTRIBUTION = "ipcnn-ray"
VERSIONS = ("torch", "torchvision", "ray", "mlflow", "numpy")
COMMAND_TIMEOUT_S = 20.0
UNKNOWN = "unknown"


def lineage() -> dict[str, str]:
    """Return the tags `code.*` (version, commit, dirty), `env.*` (Python, packages, CUDA) and `host.*` (platform, CPU,
    GPUs) of this process; `unknown` where a value cannot be determined.

    A submission tags its runs with those of the driver. Each run replaces `host.*` by that of its rank 0 worker.
    """
    return {"code.version": __version__, **code(PACKAGE), **environment(), **host()}


def code(package: Path) -> dict[str, str]:
    """Return commit and dirty flag of the package's checkout, or the commit that it was installed from.

    A repository that contains the package but does not track it (an environment in a project folder) is ignored. Only
    changed and new files of the package itself count as dirty: specs are recorded as artifacts.
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
    """Return the commit that pip installed the package from; None if it was not installed from a repository."""
    try:
        origin = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return None
    commit = json.loads(origin).get("vcs_info", {}).get("commit_id") if origin else None
    return str(commit) if commit else None


def environment() -> dict[str, str]:
    """Return the versions of Python, CUDA and the packages that results may depend on, without importing these."""
    tags = {"env.python": platform.python_version()}
    for name in VERSIONS:
        try:
            tags[f"env.{name}"] = metadata.version(name)
        except metadata.PackageNotFoundError:
            tags[f"env.{name}"] = "not installed"
    return {**tags, "env.cuda": _cuda()}


def _cuda() -> str:
    """Return the CUDA version of the torch build."""
    torch = find_spec("torch")
    if torch is None or torch.origin is None:
        return UNKNOWN
    file = Path(torch.origin).with_name("version.py")
    text = file.read_text(encoding="utf-8") if file.is_file() else ""
    match = re.search(r"^cuda\b[^=\n]*=\s*(?:'([^']*)'|\"([^\"]*)\"|None)", text, re.MULTILINE)
    return UNKNOWN if match is None else match[1] or match[2] or "none"


def host() -> dict[str, str]:
    """Return platform, CPU, usable cores and GPUs of this machine."""
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 0)
    return {
        "host.platform": platform.platform(),
        "host.cpu": _cpu(),
        "host.cores": str(len(cores)),
        "host.gpu": _gpus(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    match = re.search(r"^model name\s*:\s*(.+)$", info.read_text(), re.MULTILINE) if info.is_file() else None
    return match[1].strip() if match else platform.processor() or platform.machine() or UNKNOWN


def _gpus() -> str:
    """Return, for example, `4 x NVIDIA H200 (driver 570.86)`; `none` without an NVIDIA driver."""
    gpus = _output(["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"])
    counts = Counter(line.strip() for line in (gpus or "").splitlines() if "," in line)
    kinds = []
    for line, number in counts.items():
        name, _, driver = line.rpartition(",")
        kinds.append(f"{number} x {name.strip()} (driver {driver.strip()})")
    return ", ".join(kinds) or "none"


def _output(command: list[str]) -> str | None:
    """Return the output of a command; None if it is missing, fails or hangs. GIT_* variables, which a git hook sets for
    its own repository, are removed."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True, env=env)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
