"""The layer and the metrics with torch.distributed: two processes take the step of one, and measure the same."""

from __future__ import annotations

import pytest
import torch
from fakes import layer_worker
from torch import multiprocessing

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def ranks(tmp_path_factory, fork_server):
    folder = tmp_path_factory.mktemp("ranks")
    multiprocessing.start_processes(layer_worker.worker, (str(folder),), nprocs=2, start_method="forkserver")
    return [torch.load(folder / f"rank{rank}.pt") for rank in range(2)]


@pytest.fixture(scope="module")
def alone():
    return layer_worker.steps()


@pytest.mark.parametrize("name", layer_worker.STEPS)
def test_averaged_gradients_are_those_of_the_global_loss(ranks, alone, name):
    for rank in ranks:
        found, expected = rank["steps"][name], alone[name]
        assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=1e-4, abs=1e-9)
        for key, gradient in expected["gradients"].items():
            assert (found["gradients"][key] - gradient).abs().max() <= 1e-5 * gradient.abs().max(), key
        for key, value in expected["state"].items():
            torch.testing.assert_close(found["state"][key], value)


def test_every_layer_moves_the_gradients(alone):
    """The test above would pass without any filter loss."""
    gradients = {name: step["gradients"]["conv.weight"] for name, step in alone.items()}
    names = list(gradients)
    for i, name in enumerate(names):
        for other in names[:i]:
            assert not torch.allclose(gradients[name], gradients[other], rtol=1e-3), (name, other)
    assert float(alone["learned"]["gradients"]["layer.mask.log_beta_C"].abs().max()) > 0


def test_metrics_are_those_of_one_process(ranks):
    """Also with images that the sampler repeats, equal activations, and shuffles that depend on the order."""
    alone = layer_worker.metrics()
    assert len(alone) == len(layer_worker.METRICS) > 20
    assert all(result.per_filter_C.isfinite().any() for result in alone.values())
    for rank in ranks:
        for name, result in alone.items():
            expected_C, found_C = result.per_filter_C, rank["metrics"][name]
            torch.testing.assert_close(found_C, expected_C, rtol=1e-12, atol=0, equal_nan=True, msg=name)


def test_networks_of_their_own(ranks):
    """Without `sync`, processes that train different networks do not wait for each other."""
    for rank, found in enumerate(ranks):
        layer = layer_worker.InterpretableLayer(n=6, **layer_worker.L2)
        generator = torch.Generator().manual_seed(rank)
        maps_NCHW = torch.rand(4, 5, 6, 6, generator=generator, requires_grad=True)
        loss = layer.filter_loss(maps_NCHW=maps_NCHW)
        assert torch.equal(found["own"][0], loss.detach())
        assert torch.equal(found["own"][1], *torch.autograd.grad(loss, maps_NCHW))
    assert not torch.equal(ranks[0]["own"][0], ranks[1]["own"][0])


def test_ranks_with_different_numbers_of_images_are_refused(ranks):
    for rank in ranks:
        assert rank["unequal"] == (
            "the ranks have batches of [2, 3] images: expected the same number on all. "
            "Drop the last batch of an epoch (drop_last=True), or pad it"
        )
