"""What runs in the controller process of the only run of an experiment on an embedded Ray, and starts it ahead.

It is in a file of its own because the workers start after that process has imported it: it should import little.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train import UserCallback
from ray.train.v2._internal.constants import get_env_vars_to_propagate
from ray.train.v2._internal.execution.controller import TrainController


class Controller:
    """An actor that is a controller of Ray Train as soon as its run is known.

    Ray Train starts its controller with variables of its own, and this the workers. They are those that all processes
    of an embedded Ray inherit, but a process with variables of its own imports Ray twice.
    """

    def __init__(self) -> None:
        self.controller: Any = None

    async def run(self, **arguments: Any) -> ray.train.Result:
        """Train a run; the arguments are those of Ray Train's controller."""
        self.controller = TrainController(**arguments)
        for name in get_env_vars_to_propagate():
            del os.environ[name]  # after it was read
        await self.controller.run()
        result: ray.train.Result = self.controller.get_result()
        return result

    async def abort(self) -> None:
        """Kill the workers and end this process."""
        if self.controller is not None:
            await self.controller.abort()
        ray.actor.exit_actor()  # type: ignore[no-untyped-call]


class Controllers:
    """Starts controllers, the first one ahead of its run if there is time."""

    def __init__(self) -> None:
        self._ahead: Any = None

    def start_ahead(self) -> None:
        """Start a controller and the process that Ray Train's controllers ask for nodes."""
        get_or_create_autoscaling_coordinator()  # type: ignore[no-untyped-call]
        self._ahead = _started()

    def take(self) -> Any:
        """Return the actor of a controller that has no run yet."""
        ahead, self._ahead = self._ahead, None
        return ahead or _started()


def _started() -> Any:
    return ray.remote(num_cpus=0)(Controller).remote()


class ReportsToFile(UserCallback):
    """Appends the metrics of rank 0, as JSON, to a file on the node of the controller."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def after_report(self, run_context: object, metrics: list[dict[str, Any]], checkpoint: object) -> None:
        with self.file.open("a") as reports:
            reports.write(json.dumps(metrics[0]) + "\n")
