"""Make the store of an earlier version, which `test_upgrade.py` reads.

    git worktree add OLD COMMIT                       # the last commit of that version
    PYTHONPATH=OLD python tests/upgrade/make_store.py FOLDER VERSION

This writes FOLDER/store_VERSION.tar.xz, with IPCNN_HOME as the version left it:

- experiment `upgrade` (`store.yaml`): `plain` has ended; the driver and the process that trained `l2` were killed
- experiment `again`: the same, to its end, of which only the final weights of `l2` are kept, as `again.safetensors`
- `made_with.json`: the versions, and the vector instructions of the CPU, with which bytes are equal

Ray's own files, which a submission does not read, and what names the machine are left out; FOLDER is in the record. The
store of 0.1.0 was made in /tmp/store on 2026-11-27, at commit ab71c9e, with torch 2.15 and MLflow 3.11.1, the earliest
one with which that version could store models.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tarfile
import time
from contextlib import closing
from importlib import metadata
from pathlib import Path

import torch

SPEC = Path(__file__).with_name("store.yaml")
COMMAND = [sys.executable, "-c", "from ipcnn_ray.cli.app import main; main()", "submit", str(SPEC)]
KILLED_AFTER = 2
"""Epochs."""


def main(folder: Path, version: str) -> None:
    home = folder / "home"
    home.mkdir(parents=True)
    environment = {**os.environ, "IPCNN_HOME": str(home), "OMP_NUM_THREADS": "1"}
    subprocess.run([*COMMAND, "--set", "name=again"], env=environment, check=True)
    (whole,) = (home / "runs").glob("again-*/l2/weights.safetensors")
    shutil.copy(whole, home / "again.safetensors")
    for path in ("artifacts", "logs", "mlflow.db", "mlflow.db.lock", "runs"):
        (shutil.rmtree if (home / path).is_dir() else Path.unlink)(home / path)

    driver = subprocess.Popen(COMMAND, env=environment)
    while not (trained := list((home / "runs").glob(f"*/l2/checkpoints/epoch-{KILLED_AFTER:04}"))):
        assert driver.poll() is None, "it has ended"
        time.sleep(0.01)
    lock = str(trained[0].parents[1] / "lock")
    for process in [pid for pid in Path("/proc").iterdir() if pid.name.isdigit() and lock in open_files(pid)]:
        os.kill(int(process.name), signal.SIGKILL)
    driver.kill()
    driver.wait()

    shutil.rmtree(next((home / "runs").glob("*/ray")))
    with closing(sqlite3.connect(home / "mlflow.db")) as record:
        record.execute("update tags set value = 'Linux' where key = 'host.platform'")
        record.commit()
        record.execute("vacuum")
    made_with = {name: metadata.version(name) for name in ("torch", "mlflow", "ray")}
    made_with |= {"version": version, "home": str(home), "cpu": torch.backends.cpu.get_cpu_capability()}
    (home / "made_with.json").write_text(json.dumps(made_with, indent=1))
    with tarfile.open(folder / f"store_{version}.tar.xz", "w:xz", preset=9) as archive:
        archive.add(home, "home", filter=without_owner)


def open_files(process: Path) -> set[str]:
    try:
        return {os.readlink(link) for link in (process / "fd").iterdir()}
    except OSError:
        return set()


def without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
