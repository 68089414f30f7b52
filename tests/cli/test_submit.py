"""`ipcnn submit`: requests that start nothing. tests/on_ray/test_credentials.py submits a search."""

from __future__ import annotations

import pytest
from fakes.commands import run_command

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
