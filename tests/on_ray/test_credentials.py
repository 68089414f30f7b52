"""`ipcnn submit` in a process of its own: its outcome, the same again, and that nothing contains a credential.

Credentials and Ray's token appear in no file, log, request or process title of a submission.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.commands import run_command
from fakes.s3 import FakeS3

import ipcnn_ray

MARKED = {
    "AWS_SECRET_ACCESS_KEY": "marked-secret-key",
    "AWS_SESSION_TOKEN": "marked-session-token",
    "MLFLOW_TRACKING_PASSWORD": "marked-password",
    "HF_TOKEN": "marked-foreign-token",
}
SPEC = """
name: discreet
data: {kind: drawn_animals, objects: 24, negatives: 16}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 1, batch_size: 8}
compute: {concurrent_runs: 1}
search:
  kind: named
  runs: [{name: plain, set: {template: {shape: none}}}, {name: l1}]
"""


class Processes:
    """Thread that collects the titles of all processes with a mark in their environment, and Ray's token there."""

    def __init__(self, mark: str) -> None:
        self.mark = mark.encode()
        self.titles: set[bytes] = set()
        self.tokens: set[str] = set()
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.over.wait(0.3):
            for entry in Path("/proc").iterdir():
                try:
                    if entry.name.isdigit() and self.mark in (env := (entry / "environ").read_bytes()):
                        self.titles.add((entry / "cmdline").read_bytes())
                        pairs = (pair.partition(b"=") for pair in env.split(b"\0"))
                        self.tokens |= {value.decode() for name, _, value in pairs if name == b"RAY_AUTH_TOKEN"}
                except OSError:
                    continue

    def __enter__(self) -> Processes:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ipcnn-", dir="/tmp") as folder:
        yield Path(folder)


def files(*folders: Path) -> dict[str, bytes]:
    found = (path for folder in folders for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path): path.read_bytes() for path in found}


@pytest.mark.slow
def test_a_search_from_spec_to_ranking_without_a_credential_anywhere(
    short: Path, fake_s3: FakeS3, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = short / "home"
    spec = short / "discreet.yaml"
    spec.write_text(SPEC)
    ours = [name for name in os.environ if name.startswith("IPCNN_")]
    for name in (*ours, "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    paths = {"IPCNN_HOME": str(home), "IPCNN_STORAGE": "s3://bucket/runs"}
    for name, value in paths.items():
        monkeypatch.setenv(name, value)
    env = {**os.environ, **MARKED, "RAY_TMPDIR": str(short), "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    with Processes(str(home)) as processes:
        done = subprocess.run(
            [sys.executable, "-m", "ipcnn_ray.cli.app", "submit", str(spec), "--json"], env=env, capture_output=True
        )
    assert done.returncode == 0, done.stderr.decode()

    outcome = json.loads(done.stdout)
    assert outcome["control"] == "plain"
    runs = {run["run_id"].rsplit("-", 1)[1]: run for run in outcome["runs"]}
    assert len(runs) == 2 and {run["state"] for run in runs.values()} == {"succeeded"}
    assert runs["plain"]["metrics"]["combined"] == 1.0

    left = files(short)
    assert any("gcs_server" in name for name in left), "no log of Ray was searched"
    assert any(name.endswith("mlflow.db") for name in left)
    assert any(b"raylet" in title for title in processes.titles)
    assert any("weights" in name for name in [*left, *fake_s3.objects])
    assert processes.tokens, "Ray has no token"
    shown = {"stdout": done.stdout, "stderr": done.stderr, "processes": b"\n".join(processes.titles)}
    everywhere = {**left, **fake_s3.objects, **shown, "requests": "\n".join(fake_s3.requests).encode()}
    secrets = {**MARKED, **{f"token {i}": token for i, token in enumerate(processes.tokens)}}
    found = [
        (name, where)
        for name, secret in secrets.items()
        for where, what in everywhere.items()
        if secret.encode() in what
    ]
    assert found == []

    # The same again, in this process: nothing is trained, and the outcome is the same.
    assert json.loads(run_command("submit", spec, "--json").stdout) == outcome
    assert json.loads(json.dumps(ipcnn_ray.submit(spec, progress=False).as_json())) == outcome
