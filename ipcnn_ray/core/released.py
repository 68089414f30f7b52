"""The interpretable layer of the authors' released code, which differs from the paper.

Symbols (our_vl_simplenn.m, getMu.m, getMask.m, add_block_mask.m of zqs1022/interpretableCNN)
    N images of this worker, C filters, n x n cells, W workers with N images each, B = W * N
    x      map after ReLU                         mu     activation-weighted centroid, a cell
    w      width of a filter's mask ("beta" there is 2 * w * n / (n - 1) in the paper's units)
    m      mask, values in [-1, 1]; 1 everywhere for a filter that is not interpretable
    s      strength, mean over cells of x * m     a = 0.5, temperature

The released code has no loss value: it adds a gradient to the one from the layers above. All sums over the batch are
over the global batch. Exponentials are relative to the largest one, so that nothing overflows; the released code
overflows, in single precision at s of about 44, and repairs infinite entries afterwards.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ipcnn_ray.core.filter_loss import Gather, gather_single, mean_over

TEMPERATURE = 0.5
SCALE = 1e-5
WIDTH_RANGE = (1.5, 3.0)
"""Range of the width that a filter is pulled to."""
WIDTH_PULL = 1e4
SPREAD = 3.0
"""Target of the learned width times the spread of the activations, cells."""


class Centroids(NamedTuple):
    """Centroid and spread of each map's activation."""

    row_NC: Tensor
    """Row of mu, a cell, int64."""
    col_NC: Tensor
    """Column of mu, a cell, int64."""
    sigma_NC: Tensor
    """Root of the activation-weighted mean squared distance to mu, cells."""


def centroids(x_NCHW: Tensor) -> Centroids:
    """Return the activation-weighted centroids, rounded to a cell; a half rounds up.

    A map that is zero everywhere has its centroid in cell (0, 0) and sigma 0, one that holds NaN in cell (0, 0), too.
    Source: getMu.m (there 1-based, at least 1; sums below 1e-9 count as 1e-9).
    """
    if x_NCHW.ndim != 4 or x_NCHW.shape[2] != x_NCHW.shape[3]:
        raise ValueError(f"x_NCHW has shape {tuple(x_NCHW.shape)}: expected [N, C, n, n]")
    n = x_NCHW.shape[2]
    axis_n = torch.arange(1, n + 1, dtype=x_NCHW.dtype, device=x_NCHW.device)
    middle_n = axis_n - (n + 1) / 2
    row_P, col_P = axis_n.repeat_interleave(n), axis_n.repeat(n)
    away_P = middle_n.square().repeat_interleave(n) + middle_n.square().repeat(n)
    moments_P4 = torch.stack([torch.ones_like(row_P), row_P, col_P, away_P], 1)
    # One pass over the maps. The second moment is about the middle of the map, where it loses the fewest digits.
    sum_NC, row_NC, col_NC, away_NC = (x_NCHW.flatten(2) @ moments_P4).unbind(2)
    weight_NC = sum_NC.clamp(min=1e-9)
    mu_row_NC = (row_NC / weight_NC + 0.5).floor().nan_to_num(1).clamp(1, n)
    mu_col_NC = (col_NC / weight_NC + 0.5).floor().nan_to_num(1).clamp(1, n)
    middle = (n + 1) / 2
    to_row_NC, to_col_NC = mu_row_NC - middle, mu_col_NC - middle
    across_NC = to_row_NC * (row_NC - middle * sum_NC) + to_col_NC * (col_NC - middle * sum_NC)
    second_NC = away_NC - 2 * across_NC + (to_row_NC.square() + to_col_NC.square()) * sum_NC
    sigma_NC = (second_NC / weight_NC).clamp(min=0).sqrt()
    return Centroids(mu_row_NC.long() - 1, mu_col_NC.long() - 1, sigma_NC)


def linear_mask(mu: Centroids, width_C: Tensor, n: int, on_C: Tensor | None = None) -> Tensor:
    """Return m = max(1 - w * (|row - mu_row| + |col - mu_col|), -1), [N, C, n, n], in coordinates from -1 to 1.

    on_C: whether a filter is interpretable; the mask of one that is not is 1. The gradient flows into `width_C` only.
    Source: getMask.m. In a map of one cell both coordinates are 1, and the mask is 1.
    """
    axis_n = torch.linspace(-1, 1, n, dtype=torch.float64, device=width_C.device).to(width_C.dtype)
    apart_nn = (axis_n[:, None] - axis_n[None, :]).abs()  # [mu, cell]
    width_C1 = width_C[:, None]
    mask_NCHW = (1 - width_C1 * apart_nn[mu.row_NC])[:, :, :, None] - (width_C1 * apart_nn[mu.col_NC])[:, :, None, :]
    mask_NCHW = mask_NCHW.clamp(min=-1)
    return mask_NCHW if on_C is None else torch.where(on_C[:, None, None], mask_NCHW, 1.0)


def template_mask(mu: Centroids, unit_Pnn: Tensor, on_C: Tensor | None = None) -> Tensor:
    """Return the template of any shape, divided by tau, centred on the centroid, [N, C, n, n].

    on_C: as in `linear_mask`.
    Source: ours; the released code with another shape instead of getMask.m, as the part-template paper needs it.
    """
    mask_NCHW = unit_Pnn[mu.row_NC * unit_Pnn.shape[-1] + mu.col_NC]
    return mask_NCHW if on_C is None else torch.where(on_C[:, None, None], mask_NCHW, 1.0)


def masked(x_NCHW: Tensor, mask_NCHW: Tensor) -> Tensor:
    """Return x * max(m, 0): for x >= 0 the same as max(x * m, 0), but with gradient max(m, 0) also where x is 0.

    Source: our_vl_simplenn.m, whose backward pass multiplies by max(mask, 0). No gradient flows through m.
    """
    return x_NCHW * mask_NCHW.detach().clamp(min=0)


class Groups(NamedTuple):
    """The positive images of each filter, and the weights of the images."""

    positive_BC: Tensor
    """Whether an image is of the filter's category, bool; [B, 1] for all filters alike."""
    positive_weight_C: Tensor
    """Weight of the positive images' gradient; [1] for all filters alike."""
    negative_weight_C: Tensor
    group_C: Tensor
    """Category of a filter: an entry that cannot be computed is replaced by the largest one of the same category."""


def groups(class_B: Tensor, filters: int, magnitude_CL: Tensor | None, density_L: Tensor) -> Groups:
    """Return the positive images of each filter, and the weights.

    class_B: category of each image of the global batch, from 0; -1 for none. filters: number C. density_L: share of
    all items that are of each category. magnitude_CL: the last `updated_magnitude`, None before the first.
    With one category, and before the first magnitudes, every image of any category is positive for every filter, with
    weight 1. Otherwise a filter's category is the one with the largest magnitude (the first among equals), and the
    weights balance its density: 0.5 / density and 0.5 / (1 - density), with density 1 / L for more than ten categories.
    Source: our_vl_simplenn.m (Div, w_pos, w_neg), our_cnn_train.m (density).
    """
    categories = len(density_L)
    if categories == 1 or magnitude_CL is None:
        one_1 = torch.ones(1, dtype=torch.float64, device=class_B.device)
        group_C = torch.zeros(filters, dtype=torch.long, device=class_B.device)
        return Groups((class_B >= 0)[:, None], one_1, one_1, group_C)
    group_C = magnitude_CL.argmax(1)
    if categories > 10:
        density_L = torch.full_like(density_L, 1 / categories, dtype=torch.float64)
    density_C = density_L.double()[group_C]
    return Groups(class_B[:, None] == group_C, 0.5 / density_C, 0.5 / (1 - density_C), group_C)


def updated_magnitude(magnitude_CL: Tensor | None, peak_BC: Tensor, class_B: Tensor, categories: int) -> Tensor:
    """Return the moving average that determines a filter's category, after one more batch, [C, L] float64.

    peak_BC: maximum of each map. class_B: category of each image, -1 for none. For each category in the batch: the
    mean maximum over its images, at least 0.1, if the average is 0 so far; else 0.9 of the average plus 0.1 of the
    mean. A filter whose mean is exactly 0 takes the average of the first category instead.
    Source: our_cnn_train.m (sliceMag). The last rule looks like a slip of indexing there; it is kept.
    """
    C = peak_BC.shape[1]
    start_CL = torch.zeros(C, categories, dtype=torch.float64, device=peak_BC.device)
    updated_CL = start_CL if magnitude_CL is None else magnitude_CL.clone()
    for category in range(categories):
        shown_B, before_C = class_B == category, updated_CL[:, category].clone()
        mean_C = mean_over(peak_BC, shown_B, select=not peak_BC.is_cuda)
        later_C = 0.9 * before_C + 0.1 * torch.where(mean_C == 0, updated_CL[:, 0], mean_C)
        after_C = torch.where(before_C.sum() == 0, mean_C.clamp(min=0.1), later_C)
        updated_CL[:, category] = torch.where(shown_B.any(), after_C, before_C)
    return updated_CL


class Strengths(NamedTuple):
    """Strengths of the maps of all workers, B = W * N images in rank order, float64."""

    template_BC: Tensor
    """s: mean over cells of x * m."""
    mean_BC: Tensor
    """Mean over cells of x."""
    alogz_positive_C: Tensor
    """a * log of the batch mean of exp(s' / a). s' is of mismatched pairs: image b and filter c with the mask of image
    B - 1 - b and filter C - 1 - c, as in the released code."""
    alogz_negative_C: Tensor
    """a * log of the batch mean of exp(-mean / a)."""


def strengths(x_NCHW: Tensor, mask_NCHW: Tensor, partner_NCHW: Tensor, *, gather: Gather | None = None) -> Strengths:
    """Return the strengths over the global batch.

    partner_NCHW: the mask of the worker that holds the images B - 1 - b: worker W - 1 - rank, itself if it is the only
    one.
    Source: our_vl_simplenn.m (strength, alpha_logZ_pos, alpha_logZ_neg).
    """
    x_NCHW = x_NCHW.detach()
    pairs_NC = (x_NCHW * partner_NCHW.flip(0, 1)).mean((2, 3))
    own_NC, mean_NC = (x_NCHW * mask_NCHW.detach()).mean((2, 3)), x_NCHW.mean((2, 3))
    all_W3NC = (gather or gather_single)(torch.stack([own_NC, mean_NC, pairs_NC])).double()
    own_BC, mean_BC, pairs_BC = (part.flatten(0, 1) for part in all_W3NC.unbind(1))
    return Strengths(own_BC, mean_BC, _alog_mean_exp(pairs_BC), _alog_mean_exp(-mean_BC))


def _alog_mean_exp(s_BC: Tensor) -> Tensor:
    return TEMPERATURE * ((s_BC / TEMPERATURE).logsumexp(0) - math.log(len(s_BC)))


def released_gradient(
    mask_NCHW: Tensor, strength: Strengths, group: Groups, weight: float, *, first: int = 0, on_C: Tensor | None = None
) -> Tensor:
    """Return what the released code adds to the gradient of the summed loss at x, [N, C, n, n].

    Positive images: -m * (u / mean of u) * 1e-5 * weight * positive weight, u = exp(s / a) * (s - aLogZ + a), the mean
    over the positive images; negative images, with s = -mean of x: +(u / mean of u) * 1e-5 * weight * negative weight
    in every cell. Divide by the number of images of the global batch for a loss that is a mean over images.
    weight: magnitude / epoch (released: 0.1 / epoch). first: this worker's first image in the global batch.
    An entry 0 / 0 is 0, any other division by 0 the largest entry of its category's filters.
    Source: our_vl_simplenn.m.
    """
    N = len(mask_NCHW)
    positive_BC = group.positive_BC.expand_as(strength.template_BC)
    inside_BC = _relative(strength.template_BC, strength.alogz_positive_C, positive_BC, group.group_C)
    outside_BC = _relative(-strength.mean_BC, strength.alogz_negative_C, ~positive_BC, group.group_C)
    inside_BC, outside_BC = inside_BC * group.positive_weight_C, outside_BC * group.negative_weight_C
    if on_C is not None:
        inside_BC, outside_BC = inside_BC * on_C, outside_BC * on_C
    both_2NC11 = torch.stack([-inside_BC, outside_BC])[:, first : first + N, :, None, None] * (SCALE * weight)
    inside_NC11, outside_NC11 = both_2NC11.to(mask_NCHW.dtype)
    return torch.addcmul(outside_NC11, mask_NCHW.detach(), inside_NC11)


def _relative(s_BC: Tensor, alogz_C: Tensor, of_BC: Tensor, group_C: Tensor) -> Tensor:
    """u over its mean, both over the images `of_BC`; 0 for the others."""
    count_C = of_BC.sum(0)
    top_C = torch.where(of_BC, s_BC, -math.inf).amax(0).nan_to_num(neginf=0.0)
    u_BC = torch.where(of_BC, ((s_BC - top_C) / TEMPERATURE).exp() * (s_BC - alogz_C + TEMPERATURE), 0.0)
    relative_BC = torch.where(of_BC, u_BC / (u_BC.sum(0) / count_C), 0.0)
    return _with_largest_for_infinite(torch.where(relative_BC.isnan(), 0.0, relative_BC), of_BC, group_C)


def _with_largest_for_infinite(relative_BC: Tensor, of_BC: Tensor, group_C: Tensor) -> Tensor:
    """Replace infinite entries by the largest finite one of the images `of_BC` and filters of the same group; 0 if
    there is none. No condition depends on the numbers, for which the CPU would have to wait for a GPU."""
    infinite_BC = relative_BC.isinf()
    largest_C = torch.where(of_BC & ~infinite_BC, relative_BC, -math.inf).amax(0)
    largest_G = torch.full_like(largest_C, -math.inf).scatter_reduce(0, group_C, largest_C, "amax")
    largest_G = torch.where(largest_G.isinf(), 0.0, largest_G)
    return torch.where(infinite_BC, largest_G[group_C], relative_BC)


def width_gradient(
    width_C: Tensor, sigma_BC: Tensor, strength: Strengths, group: Groups, on_C: Tensor | None = None
) -> Tensor:
    """Return the gradient of the summed loss at each filter's width, [C]: -1e4 * (target - width).

    target: 3 / sigma_bar, clipped to [1.5, 3]; sigma_bar: mean of sigma over the filter's positive images, weighted by
    their strengths. Where this is 0 / 0 (no positive image, a dead filter) the target is 3. Only the target is clipped.
    0 where `on_C` is false. Divide by the number of images of the global batch for a mean over images.
    Source: our_vl_simplenn.m (dzdw{3}).
    """
    strength_BC = torch.where(group.positive_BC, strength.template_BC, 0.0)
    target_C = SPREAD / ((strength_BC * sigma_BC.double()).sum(0) / strength_BC.sum(0))
    target_C = torch.where(target_C.isnan(), WIDTH_RANGE[1], target_C).clamp(*WIDTH_RANGE)
    pull_C = -WIDTH_PULL * (target_C - width_C.detach().double())
    return (pull_C if on_C is None else pull_C * on_C).to(width_C.dtype)
