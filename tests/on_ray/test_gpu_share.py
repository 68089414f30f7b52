"""How many runs share a GPU by default, and that they do."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import ray
import torch
from fakes.ray_bench import EventLog, tiny
from ray import tune

from ipcnn_ray.on_ray import gpu_share as module
from ipcnn_ray.on_ray import trainables
from ipcnn_ray.on_ray.events import Logged
from ipcnn_ray.on_ray.gpu_share import GIB, GPU_MEMORY, GpuShare, gpu_share, largest_run, own_gpus
from ipcnn_ray.on_ray.ray_session import max_concurrent_runs
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.training import Compute
from ipcnn_ray.train.device_memory import run_bytes
from ipcnn_ray.train.trainer import train_run

LAPTOP = {"CPU": 8.0}
H100 = {"CPU": 16.0, "GPU": 1.0, "accelerator_type:H100": 1.0}
EIGHT = {"CPU": 64.0, "GPU": 8.0, GPU_MEMORY: 80.0 * GIB}
T4 = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
UNKNOWN = {"CPU": 16.0, "GPU": 1.0, "accelerator_type:NPU9": 1.0}
MANY = 100


def share(nodes: list[dict[str, float]], gib: float | None, runs: int = MANY, **compute: Any) -> GpuShare:
    needed = None if gib is None else int(gib * GIB)
    return gpu_share(Compute(**compute), nodes, runs, lambda: needed)


@pytest.mark.parametrize(
    ("nodes", "gib", "more", "gpus"),
    [
        ([LAPTOP], 1, {}, 0),
        ([H100], 1, {}, 1 / 4),
        # 3/4 of 79 GiB are 59.25: the rest is for data that stay on the GPU
        ([H100], 14.8, {}, 1 / 4),
        ([H100], 14.9, {}, 1 / 2),
        ([H100], 29.7, {}, 1),
        ([T4], 2.5, {}, 1 / 4),
        ([H100, T4], 3, {}, 1 / 2),  # the smallest GPU decides
        ([H100, LAPTOP], 1, {}, 1 / 4),
        # cores of each GPU
        ([H100], 1, {"cpus_per_worker": 4}, 1 / 4),
        ([H100], 1, {"cpus_per_worker": 5}, 1 / 2),
        ([H100], 1, {"cpus_per_worker": 9}, 1),
        ([{**EIGHT, "CPU": 31.0}], 1, {}, 1 / 2),
        ([H100, {**EIGHT, "CPU": 8.0}], 1, {}, 1),
        # no more than there are runs for
        ([H100], 1, {"runs": 1}, 1),
        ([H100], 1, {"runs": 2}, 1 / 2),
        ([H100], 1, {"runs": 3}, 1 / 4),
        ([EIGHT], 1, {"runs": 8}, 1),
        ([EIGHT], 1, {"runs": 9}, 1 / 2),
        ([EIGHT, EIGHT], 1, {"runs": 33}, 1 / 4),
        ([H100], 1, {"concurrent_runs": 1}, 1),
        ([H100], 1, {"concurrent_runs": 2}, 1 / 2),
        ([H100], 1, {"runs": 1, "concurrent_runs": 4}, 1 / 4),
        # what is not decided here
        ([H100], 1, {"workers": 2}, 1),
        ([H100], 1, {"gpus_per_worker": 0.1}, 0.1),
        ([H100], 1, {"gpus_per_worker": 0.0}, 0),
        ([LAPTOP], 1, {"gpus_per_worker": 1.0}, 1),
        # what is unknown
        ([UNKNOWN], 1, {}, 1),
        ([H100, UNKNOWN], 1, {}, 1),
        ([{**UNKNOWN, GPU_MEMORY: 24.0 * GIB}], 1, {}, 1 / 4),
        ([H100], None, {}, 1),
    ],
)
def test_the_share_of_a_run(nodes, gib, more, gpus):
    assert share(nodes, gib, **more).gpus == gpus


def test_all_runs_that_are_asked_for_go_on_at_the_same_time():
    compute = Compute(concurrent_runs=4)
    decided = share([H100], 1, runs=1, concurrent_runs=4)
    assert max_concurrent_runs(compute, decided.gpus, [H100]) == 4
    assert max_concurrent_runs(Compute(), share([EIGHT], 1).gpus, [EIGHT]) == 32


@pytest.mark.parametrize(
    ("nodes", "gib", "more", "reason"),
    [
        ([H100], 3.04, {}, "4 runs on each (79 GiB): a run takes up to 3.0 GiB, estimated"),
        ([H100], 40, {}, "one run on each (79 GiB): a run takes up to 40.0 GiB, estimated"),
        ([H100], 1, {"cpus_per_worker": 16}, "one run on each: two take 32 cores, each GPU has 16"),
        ([UNKNOWN], 1, {}, "one run on each, as its memory is unknown: set gpus_per_worker"),
        ([H100], None, {}, "one run on each: the memory that a run takes is unknown"),
        ([H100], 1, {"runs": 1}, ""),
        ([H100], 1, {"gpus_per_worker": 0.5}, ""),
        ([LAPTOP], 1, {}, ""),
    ],
)
def test_the_reason(nodes, gib, more, reason):
    assert share(nodes, gib, **more).reason == reason


def test_the_memory_is_not_estimated_where_it_does_not_matter():
    def estimate() -> int:
        raise AssertionError

    for nodes, runs, compute in (
        ([LAPTOP], MANY, Compute()),
        ([H100], 1, Compute()),
        ([H100], MANY, Compute(workers=2)),
        ([H100], MANY, Compute(gpus_per_worker=0.5)),
        ([UNKNOWN], MANY, Compute()),
    ):
        gpu_share(compute, nodes, runs, estimate)


def searching(**search: Any) -> ExperimentSpec:
    search = {"runs": [{"name": "plain", "set": {"template": {"shape": "none"}}}], **search}
    return tiny("searching", search=search)


def bytes_of(**settings: Any) -> int:
    return run_bytes(tiny("one").run_spec(settings), images=4 * 24).of_process


def test_the_largest_run_of_an_experiment():
    assert tiny("one").data.train_items() == 24
    usual, large = bytes_of(), bytes_of(**{"train.batch_size": 16})
    assert largest_run(tiny("one"), None) == usual < large
    plain = bytes_of(template={"shape": "none"})
    assert largest_run(searching(kind="named", repeats=3), None) == plain < usual
    grid = {"train.batch_size": [4, 16, 8], "template.beta": [1, 2]}
    assert largest_run(searching(kind="grid", grid=grid), None) == large
    named = [{"name": "plain", "set": {"template": {"shape": "none"}, "train.batch_size": 16}}]
    grid = {"template.beta": [1, 2]}
    plain = bytes_of(**{"train.batch_size": 16, "template": {"shape": "none"}})
    assert largest_run(searching(kind="grid", grid=grid, runs=named), None) == max(usual, plain)
    # Of a space the largest combination of choices, however many ranges there are.
    space: dict[str, Any] = {
        "train.batch_size": {"choice": [4, 16]},
        "model.network": {"choice": ["compact", "alexnet"]},
        **{f"train.{name}": {"uniform": [0.1, 0.2]} for name in ("learning_rate", "momentum", "weight_decay")},
        **{f"train.{name}": {"uniform": [1.0, 2.0]} for name in ("new_weight_rate", "new_bias_rate")},
        **{f"template.{name}": {"uniform": [1.0, 2.0]} for name in ("beta", "tau")},
        "loss.filter.weight": {"uniform": [0.1, 0.2]},
    }
    both = bytes_of(**{"train.batch_size": 16, "model.network": "alexnet"})
    assert largest_run(searching(kind="space", trials=3, space=space), None) == both


def test_what_cannot_be_estimated_is_unknown(monkeypatch):
    monkeypatch.setattr(module, "MAX_CORNERS", 3)
    space = {"train.batch_size": {"choice": [4, 8]}, "template.beta": {"choice": [1, 2]}}
    assert largest_run(searching(kind="space", trials=3, space=space), None) is None

    def unsupported(spec: ExperimentSpec, images: int) -> None:
        raise NotImplementedError("no kernel for Meta tensors")

    monkeypatch.setattr("ipcnn_ray.train.device_memory.run_bytes", unsupported)
    assert largest_run(tiny("one"), None) is None


def test_gpus_of_this_machine(monkeypatch):
    class Card:
        def __init__(self, gib: int) -> None:
            self.total_memory = gib * GIB

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert own_gpus() == {"GPU": 0}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: [Card(80), Card(24)][index])
    assert own_gpus() == {"GPU": 2, GPU_MEMORY: 24 * GIB}

    def broken(index: int) -> None:
        raise RuntimeError("CUDA driver version is insufficient")

    monkeypatch.setattr(torch.cuda, "get_device_properties", broken)
    assert own_gpus() == {"GPU": 2}


@pytest.fixture
def one_gpu(no_ray):
    """A Ray with four cores and, by its word, an H100."""
    ray.init(
        num_cpus=4, num_gpus=1, resources={"accelerator_type:H100": 1}, include_dashboard=False, log_to_driver=False
    )
    yield
    ray.shutdown()


@pytest.mark.slow
def test_runs_go_on_at_the_same_time_on_one_gpu(bench, one_gpu, monkeypatch, tmp_path):
    """Three runs meet on the GPU, which Ray gives to each; there is none, so they are trained on the CPU."""

    def meet_and_train(request, context):  # pickled with the trial, in place of the function that trains on the GPU
        (tmp_path / request.run.label).write_text(json.dumps([ray.get_gpu_ids(), context.gpus]))
        end = time.monotonic() + 120
        while len(list(tmp_path.iterdir())) < 3:
            assert time.monotonic() < end, "no other run came"
            time.sleep(0.1)
        runtime = trainables._TrialRuntime(torch.device("cpu"), tune.report, request, context)
        assert runtime.gpus == context.gpus
        train_run(request, runtime, context.tracker)

    monkeypatch.setattr(trainables, "_run_in_trial", meet_and_train)
    runs = [{"name": "plain", "set": {"template": {"shape": "none"}}}, {"name": "l1"}]
    runs.append({"name": "wide", "set": {"template.beta": 1.0}})
    spec = tiny("on_one_gpu", train={"epochs": 1}, search={"kind": "named", "runs": runs})
    events = EventLog()
    outcome = bench.submit(spec, events)
    assert [run.state for run in outcome.runs] == 3 * ["succeeded"]
    seen = {file.name: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    assert seen == {name: [[0], 0.25] for name in ("plain", "l1", "wide")}
    told = [event.text for event in events.events if isinstance(event, Logged)]
    needed = largest_run(spec, None)
    assert needed is not None
    assert told == [f"GPUs: 4 runs on each (79 GiB): a run takes up to {needed / GIB:.1f} GiB, estimated"]
