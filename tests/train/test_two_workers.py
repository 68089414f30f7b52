"""Workers are processes with gloo between them; one worker is this process."""

import pytest
import torch
import train_ranks
from safetensors.torch import load
from torch import multiprocessing
from train_fakes import Bench


@pytest.fixture(scope="module")
def found(tmp_path_factory, crops):
    """World size -> what each rank found, and where the runs lie."""
    bench = Bench(tmp_path_factory.mktemp("ranks"), crops)
    by_world = {1: [train_ranks.alone(bench)]}
    multiprocessing.spawn(train_ranks.worker, (str(bench.root), str(crops)), nprocs=3)
    ranks = [torch.load(bench.root / f"rank{rank}.pt") for rank in range(3)]
    return by_world | {world: [found[world] for found in ranks[:world]] for world in (2, 3)}, bench


def test_two_workers_take_the_same_step_as_one(found):
    by_world, _ = found
    alone = by_world[1][0]["step"]
    for step in (rank["step"] for rank in by_world[2]):
        assert float(step["loss"]) == pytest.approx(float(alone["loss"]), rel=1e-6)
        assert float(step["information"]) == pytest.approx(float(alone["information"]), rel=1e-5)
        for name, gradient in alone["gradients"].items():
            assert (step["gradients"][name] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), name


@pytest.mark.parametrize("world", [2, 3])
def test_workers_record_the_metrics_of_one(found, world):
    """Two epochs with dropout and a heavy filter loss: differences of rounding, grown by training."""
    by_world, _ = found
    alone, many = by_world[1][0]["whole"]["history"], by_world[world][0]["whole"]["history"]
    assert len(alone) == len(many) == 2
    for one, other in zip(alone, many, strict=True):
        assert other == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize("world", [2, 3])
def test_every_rank_gets_the_same_numbers(found, world):
    by_world, _ = found
    first, *others = by_world[world]
    assert others
    for other in others:
        assert other["whole"]["result"] == first["whole"]["result"]


@pytest.mark.parametrize("world", [2, 3])
def test_final_weights_are_those_of_one_worker(found, world):
    _, bench = found
    alone = load(bench.weights("alone"))
    for name, tensor in load(bench.weights(f"whole-{world}")).items():
        assert (tensor - alone[name]).abs().max() <= 1e-4 * alone[name].abs().max(), name


@pytest.mark.parametrize(("interrupted", "whole"), [("stopped-2", "whole-2"), ("cut-3", "whole-3")])
def test_resumed_workers_end_bit_for_bit_as_uninterrupted_ones(found, interrupted, whole):
    """Three workers: how their gradients are rounded depends on DDP's buckets."""
    _, bench = found
    assert bench.weights(interrupted) == bench.weights(whole)


def test_a_stop_asked_of_one_rank_stops_all(found):
    by_world, _ = found
    assert [rank["stopped"] for rank in by_world[2]] == [
        ("stopped", "another worker was asked to stop", 1),
        ("stopped", "asked", 1),
    ]
