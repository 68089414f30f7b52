"""One home and one cache of crops for all tests of `on_ray/`."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

from fakes.ray_bench import Bench

from ipcnn_ray.utils.paths import Paths


@pytest.fixture(scope="session")
def bench(tmp_path_factory) -> Bench:
    """The home of all tests; their experiments have different names."""
    home = tmp_path_factory.mktemp("home")
    return Bench(Paths.from_environment({"IPCNN_HOME": str(home)}))
