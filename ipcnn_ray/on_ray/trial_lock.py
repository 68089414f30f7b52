"""Locks of run folders: a search may sample the same settings twice, and one trial at a time trains a run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray
from ray import tune

from ipcnn_ray.train.run_dir import Folder, local_path
from ipcnn_ray.utils.locks import file_lock

POLL_S = 1.0


@ray.remote(num_cpus=0)
class _LockActor:
    """Maps each run folder to the trial that holds its lock. Lives as long as the driver."""

    def __init__(self) -> None:
        self.holders: dict[str, str] = {}

    def acquire(self, folder: str, trial_id: str) -> bool:
        """Return whether this trial holds the lock. A restarted trial still holds its own."""
        return self.holders.setdefault(folder, trial_id) == trial_id

    def release(self, trial_id: str) -> None:
        self.holders = {folder: holder for folder, holder in self.holders.items() if holder != trial_id}


class TrialLock:
    """Locks of an experiment's run folders: file locks in a file system, an actor's table for S3. Can be pickled."""

    def __init__(self, root: Folder) -> None:
        """root: Folder of the experiment."""
        self._actor: Any = None if local_path(root) is not None else _LockActor.remote()  # type: ignore[attr-defined]

    def acquire(self, folder: Folder) -> AbstractContextManager[None]:
        """Return a context that waits for the lock of a run folder and holds it. For the process of a trial."""
        local = local_path(folder)
        return file_lock(local / "lock") if local is not None else self._actor_lock(str(folder))

    def release(self, trial_id: str) -> None:
        """Release what a trial holds, however its process ended. For the driver."""
        if self._actor is not None:
            self._actor.release.remote(trial_id)

    @contextmanager
    def _actor_lock(self, folder: str) -> Iterator[None]:
        trial_id = tune.get_context().get_trial_id()
        while not ray.get(self._actor.acquire.remote(folder, trial_id)):
            time.sleep(POLL_S)
        try:
            yield
        finally:
            self.release(trial_id)
