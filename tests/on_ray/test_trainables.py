"""What a worker knows of the Ray around it, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from ipcnn_ray.on_ray import trainables


@pytest.mark.parametrize(
    ("alive", "free", "workers", "spare"),
    [
        ([True], {"CPU": 3.0}, 1, 3),
        ([True], {"CPU": 3.0}, 2, 1),
        ([True], {}, 1, 0),  # all are reserved
        ([True, False], {"CPU": 3.0}, 1, 3),
        ([True, True], {"CPU": 3.0}, 1, 0),
    ],
)
def test_the_free_cores_of_an_embedded_ray_are_shared_by_the_workers_of_a_run(monkeypatch, alive, free, workers, spare):
    monkeypatch.setattr(trainables.ray, "nodes", lambda: [{"Alive": one} for one in alive])
    monkeypatch.setattr(trainables.ray, "available_resources", lambda: free)
    worker = SimpleNamespace(world_size=workers)
    assert trainables._TuneReports.spare_cores(worker) == spare  # type: ignore[arg-type]


@pytest.mark.parametrize(("gpus", "told"), [(0.25, "--set compute.gpus_per_worker=1"), (1.0, ""), (0.0, "")])
def test_a_run_that_finds_no_memory_on_a_shared_gpu_is_told_how_to_have_it_alone(monkeypatch, gpus, told):
    def train_run(*arguments: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainables, "train_run", train_run)
    monkeypatch.setattr(trainables, "_TrialRuntime", lambda *arguments: None)
    context = SimpleNamespace(gpus=gpus, tracker=None)
    with pytest.raises(torch.OutOfMemoryError, match=r"^CUDA out of memory") as failed:
        trainables._run_in_trial(None, context)  # type: ignore[arg-type]
    assert trainables.cause_of(failed.value).startswith("out of memory: ")
    assert told in str(failed.value) and ("share" in str(failed.value)) == bool(told)
