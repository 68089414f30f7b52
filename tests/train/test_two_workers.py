"""Workers that are processes with gloo between them, compared with one worker in this process."""

import pytest
import torch
from fakes import training_worker
from fakes.training import Bench
from safetensors.torch import load
from torch import multiprocessing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory, crops, fork_server):
    """World size -> what each rank returned; and the bench of the runs."""
    bench = Bench(tmp_path_factory.mktemp("ranks"), crops)
    by_world = {1: [training_worker.alone(bench)]}
    arguments = (str(bench.root), str(crops))
    multiprocessing.start_processes(training_worker.worker, arguments, nprocs=4, start_method="forkserver")
    ranks = [torch.load(bench.root / f"rank{rank}.pt") for rank in range(4)]
    return by_world | {world: [by_rank[world] for by_rank in ranks[:world]] for world in (2, 4)}, bench


@pytest.mark.parametrize("form", training_worker.FORMS)
@pytest.mark.parametrize("world", [2, 4])
def test_workers_take_the_same_step_as_one(results, world, form):
    by_world, _ = results
    alone = by_world[1][0]["step"][form]
    for step in (rank["step"][form] for rank in by_world[world]):
        assert float(step["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-6)
        assert float(step["diversity"]) == pytest.approx(float(alone["diversity"]), rel=1e-5)
        assert float(step["information"]) == pytest.approx(float(alone["information"]), rel=1e-5)
        for name, gradient in alone["gradients"].items():
            # Sums of many float32 terms of both signs: up to 1.3e-5 was seen.
            assert (step["gradients"][name] - gradient).abs().max() <= 3e-5 * gradient.abs().max(), name


def test_every_kind_of_filter_loss_moves_the_gradients(results):
    """The test above would pass without any filter loss."""
    steps = results[0][1][0]["step"]
    lowest = {form: step["gradients"]["body.conv4.weight"] for form, step in steps.items()}
    forms = list(lowest)
    for i, form in enumerate(forms):
        for other in forms[:i]:
            assert not torch.allclose(lowest[form], lowest[other], rtol=1e-3), (form, other)
    assert float(steps["released"]["gradients"]["masks.conv4.width_C"].abs().min()) > 0
    assert float(steps["learned"]["gradients"]["masks.conv4.log_beta_C"].abs().max()) > 0


@pytest.mark.parametrize("world", [2, 4])
def test_the_record_has_the_system_metrics_of_every_rank(results, world):
    first, *others = (rank["whole"]["system"] for rank in results[0][world])
    for name in ("cpu_utilization_percentage", "process_memory_megabytes", "network_receive_megabytes"):
        assert {f"system/rank_{rank}/{name}" for rank in range(world)} <= set(first[2])
    assert len({name.split("/")[1] for name in first[2] if "/" in name}) == world
    assert others == [{}] * (world - 1)  # rank 0 records those of all


@pytest.mark.parametrize("world", [2, 4])
def test_workers_train_as_one(results, world):
    """Two epochs with dropout and a heavy filter loss: differences of rounding, grown by training."""
    by_world, bench = results
    alone, many = by_world[1][0]["whole"]["history"], by_world[world][0]["whole"]["history"]
    assert len(alone) == len(many) == 2
    for expected, metrics in zip(alone, many, strict=True):
        assert metrics == pytest.approx(expected, rel=1e-4)
    first, *others = by_world[world]
    assert others and all(other["whole"]["result"] == first["whole"]["result"] for other in others)
    weights = load(bench.weights("alone"))
    for name, tensor in load(bench.weights(f"whole-{world}")).items():
        assert (tensor - weights[name]).abs().max() <= 1e-4 * weights[name].abs().max(), name


@pytest.mark.parametrize(("interrupted", "whole"), [("stopped-2", "whole-2"), ("cut-4", "whole-4")])
def test_resumed_workers_end_bit_for_bit_as_uninterrupted_ones(results, interrupted, whole):
    """Four workers: how their gradients are rounded depends on DDP's buckets."""
    _, bench = results
    assert bench.weights(interrupted) == bench.weights(whole)


def test_a_stop_asked_of_one_rank_stops_all(results):
    by_world, _ = results
    assert [rank["stopped"] for rank in by_world[2]] == [
        ("stopped", "another worker was asked to stop", 1),
        ("stopped", "asked", 1),
    ]
