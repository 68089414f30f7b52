"""The folder of an experiment in the storage: layout, archive, and stop requests.

<storage>/<experiment>/<run>/              checkpoints and result of a run
<storage>/<experiment>/search/             state of the search
<storage>/<experiment>/stop                request to stop after the current epochs
<storage>/<experiment>/submissions.json    number of submissions
<storage>/<experiment>/driver.json         S3 only: the driver and its heartbeat
<storage>/.<experiment>.lock               file system only: the driver's lock, with its process id
"""

from __future__ import annotations

import json
import time
from pathlib import Path

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import experiment_id
from ipcnn_ray.tracking.storage import join_path
from ipcnn_ray.train.run_dir import local_path, open_run_dir, read_file, write_file
from ipcnn_ray.utils.paths import Paths

STOP, SUBMISSIONS = "stop", "submissions.json"


def experiment_folder(spec: ExperimentSpec, paths: Paths) -> str:
    """Return the path or s3:// URL of an experiment's folder."""
    return join_path(paths.storage, experiment_id(spec))


def ray_storage_dir(folder: str, paths: Paths) -> Path:
    """Return the local folder for Ray's own state of an experiment or a run. It is not needed after the run."""
    return (local_path(folder) or paths.home / "notes" / "-".join(folder.split("/")[-2:])) / "ray"


def finished_runs(root: str) -> set[str]:
    """Return the labels of the runs that have a result."""
    if (folder := local_path(root)) is not None:
        return {file.parent.name for file in folder.glob("*/result.json")}
    keys = [key.split("/") for key in open_run_dir(root).list()]
    return {key[0] for key in keys if len(key) == 2 and key[1] == "result.json"}


def archive(root: str) -> None:
    """Rename the experiment's folder, so that the next submission starts from nothing."""
    parent, _, name = root.rpartition("/")
    files = open_run_dir(parent)
    if files.list(name):
        files.move(name, f"{name}.before-{time.strftime('%Y%m%d-%H%M%S')}")


def count_submission(root: str) -> int:
    """Return the number of submissions of the experiment, this one included."""
    previous = read_file(root, SUBMISSIONS)
    count = (int(json.loads(previous)["count"]) if previous else 0) + 1
    write_file(root, SUBMISSIONS, json.dumps({"count": count}).encode())
    return count


def request_stop(root: str) -> None:
    """Make the runs stop after their current epoch. A new submission resumes them."""
    write_file(root, STOP, b"")


def stop_requested(root: str) -> bool:
    return open_run_dir(root).exists(STOP)


def clear_stop_request(root: str) -> None:
    open_run_dir(root).delete(STOP)
