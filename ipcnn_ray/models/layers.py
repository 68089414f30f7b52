"""The masks of interpretable layers: from a map after ReLU to the map that goes on.

N images, C filters, n x n cells, P = n^2 positions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ipcnn_ray.core.mask import mask_maps, peak_NC
from ipcnn_ray.core.released import Centroids, centroids, linear_mask, masked, template_mask


class Masked(NamedTuple):
    """What a mask makes of a batch of maps."""

    maps_NCHW: Tensor
    """The masked maps."""
    mask_NCHW: Tensor | None = None
    """The mask, values in [-1, 1], where the released filter loss needs it."""
    mu: Centroids | None = None
    """Its centres, likewise."""


class PeakMask(nn.Module):
    """The paper's: the template centred on each map's peak. unit_Pnn: positive templates divided by tau."""

    unit_Pnn: Tensor

    def __init__(self, unit_Pnn: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit_Pnn", unit_Pnn, persistent=False)

    def forward(self, x_NCHW: Tensor) -> Masked:
        return Masked(mask_maps(x_NCHW, self.unit_Pnn))


class LearnedBetaMask(nn.Module):
    """A gradient template centred on the peak, with a beta of its own for each filter, learned from the filter loss.

    away_Pnn: distance of every cell from every centre, as a share of n. `log_beta_C` is not changed by the gradient
    that flows through the network, as no gradient flows through a mask; whoever trains sets its `grad`.
    """

    away_Pnn: Tensor

    def __init__(self, away_Pnn: Tensor, filters: int, beta: float) -> None:
        super().__init__()
        self.register_buffer("away_Pnn", away_Pnn, persistent=False)
        self.log_beta_C = nn.Parameter(torch.full((filters,), math.log(beta)), requires_grad=False)

    def forward(self, x_NCHW: Tensor) -> Masked:
        beta_C11 = self.log_beta_C.exp()[:, None, None]
        mask_NCHW = (1 - beta_C11 * self.away_Pnn[peak_NC(x_NCHW.detach())]).clamp(min=-1)
        return Masked(torch.relu(x_NCHW * mask_NCHW))

    def units(self, log_beta_C: Tensor) -> Tensor:
        """Positive templates divided by tau of every filter, [C, P, n, n], differentiable in `log_beta_C`."""
        return (1 - log_beta_C.exp()[:, None, None, None] * self.away_Pnn).clamp(min=-1)


class CentroidMask(nn.Module):
    """The released code's centre, the activation-weighted centroid, with a template of any shape."""

    unit_Pnn: Tensor

    def __init__(self, unit_Pnn: Tensor) -> None:
        super().__init__()
        self.register_buffer("unit_Pnn", unit_Pnn, persistent=False)

    def mask(self, mu: Centroids) -> Tensor:
        """The mask with these centres, [N, C, n, n]."""
        return template_mask(mu, self.unit_Pnn)

    def forward(self, x_NCHW: Tensor) -> Masked:
        return _about_centroids(x_NCHW, self.mask)


class ReleasedMask(nn.Module):
    """The released code's mask: centroid, and a width of its own for each filter.

    `width_C` is not changed by the gradient that flows through the network; whoever trains sets its `grad`.
    """

    def __init__(self, filters: int, n: int, width: float) -> None:
        super().__init__()
        self.n = n
        self.width_C = nn.Parameter(torch.full((filters,), width), requires_grad=False)

    def mask(self, mu: Centroids) -> Tensor:
        """The mask with these centres, [N, C, n, n]."""
        return linear_mask(mu, self.width_C, self.n)

    def forward(self, x_NCHW: Tensor) -> Masked:
        return _about_centroids(x_NCHW, self.mask)


def _about_centroids(x_NCHW: Tensor, mask: Callable[[Centroids], Tensor]) -> Masked:
    """In float32 whatever the maps are; the masked maps are what they are."""
    with torch.autocast(x_NCHW.device.type, enabled=False):
        mu = centroids(x_NCHW.detach().float())
        mask_NCHW = mask(mu)
        return Masked(masked(x_NCHW, mask_NCHW).to(x_NCHW.dtype), mask_NCHW, mu)


class SampleDropout(nn.Module):
    """Dropout whose mask for a training step is drawn for the whole global batch; a worker takes its own rows.

    p: share of units dropped; the others are divided by 1 - p. `name`: sets the layers of a network apart.
    The mask depends on (seed, epoch, step, name, row of the global batch) and on nothing else: neither on the
    world size nor on torch's global generators, so a resumed run draws what the uninterrupted one would have.

    Errors: RuntimeError when training goes on without `set_step`; ValueError when the rows do not fit the batch.
    Deviations: torch draws on the device of the activations, and CPUs and GPUs draw different masks from one seed.
    """

    def __init__(self, p: float, name: str) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p = {p}: expected 0 <= p < 1")
        self.p = p
        self.name = name
        self._seed: int | None = None
        self._rows = (0, 0)

    def set_step(self, seed: int, epoch: int, step: int, first_row: int, rows_total: int) -> None:
        """Names the step that comes next, and this worker's first row in its global batch of `rows_total` images."""
        text = f"dropout {seed} {epoch} {step} {self.name}".encode()
        self._seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
        self._rows = (first_row, rows_total)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self._seed is None:
            raise RuntimeError(f"dropout of {self.name}: call set_step before every training step")
        first, total = self._rows
        if not 0 <= first <= total - len(x):
            raise ValueError(f"rows {first} to {first + len(x)} are outside a global batch of {total} images")
        generator = torch.Generator(x.device).manual_seed(self._seed)
        drawn = torch.rand((total, *x.shape[1:]), generator=generator, device=x.device)
        keep = drawn[first : first + len(x)] >= self.p
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
