"""One process at a time trains a run: a search may draw the same settings twice at the same time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import ray
from ray import tune

from ipcnn_ray.train.run_dir import Folder, local_path
from ipcnn_ray.utils.locks import file_lock

PAUSE_S = 1.0


@ray.remote(num_cpus=0)
class _Turns:
    """Which trial of Tune's trains which folder; lives with the driver."""

    def __init__(self) -> None:
        self.holders: dict[str, str] = {}

    def take(self, folder: str, trial: str) -> bool:
        """Whether it is this trial's turn; a trial that is started again still has its own."""
        return self.holders.setdefault(folder, trial) == trial

    def free(self, trial: str) -> None:
        self.holders = {folder: holder for folder, holder in self.holders.items() if holder != trial}


class TrialLock:
    """Locks of files where runs are in a file system, else the driver's knowledge of who trains what. It pickles."""

    def __init__(self, root: Folder) -> None:
        self._actor: Any = None if local_path(root) is not None else _Turns.remote()  # type: ignore[attr-defined]

    def of(self, folder: Folder) -> AbstractContextManager[None]:
        """A block in which nobody else trains in this folder; for the process of a trial."""
        here = local_path(folder)
        return file_lock(here / "lock") if here is not None else self._turn(str(folder))

    def free(self, trial: str) -> None:
        """Tune is through with a trial, however its process ended."""
        if self._actor is not None:
            self._actor.free.remote(trial)

    @contextmanager
    def _turn(self, folder: str) -> Iterator[None]:
        trial = tune.get_context().get_trial_id()
        while not ray.get(self._actor.take.remote(folder, trial)):
            time.sleep(PAUSE_S)
        try:
            yield
        finally:
            self.free(trial)
