"""Locations from the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipcnn_ray.utils.paths import Paths


def test_defaults_are_below_home(monkeypatch):
    monkeypatch.setenv("HOME", "/people/ada")
    home = Path("/people/ada/.ipcnn")
    assert Paths.from_environment({}) == Paths(
        home=home,
        data=None,
        weights=None,
        cache=home / "cache",
        storage=str(home / "runs"),
        tracking_uri=f"sqlite:///{home}/mlflow.db",
        artifacts=str(home / "artifacts"),
    )


def test_every_variable_counts_and_relative_paths_become_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"IPCNN_HOME": "home", "IPCNN_DATA": "data", "IPCNN_WEIGHTS": "~/weights", "IPCNN_CACHE": "cache"}
    names |= {"IPCNN_STORAGE": "runs", "MLFLOW_TRACKING_URI": "http://server"}
    paths = Paths.from_environment(names)
    assert (paths.home, paths.data, paths.cache) == (tmp_path / "home", tmp_path / "data", tmp_path / "cache")
    assert paths.weights == Path.home() / "weights"
    assert (paths.storage, paths.artifacts) == (str(tmp_path / "runs"), str(tmp_path / "home" / "artifacts"))
    assert (paths.tracking_uri, paths.data_url, paths.weights_url) == ("http://server", "", "")


@pytest.mark.parametrize("storage", ["s3://bucket/runs", "s3://bucket/runs/"])
def test_urls_stay_urls(storage):
    names = {"IPCNN_STORAGE": storage, "IPCNN_DATA": "s3://bucket/data", "IPCNN_WEIGHTS": "s3://bucket/weights"}
    paths = Paths.from_environment(names)
    assert (paths.storage, paths.artifacts) == (storage, "s3://bucket/runs/artifacts")
    assert (paths.data, paths.data_url) == (None, "s3://bucket/data")
    assert (paths.weights, paths.weights_url) == (None, "s3://bucket/weights")
