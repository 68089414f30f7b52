"""What the tests of `train/` share: tiny experiments on drawn animals."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fakes.training import Bench, tiny

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def crops(tmp_path_factory) -> Path:
    """A cache that all tests share: the same animals need to be drawn once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def bench(tmp_path, crops) -> Bench:
    """A folder for runs, with a record in memory."""
    return Bench(tmp_path, crops)


@pytest.fixture(scope="session")
def whole(tmp_path_factory, crops) -> tuple[bytes, list[dict[str, float]]]:
    """Weights and history of a run of `tiny()` that nothing interrupted."""
    bench = Bench(tmp_path_factory.mktemp("whole"), crops)
    bench.run(tiny())
    return bench.weights(), bench.record.history
