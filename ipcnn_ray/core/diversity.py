"""Diversity losses: how much the filters of a layer overlap in an image.

Symbols
    N images, C filters, P cells, A filters of an image whose map is not zero everywhere ("live")
    x  map after ReLU, before the mask     p  x^q over its sum, q a power of at least 1

Both losses are of one image, so their sum over the images of all workers needs no exchange of maps. They do not depend
on the scale of a map, and a map that is zero everywhere is left out. Each is differentiated in closed form.

A map after a ReLU is broad: with power 1 its peak is a small share of it. The larger the power, the more only the peaks
of the maps count.

With more filters than cells some overlap cannot be avoided: of C filters that each fire in one cell, spread evenly over
P cells, the share (C - P) / (P (C - 1)) of all pairs share their cell.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def overlap(x_NCHW: Tensor, *, power: float = 1.0) -> Tensor:
    """Return the mean over pairs of live filters of the sum over cells of p_i * p_k, [N]; 0 with fewer than two.

    1 if all filters fire in one and the same cell, 1 / P for maps that are constant, 0 if no two maps meet in a cell.
    Computed in O(C P) as ((sum_i p_i)^2 - sum_i p_i^2) / (A (A - 1)), summed over cells.

    x_NCHW: maps after ReLU, float32 or float64. power: q.
    Source: ours, a smooth form of `largest_overlap`.
    """
    return _Overlap.apply(_sharpened(x_NCHW, power))  # type: ignore[no-any-return]


def largest_overlap(x_NCHW: Tensor, margin: float, *, power: float = 1.0) -> Tensor:
    """Return the mean over live filters i of the sum over cells of p_i * max(max_{k != i} p_k - margin, 0), [N]; 0 with
    fewer than two.

    From 0 to 1 - margin. A filter is pushed off the cells where some other filter has more than the margin of its map,
    however many others are elsewhere.

    x_NCHW: maps after ReLU, float32 or float64. margin: share of a map, from 0 to 1. power: q. Among equal maxima
    the first filter counts.
    Source: Zheng et al., Learning multi-attention convolutional neural network, ICCV 2017: the term Div of its channel
    grouping loss, which keeps the attention maps of parts apart, with a margin against noise.
    Deviations: attention maps there are between 0 and 1 by a sigmoid, here maps are divided by their sum. The
    difference to the margin may be negative there; here it would add the same number for all maps, and is 0. The sum
    over filters there is a mean here, so that a weight fits any number of filters.
    """
    if not 0 <= margin <= 1:
        raise ValueError(f"margin = {margin}: expected 0 to 1")
    return _LargestOverlap.apply(_sharpened(x_NCHW, power), margin)  # type: ignore[no-any-return]


def _sharpened(x_NCHW: Tensor, power: float) -> Tensor:
    """x^q, divided by its maximum first, which changes neither p nor its gradient and keeps it from overflowing."""
    if x_NCHW.ndim != 4 or x_NCHW.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"x_NCHW is {x_NCHW.dtype} of shape {tuple(x_NCHW.shape)}: expected float32 or float64 [N, C, H, W]"
        )
    if not power >= 1:
        raise ValueError(f"power = {power}: expected at least 1")
    if power == 1:
        return x_NCHW
    largest_NC11 = x_NCHW.detach().flatten(2).amax(2)[:, :, None, None]
    return (x_NCHW * _inverse(largest_NC11)).pow(power)


def _inverse(x: Tensor) -> Tensor:
    """1 / x, and 0 where x is 0."""
    return torch.where(x > 0, 1 / x, 0)


class _Overlap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor) -> Tensor:
        x_NCP = x_NCHW.flatten(2)
        sum_NC = x_NCP.sum(2)
        inverse_NC = _inverse(sum_NC)
        live_N = (sum_NC > 0).sum(1)
        p_NCP = x_NCP * inverse_NC[:, :, None]
        # The others' share of a cell, and its mean over the filter's own map: how far the filter lies on the others.
        others_NCP = p_NCP.sum(1, keepdim=True) - p_NCP
        on_others_NC = (p_NCP * others_NCP).sum(2)
        per_pair_N = _inverse((live_N * (live_N - 1)).to(x_NCHW.dtype))
        if ctx.needs_input_grad[0]:
            slope_NCP = others_NCP.sub_(on_others_NC[:, :, None]).mul_(inverse_NC[:, :, None])
            ctx.save_for_backward(slope_NCP.mul_(2 * per_pair_N[:, None, None]).view(x_NCHW.shape))
        return on_others_NC.sum(1) * per_pair_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> Tensor:
        (slope_NCHW,) = ctx.saved_tensors
        return slope_NCHW * grad_N[:, None, None, None]  # type: ignore[no-any-return]


class _LargestOverlap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NCHW: Tensor, margin: float) -> Tensor:
        x_NCP = x_NCHW.flatten(2)
        C = x_NCP.shape[1]
        sum_NC = x_NCP.sum(2)
        inverse_NC = _inverse(sum_NC)
        live_N = (sum_NC > 0).sum(1)
        p_NCP = x_NCP * inverse_NC[:, :, None]
        first_N1P, owner_N1P = p_NCP.max(1, keepdim=True)
        second_N1P, runner_N1P = first_N1P, owner_N1P
        if C > 1:
            second_N1P, runner_N1P = p_NCP.scatter(1, owner_N1P, -1).max(1, keepdim=True)
        # The largest of the others is the second one for the strongest filter of a cell, the first for all others.
        above_N1P, above_second_N1P = ((largest - margin).clamp(min=0) for largest in (first_N1P, second_N1P))
        above_NCP = above_N1P.repeat(1, C, 1).scatter_(1, owner_N1P, above_second_N1P)
        per_filter_N = torch.where(live_N > 1, _inverse(live_N.to(x_NCHW.dtype)), 0)
        if ctx.needs_input_grad[0]:
            slope_NCP = above_NCP.clone()
            slope_NCP.scatter_add_(1, owner_N1P, (p_NCP.sum(1, keepdim=True) - first_N1P) * (above_N1P > 0))
            slope_NCP.scatter_add_(1, runner_N1P, first_N1P * (above_second_N1P > 0))
            slope_NCP.sub_((slope_NCP * p_NCP).sum(2, keepdim=True)).mul_(inverse_NC[:, :, None])
            ctx.save_for_backward(slope_NCP.mul_(per_filter_N[:, None, None]).view(x_NCHW.shape))
        return (p_NCP * above_NCP).sum((1, 2)) * per_filter_N

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor, None]:
        (slope_NCHW,) = ctx.saved_tensors
        return slope_NCHW * grad_N[:, None, None, None], None
