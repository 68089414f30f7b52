"""Ray Train's TorchTrainer without helper processes that our runs do not need: each imports Ray beside the workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray import PlacementGroupID
from ray.train import Result
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group


class TrialTrainer(TorchTrainer):
    """A TorchTrainer without the process for Ray's datasets, of which our runs have none."""

    unneeded: tuple[type, ...] = (DatasetsCallback,)

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in callbacks if not isinstance(callback, self.unneeded)]


class DriverTrainer(TrialTrainer):
    """A TorchTrainer of the driver of an embedded Ray, which has started its controller (train_controller.py).

    It has no process that releases the resources of the workers if the controller dies: the driver does that itself.
    """

    unneeded = (DatasetsCallback, PlacementGroupCleanerCallback)
    controller: Any

    def _initialize_and_run_controller(self, **arguments: Any) -> Result:
        if threading.current_thread() is threading.main_thread():
            self._register_sigint_handler(self.controller)  # type: ignore[attr-defined]
        with _placement_groups_removed():
            result: Result = ray.get(self.controller.run.remote(**arguments))
        return result


@contextmanager
def _placement_groups_removed() -> Iterator[None]:
    """Remove the placement groups that the block leaves."""
    before = set(placement_group_table())
    try:
        yield
    finally:
        for identity, group in placement_group_table().items():
            if identity not in before and group["state"] != "REMOVED":
                remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(identity))))
