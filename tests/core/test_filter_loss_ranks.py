"""Several workers, played by threads that meet at a barrier, against one worker on all images."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from fakes.ranks import on_ranks
from torch import Tensor

from ipcnn_ray.core.filter_loss import filter_loss, filter_weight
from ipcnn_ray.core.templates import log_prior, template_bank


def maps(dtype: torch.dtype, scale: float) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    x_NCHW = torch.randn(8, 4, 6, 6, generator=generator, dtype=torch.float64).relu() * scale
    return (x_NCHW * torch.arange(1, 9)[:, None, None, None] / 8).to(dtype)


@pytest.mark.parametrize("world", [2, 4, 8])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("scale", [1.0, 300.0, 1e5])
def test_ranks_equal_one_worker_in_loss_and_gradient(world, dtype, near, scale):
    x_NCHW = maps(dtype, scale)
    bank_Tnn = template_bank(6, shape="gradient", norm="l2", beta=2.0, dtype=dtype)
    log_prior_T = log_prior(6, dtype=dtype)

    def work(rank: int, gather: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        mine = x_NCHW.chunk(world)[rank].clone().requires_grad_()
        loss_C = filter_loss(mine, bank_Tnn, log_prior_T, gather=gather)
        loss_C.sum().backward()
        return loss_C.detach(), mine.grad

    whole = x_NCHW.clone().requires_grad_()
    loss_C = filter_loss(whole, bank_Tnn, log_prior_T)
    loss_C.sum().backward()
    results = on_ranks(world, work)
    for rank_loss_C, _ in results:
        assert torch.equal(rank_loss_C, results[0][0])
        torch.testing.assert_close(rank_loss_C, loss_C.detach(), rtol=20 * near, atol=near)
    together = torch.cat([gradient for _, gradient in results])
    torch.testing.assert_close(together, whole.grad, rtol=0, atol=near * float(whole.grad.abs().max()))


def test_only_numbers_of_filters_and_templates_cross_the_network():
    x_NCHW, bank_Tnn = maps(torch.float32, 1.0), template_bank(6, shape="gradient", norm="l1", beta=2.0)
    crossed: list[int] = []

    def gather(x: Tensor) -> Tensor:
        crossed.append(x.numel())
        return x.unsqueeze(0)

    filter_loss(x_NCHW, bank_Tnn, log_prior(6), gather=gather)
    assert crossed == [2 * 4 * 37, 4 * 37]


def test_local_losses_are_not_the_global_one():
    # The check above would pass with a gather that is never called, were the images of the ranks alike.
    x_NCHW, bank_Tnn = maps(torch.float64, 10.0), template_bank(6, shape="gradient", norm="l1", beta=2.0).double()
    prior = log_prior(6, dtype=torch.float64)
    whole = filter_loss(x_NCHW, bank_Tnn, prior)
    halves = torch.stack([filter_loss(half, bank_Tnn, prior) for half in x_NCHW.chunk(2)])
    assert bool(((halves.mean(0) - whole).abs() > 0.01 * whole.abs()).all())


def test_paper_schedule_is_taken_over_the_global_batch():
    x_NCHW = maps(torch.float64, 1.0)
    whole = filter_weight(x_NCHW, 0.3, 2, "paper")
    for lambda_C in on_ranks(2, lambda r, gather: filter_weight(x_NCHW.chunk(2)[r], 0.3, 2, "paper", gather=gather)):
        torch.testing.assert_close(lambda_C, whole, rtol=1e-12, atol=0)
