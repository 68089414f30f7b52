"""Masks of interpretable layers, global pooling, and dropout that does not depend on the number of workers.

N images, C filters, n x n cells, P = n^2 positions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ipcnn_ray.core.mask import mask_maps, peak_NC
from ipcnn_ray.core.released import Centroids, centroids, linear_mask, masked, template_mask
from ipcnn_ray.core.templates import part_templates


class MaskOutput(NamedTuple):
    """Output of a mask layer for a batch of maps."""

    maps_NCHW: Tensor
    """The masked maps."""
    mask_NCHW: Tensor | None = None
    """The mask, values in [-1, 1]; only of masks at the centroid."""
    mu: Centroids | None = None
    """Centres of the mask; only with `mask_NCHW`."""


class _TemplateMask(nn.Module):
    """Holds `unit_Pnn`, the positive templates divided by tau."""

    unit_Pnn: Tensor

    def __init__(self, unit_Pnn: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit_Pnn", unit_Pnn, persistent=False)


class NoMask(nn.Module):
    """No mask: the maps pass as they are. The layer's templates are those of the filter loss alone."""

    def forward(self, x_NCHW: Tensor) -> MaskOutput:
        return MaskOutput(x_NCHW)


class PeakMask(_TemplateMask):
    """The paper's mask: the template centred on each map's peak."""

    def forward(self, x_NCHW: Tensor) -> MaskOutput:
        return MaskOutput(mask_maps(x_NCHW, self.unit_Pnn))


class LearnedBetaMask(nn.Module):
    """A gradient template centred on the peak, with a learned beta for each filter.

    distance_Pnn: distance of every cell from every centre, as a share of n. No gradient flows through a mask, so the
    filter loss sets the `grad` of `log_beta_C`.
    """

    distance_Pnn: Tensor

    def __init__(self, distance_Pnn: Tensor, filters: int, beta: float) -> None:
        super().__init__()
        self.register_buffer("distance_Pnn", distance_Pnn, persistent=False)
        self.log_beta_C = nn.Parameter(torch.full((filters,), math.log(beta)), requires_grad=False)

    def forward(self, x_NCHW: Tensor) -> MaskOutput:
        beta_C11 = self.log_beta_C.detach().exp()[:, None, None]
        mask_NCHW = (1 - beta_C11 * self.distance_Pnn[peak_NC(x_NCHW.detach())]).clamp(min=-1)
        return MaskOutput(torch.relu(x_NCHW * mask_NCHW))

    def units(self, log_beta_C: Tensor) -> Tensor:
        """Return each filter's positive templates divided by tau, [C, P, n, n], differentiable in `log_beta_C`."""
        return (1 - log_beta_C.exp()[:, None, None, None] * self.distance_Pnn).clamp(min=-1)

    def bank(self, log_beta_C: Tensor, negative_1nn: Tensor) -> Tensor:
        """Return each filter's templates, the negative one last, [C, T, n, n], differentiable in `log_beta_C`."""
        units_CPnn = self.units(log_beta_C)
        return torch.cat([-negative_1nn[0, 0, 0] * units_CPnn, negative_1nn.expand(len(units_CPnn), 1, -1, -1)], 1)


class CentroidMask(_TemplateMask):
    """A template of any shape, centred on the activation-weighted centroid as in the released code."""

    def mask(self, mu: Centroids) -> Tensor:
        """Return the mask with these centres, [N, C, n, n]."""
        return template_mask(mu, self.unit_Pnn)

    def forward(self, x_NCHW: Tensor) -> MaskOutput:
        return _apply_centroid_mask(x_NCHW, self.mask)


class ReleasedMask(nn.Module):
    """The released code's mask: centred on the centroid, with a learned width for each filter.

    No gradient flows through a mask; the filter loss sets the `grad` of `width_C`.
    """

    def __init__(self, filters: int, n: int, width: float) -> None:
        super().__init__()
        self.n = n
        self.width_C = nn.Parameter(torch.full((filters,), width), requires_grad=False)

    def mask(self, mu: Centroids) -> Tensor:
        """Return the mask with these centres, [N, C, n, n]."""
        return linear_mask(mu, self.width_C, self.n)

    def forward(self, x_NCHW: Tensor) -> MaskOutput:
        return _apply_centroid_mask(x_NCHW, self.mask)


def make_mask(
    n: int,
    filters: int,
    center: Literal["none", "peak", "centroid"],
    arguments: Mapping[str, Any],
    *,
    learned: str = "",
    widening: float = 1.0,
) -> nn.Module:
    """Return the mask of a layer of maps of n x n cells.

    Args:
        filters: Number C of maps; used by masks with a parameter for each filter.
        center: Where the template is centred; no mask with `none`.
        arguments: Of `core.templates.part_templates`, except n and tau.
        learned: Parameter of the shape that each filter learns, from the value in `arguments` on; empty for none.
            With a mask at the peak the shape must be max(1 - parameter * distance, -1); at the centroid it is that of
            the released code.
        widening: Factor on the lengths of the template.
    """
    if center == "none":
        return NoMask()
    if learned and center == "centroid":
        return ReleasedMask(filters, n, arguments[learned])
    if learned:
        # A slope of 1/2 gives every distance.
        distance_Pnn = 2 * (1 - part_templates(n, **{**arguments, learned: 0.5}, tau=1.0))
        return LearnedBetaMask(distance_Pnn, filters, arguments[learned])
    unit_Pnn = part_templates(n, **arguments, tau=1.0, widening=widening)
    return CentroidMask(unit_Pnn) if center == "centroid" else PeakMask(unit_Pnn)


def _apply_centroid_mask(x_NCHW: Tensor, mask: Callable[[Centroids], Tensor]) -> MaskOutput:
    """Mask the maps in float32; the result has the dtype of the maps."""
    with torch.autocast(x_NCHW.device.type, enabled=False):
        mu = centroids(x_NCHW.detach().float())
        mask_NCHW = mask(mu)
        return MaskOutput(masked(x_NCHW, mask_NCHW).to(x_NCHW.dtype), mask_NCHW, mu)


class GlobalPool(nn.Module):
    """Average or maximum of each map: [N, C, H, W] -> [N, C]. Cells that share the maximum share its gradient, so that
    the gradient is deterministic on a GPU."""

    def __init__(self, kind: Literal["average_pool", "max_pool"]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x_NCHW: Tensor) -> Tensor:
        return x_NCHW.mean((2, 3)) if self.kind == "average_pool" else x_NCHW.amax((2, 3))

    def extra_repr(self) -> str:
        return self.kind


class SampleDropout(nn.Module):
    """Dropout whose mask is drawn for the whole global batch of a step, of which each worker takes its rows.

    The mask depends on (seed, epoch, step, name, row of the global batch) alone, neither on the world size nor on
    torch's global generators, so a resumed run draws the masks of an uninterrupted one.

    Args:
        p: Share of units dropped; the others are divided by 1 - p.
        name: Distinguishes the dropout layers of a network.

    Raises:
        RuntimeError: If training continues without `set_step`.
        ValueError: If the rows do not fit the batch.

    Deviations: the mask is drawn on the device of the activations; a CPU and a GPU draw different ones from one seed.
    """

    def __init__(self, p: float, name: str) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p = {p}: expected 0 <= p < 1")
        self.p = p
        self.name = name
        self._seed: int | None = None
        self._rows = (0, 0)
        self._like: tuple[torch.Size, torch.device] | None = None
        self._ahead: Tensor | None = None

    def set_step(self, seed: int, epoch: int, step: int, first_row: int, rows_total: int) -> None:
        """Set the next step, and this worker's first row in its global batch of `rows_total` images."""
        text = f"dropout {seed} {epoch} {step} {self.name}".encode()
        self._seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
        self._rows = (first_row, rows_total)
        if self._ahead is not None:
            self._draw(self._ahead)

    def draw_ahead(self, ahead: bool) -> None:
        """Draw in `set_step`, into memory that stays where it is, and no longer in `forward`; or the other way again.

        A CUDA graph repeats the kernels of a `forward` with the seed that they had. The numbers are the same. Their
        shape is that of the last `forward`, and those of the current step are drawn at once.
        """
        self._ahead = None
        if ahead and self._like is not None:
            shape, device = self._like
            self._ahead = self._draw(torch.empty(shape, device=device))

    def _draw(self, out: Tensor) -> Tensor:
        assert self._seed is not None
        return out.uniform_(generator=torch.Generator(out.device).manual_seed(self._seed))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self._seed is None:
            raise RuntimeError(f"dropout of {self.name}: call set_step before every training step")
        first, total = self._rows
        if not 0 <= first <= total - len(x):
            raise ValueError(f"rows {first} to {first + len(x)} are outside a global batch of {total} images")
        drawn = self._ahead
        if drawn is None:
            drawn = self._draw(torch.empty(total, *x.shape[1:], device=x.device))
            self._like = drawn.shape, drawn.device
        keep = drawn[first : first + len(x)] >= self.p
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
