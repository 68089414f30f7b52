"""cluster/local.py: nodes, record and token on one machine, and nothing left of them afterwards."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCAL = ROOT / "cluster" / "local.py"


MARKED = {"AWS_SECRET_ACCESS_KEY": "marked-secret-key", "MLFLOW_TRACKING_PASSWORD": "marked-password"}
"""Credentials that the nodes and the client have, and that nothing shows."""
SPEC = """
name: discreet
data: {kind: drawn_animals, objects: 10, negatives: 10}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 1, batch_size: 8}
"""

WITNESS = """
import os, pathlib, sys, time
import ray

@ray.remote(num_cpus=1)
class Node:
    def cwd(self):
        return os.getcwd()

here = pathlib.Path(sys.argv[1])
nodes = [Node.remote() for _ in range(3)]
for node in nodes:
    ray.get(node.cwd.remote())
(here / "ready").touch()
while not (here / "go").exists():
    time.sleep(0.1)
ray.get(Node.remote().cwd.remote())
kept = 0
for node in nodes:
    try:
        kept += os.path.isdir(ray.get(node.cwd.remote()))
    except ray.exceptions.RayActorError:
        pass
print("working directories:", kept, "of 2")
"""
"""A job with a process on each node, which says how many of them have their working directory after one node was
started again and has run a process of the job, too."""


def local(*words: object, **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(LOCAL), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **env}, timeout=600)


def status(folder: Path) -> dict[str, Any]:
    return json.loads(local("status", folder).stdout)


def asked(url: str, token: str = "") -> int:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    folder = Path(tempfile.mkdtemp(prefix="ipcnn-", dir="/tmp"))
    yield folder
    local("down", folder, "--kill")
    shutil.rmtree(folder, ignore_errors=True)


def test_wrong_requests(tmp_path, short):
    deep = tmp_path / ("a" * 80)
    assert "too long a path for Ray's sockets" in local("up", deep).stderr
    assert "is no folder of a local cluster" in local("down", tmp_path).stderr
    asks = local("up", short, "--s3", "true")
    assert asks.returncode == 1 and "Give it: --s3-url" in asks.stderr


def test_what_fails_to_start_is_told_with_the_end_of_its_log(short):
    done = local("up", short, "--s3", "echo the disk is full; exit 3", "--s3-url", "http://127.0.0.1:9")
    assert done.returncode == 1
    assert "s3 did not start" in done.stderr and "the disk is full" in done.stderr
    assert not any(status(short)["processes"].values())


def test_a_server_of_somebody_else_is_not_taken_for_ours(short):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    theirs = subprocess.Popen(
        [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(100):
            with contextlib.suppress(OSError):
                asked(url)
                break
            time.sleep(0.1)
        done = local("up", short, "--s3", "sleep 60", "--s3-url", url)
        assert done.returncode == 1
        assert f"s3: something else answers at {url} already\nStop it" in done.stderr
        assert not any(status(short)["processes"].values())
        assert theirs.poll() is None
    finally:
        theirs.kill()
        theirs.wait()


@pytest.mark.slow
def test_children_that_leave_their_parent_are_stopped_too_and_nothing_else(short):
    """A server that puts itself in the background, in a session of its own; and a stranger of the same name."""
    serve = f"{sys.executable} -m http.server --bind 127.0.0.1"
    stranger = subprocess.Popen([*serve.split(), "0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        background = f"setsid {serve} {port} & sleep 1"
        broken = local("up", short, "--s3", background, "--s3-url", url, "--mlflow-store", "nonsense://x")
        assert "mlflow did not start" in broken.stderr
        assert status(short)["processes"]["s3"]
        assert asked(url) == 200
        assert local("down", short).returncode == 0
        assert not any(status(short)["processes"].values())
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def holds_no_credential(folder: Path, exports: dict[str, str], env: dict[str, str], client: Path) -> None:
    """A job that is submitted with marked credentials leaves them in no file, title, tag or metadata."""
    spec = client / "discreet.yaml"
    spec.write_text(SPEC)
    command = [sys.executable, "-m", "ipcnn_ray.cli.app", "submit", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, env={**env, **exports, **MARKED}, cwd=client)
    assert done.returncode == 0, done.stdout + done.stderr
    token = (folder / "token").read_text()
    request = urllib.request.Request(
        f"{exports['IPCNN_ADDRESS']}/api/jobs/", headers={"Authorization": f"Bearer {token}"}
    )
    jobs = urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=20).read()
    assert b"ipcnn.experiment" in jobs
    titles = subprocess.run(["ps", "-eo", "args"], capture_output=True).stdout
    found = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != "token"}
    assert any(name.endswith("mlflow.db") for name in found) and any("job-driver" in name for name in found)
    found |= {"jobs": jobs, "titles": titles, "told": (done.stdout + done.stderr).encode()}
    for secret in [*MARKED.values(), token]:
        assert [where for where, what in found.items() if secret.encode() in what] == []


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_nodes_record_and_token(short, tmp_path):
    home = str(short / "home")
    up = local("up", short, "--workers", 2, IPCNN_HOME=home, IPCNN_STORAGE=str(short / "runs"), **MARKED)
    assert up.returncode == 0, up.stderr
    here = status(short)
    exports = here["exports"]
    assert all(here["processes"][name] for name in ("mlflow", "head", "worker-1", "worker-2"))
    token = (short / "token").read_text()
    assert stat.S_IMODE((short / "token").stat().st_mode) == 0o600

    dashboard = exports["IPCNN_ADDRESS"]
    assert asked(f"{dashboard}/api/version") == 401
    assert asked(f"{dashboard}/api/version", token) == 200
    assert token not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout

    doctor = [sys.executable, "-c", "from ipcnn_ray.cli.app import main; main()", "doctor", "--json"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    with_token = subprocess.run(doctor, capture_output=True, text=True, env={**env, **exports}, cwd=tmp_path)
    assert with_token.returncode == 0, with_token.stdout + with_token.stderr
    checks = {line["check"]: line for line in json.loads(with_token.stdout)["checks"]}
    assert checks["nodes"]["fact"] == "3 nodes with 3 cores and 0 GPUs"
    assert checks["authentication"]["state"] == checks["MLflow"]["state"] == checks["clocks"]["state"] == "ok"

    without = subprocess.run([*doctor, "--address", dashboard], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert without.returncode == 2
    assert "asks for another token" in without.stderr and "RAY_AUTH_TOKEN_PATH" in without.stderr

    holds_no_credential(short, exports, env, tmp_path)

    job = tmp_path / "job"
    job.mkdir()
    (job / "witness.py").write_text(WITNESS)
    words = ["job", "submit", "--working-dir", job, "--", "python", "witness.py", tmp_path]
    ray = [Path(sys.executable).with_name("ray"), *words]
    witness = subprocess.Popen(ray, stdout=subprocess.PIPE, text=True, env={**env, **exports}, cwd=tmp_path)
    while not (tmp_path / "ready").exists():
        assert witness.poll() is None, witness.communicate()
        time.sleep(0.2)
    assert local("down", short, "worker-1", "--kill").returncode == 0
    left = status(short)["processes"]
    assert left["worker-1"] == [] and left["worker-2"] and left["head"]
    assert local("up", short, IPCNN_HOME=home, **MARKED).returncode == 0
    assert status(short)["processes"]["worker-1"]
    (tmp_path / "go").touch()
    assert "working directories: 2 of 2" in witness.communicate(timeout=120)[0]
    assert local("down", short, "head", "--kill").returncode == 0
    again = local("up", short, IPCNN_HOME=home, **MARKED)  # with the nodes of the former head still there
    assert again.returncode == 0, again.stderr
    assert all(status(short)["processes"].values())
    assert local("down", short).returncode == 0
    assert not any(status(short)["processes"].values())
