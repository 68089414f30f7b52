"""`ipcnn submit` in a process of its own: a tiny search, the same again, and requests that start nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from fakes.commands import run_command

import ipcnn_ray
from ipcnn_ray.errors import TrackingError

SPEC = """
name: tiny
data: {kind: drawn_animals, objects: 24, negatives: 16}
model: {network: compact}
template: {shape: gradient, norm: l1, beta: 2}
train: {epochs: 1, batch_size: 16, learning_rate: 0.01}
compute: {models: none}
search:
  kind: named
  runs: [{name: plain, set: {template: {shape: none}}}, {name: l1}]
"""


@pytest.mark.slow
def test_a_search_from_spec_to_ranking_and_the_same_again(tmp_path):
    spec = tmp_path / "tiny.yaml"
    spec.write_text(SPEC)
    first = subprocess.run(
        [sys.executable, "-m", "ipcnn_ray.cli.app", "submit", str(spec), "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "80"},
        timeout=500,
    )
    assert first.returncode == 0, first.stderr
    outcome = json.loads(first.stdout)
    assert outcome["control"] == "plain"
    runs = {run["run_id"].rsplit("-", 1)[1]: run for run in outcome["runs"]}
    assert len(runs) == 2 and {run["state"] for run in runs.values()} == {"succeeded"}
    assert runs["plain"]["metrics"]["combined"] == 1.0
    assert json.loads(run_command("submit", spec, "--json").stdout) == outcome
    assert json.loads(json.dumps(ipcnn_ray.submit(spec, progress=False).as_json())) == outcome


def test_a_wrong_spec_starts_nothing(home, tmp_path, ipcnn):
    spec = tmp_path / "wrong.yaml"
    spec.write_text(SPEC.replace("compact", "compakt"))
    code, out, err = ipcnn("submit", spec)
    assert (code, out) == (2, "")
    assert f"{spec}:4  model.network = 'compakt'" in err
    assert "Traceback" not in err
    assert not home.exists()


def test_an_unwritable_storage_is_reported_before_anything_starts(home, tmp_path, monkeypatch):
    spec = tmp_path / "tiny.yaml"
    spec.write_text(SPEC)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("IPCNN_STORAGE", str(tmp_path / "file"))
    with pytest.raises(TrackingError, match=r"storage .*/file: preflight-.*\n.*set IPCNN_STORAGE to another place"):
        run_command("submit", spec)
    assert list(home.iterdir()) == []
