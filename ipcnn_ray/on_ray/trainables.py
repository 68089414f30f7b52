"""A run as a Tune trainable. Two strategies behind one function: one worker trains in the trial's own process,
which costs about a second a trial; several workers are a Ray Train run nested in the trial.

Checkpoints are ours (train/checkpoint.py) in both: a retried, restored or resubmitted run finds its own.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from ipcnn_ray.on_ray.campaign import Campaign
from ipcnn_ray.train.attempts import Attempts
from ipcnn_ray.train.checkpoint import read_result
from ipcnn_ray.train.request import RunRequest
from ipcnn_ray.train.run import execute
from ipcnn_ray.train.runtime import InProcess, ProcessGroup

LOST_WORKERS = 8
"""Times that a run is restarted after its worker vanished."""


class _Trial(InProcess):
    """One worker in a trial's process; evaluated epochs go to Tune."""

    def report(self, metrics: Mapping[str, float]) -> None:
        if "val_error" in metrics:
            tune.report(dict(metrics))


class _TrainWorker(ProcessGroup):
    """A worker of Ray Train; evaluated epochs go to its controller, which passes rank 0's on to Tune."""

    def report(self, metrics: Mapping[str, float]) -> None:
        if "val_error" in metrics:
            ray.train.report(dict(metrics))


def trainable(campaign: Campaign) -> Callable[[dict[str, Any]], None]:
    """The function that Tune runs, once per trial."""

    def trial(config: dict[str, Any]) -> None:
        request = campaign.request(campaign.run(config))
        known = read_result(request.path)
        if known is None:
            train = _nested if request.spec.compute.workers > 1 else _in_trial
            train(request, campaign)
        elif "val_error" in known.metrics:
            tune.report(dict(known.metrics))

    return trial


def resources(campaign: Campaign) -> dict[str, float]:
    """What one trial asks Tune for. The driver of a nested run takes no core and stays with the head."""
    compute = campaign.spec.compute
    if compute.workers > 1:
        return {"CPU": 0, "node:__internal_head__": 0.001}
    return {"CPU": float(compute.cpus_per_worker), "GPU": campaign.gpus}


def _errors(request: RunRequest) -> int:
    """Attempts that ended by an error of the run itself."""
    attempts = Attempts.read(request.path)
    return attempts.error + attempts.memory


def _in_trial(request: RunRequest, campaign: Campaign) -> None:
    device = torch.device("cuda" if campaign.gpus else "cpu")
    before = _errors(request)
    while True:
        try:
            execute(request, _Trial(device), campaign.tracker)
            return
        except Exception:  # recorded with its cause by execute; the search goes on without this run
            if _errors(request) - before > request.spec.compute.retries:
                return


def _nested(request: RunRequest, campaign: Campaign) -> None:
    compute = request.spec.compute
    tracker, before = campaign.tracker, _errors(request)

    def worker(_: dict[str, Any]) -> None:
        if _errors(request) - before > request.spec.compute.retries:
            return
        execute(request, _TrainWorker(ray.train.torch.get_device()), tracker)

    TorchTrainer(
        worker,
        train_loop_config={},
        scaling_config=ScalingConfig(
            num_workers=compute.workers,
            use_gpu=campaign.gpus > 0,
            resources_per_worker={"CPU": compute.cpus_per_worker, "GPU": campaign.gpus},
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,
            storage_path=f"{campaign.root}/ray",
            callbacks=[TuneReportCallback()],
            failure_config=FailureConfig(max_failures=LOST_WORKERS + compute.retries),
        ),
    ).fit()
