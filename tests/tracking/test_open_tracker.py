"""The tracker of an environment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import ipcnn_ray
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.buffered_tracker import BufferedTracker
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.utils.paths import Paths

PACKAGE = Path(ipcnn_ray.__file__).parent


@pytest.mark.parametrize(
    ("uri", "buffer", "kind"),
    [
        ("", "", MlflowTracker),
        ("", "buffer", MlflowTracker),
        ("http://127.0.0.1:9", "", MlflowTracker),
        ("http://127.0.0.1:9", "buffer", BufferedTracker),
    ],
)
def test_only_a_server_with_a_buffer_is_buffered(tmp_path, uri, buffer, kind):
    paths = Paths.from_environment({"IPCNN_HOME": str(tmp_path), "MLFLOW_TRACKING_URI": uri})
    tracker = open_tracker(paths, buffer=buffer and str(tmp_path / buffer))
    assert type(tracker) is kind
    assert tracker.uri == (uri or f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_trackers_are_opened_nowhere_else():
    named = {
        file.relative_to(PACKAGE).as_posix()
        for file in PACKAGE.rglob("*.py")
        if any(name in file.read_text() for name in ("MlflowTracker(", "BufferedTracker("))
    }
    assert named and all(name.startswith("tracking/") for name in named)


def test_neither_a_tracker_nor_the_lineage_imports_heavy_packages():
    script = (
        "import sys; from ipcnn_ray.tracking import lineage, open_tracker; from ipcnn_ray.utils.paths import Paths;"
        "lineage.lineage();"
        "open_tracker(Paths.from_environment({'MLFLOW_TRACKING_URI': 'http://127.0.0.1:9'}), buffer='/nowhere');"
        "sys.exit(' '.join({'torch', 'mlflow', 'boto3'} & set(sys.modules)) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0
