"""Workers are processes with gloo between them; one worker is this process."""

import pytest
import torch
import train_ranks
from safetensors.torch import load
from torch import multiprocessing
from train_fakes import Bench


@pytest.fixture(scope="module")
def found(tmp_path_factory, crops):
    """World size -> what each rank found."""
    bench = Bench(tmp_path_factory.mktemp("ranks"), crops)
    by_world = {1: [train_ranks.alone(bench)]}
    for world in (2, 3):
        (bench.root / "meet").unlink(missing_ok=True)
        multiprocessing.spawn(train_ranks.worker, (world, str(bench.root), str(crops)), nprocs=world)
        by_world[world] = [torch.load(bench.root / f"rank{rank}-of-{world}.pt") for rank in range(world)]
    return bench, by_world


def test_two_workers_take_the_same_step_as_one(found):
    _, by_world = found
    alone = by_world[1][0]["step"]
    for step in (rank["step"] for rank in by_world[2]):
        assert float(step["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-6)
        assert float(step["information"]) == pytest.approx(float(alone["information"]), rel=1e-5)
        for name, gradient in alone["gradients"].items():
            assert (step["gradients"][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("world", [2, 3])
def test_workers_record_the_metrics_of_one(found, world):
    """Two epochs with dropout and a heavy filter loss: differences of rounding, grown by training."""
    _, by_world = found
    alone = by_world[1][0]
    recorded = by_world[world][0]["history"]
    assert len(recorded) == len(alone["history"]) == 2
    for one, other in zip(alone["history"], recorded, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_gets_the_same_numbers(found, world):
    _, by_world = found
    first, *others = by_world[world]
    for other in others:
        assert other["result"] == first["result"]


def test_final_weights_are_those_of_one_worker(found):
    bench, _ = found
    alone = load(bench.weights("alone"))
    for name, tensor in load(bench.weights("whole-2")).items():
        assert (tensor - alone[name]).abs().max() <= 1e-4 * alone[name].abs().max(), name


@pytest.mark.parametrize("world", [2, 3])
def test_resumed_workers_end_bit_for_bit_as_uninterrupted_ones(found, world):
    """Three workers: the order in which their gradients are added up depends on DDP's buckets."""
    bench, _ = found
    assert bench.weights(f"cut-{world}") == bench.weights(f"whole-{world}")
    assert bench.weights(f"stopped-{world}") == bench.weights(f"whole-{world}")


@pytest.mark.parametrize("world", [2, 3])
def test_a_stop_asked_of_one_rank_stops_all(found, world):
    _, by_world = found
    stops = [rank["stopped"] for rank in by_world[world]]
    assert [(state, epochs) for state, _, epochs in stops] == [("stopped", 1)] * world
    assert stops[0][1] == "another worker was asked to stop" and stops[1][1] == "asked"
