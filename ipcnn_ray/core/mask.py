"""The mask of an interpretable layer: each map is multiplied by the template centred on its peak."""

from __future__ import annotations

import torch
from torch import Tensor


def peak_NC(x_NCHW: Tensor) -> Tensor:
    """Return the index row * n + col of each map's maximum, [N, C] int64; the first in row-major order among equals."""
    return x_NCHW.flatten(2).argmax(2)


def mask_maps(x_NCHW: Tensor, unit_Pnn: Tensor) -> Tensor:
    """Return max(x * T_mu, 0) with mu the peak of each map, [N, C, n, n]. The gradient flows through x only.

    unit_Pnn: positive templates divided by tau, values in [-1, 1].

    Source: Zhang et al., CVPR 2018, section 3.1.
    Deviations: the paper prints the template with tau; its 0.5 / n^2 would scale the maps to nothing, and the
    released code multiplies by values in [-1, 1], as here. mu is the arg-max (paper), not the centroid (released).
    """
    n = unit_Pnn.shape[-1]
    if x_NCHW.ndim != 4 or x_NCHW.shape[-2:] != (n, n):
        raise ValueError(f"x_NCHW has shape {tuple(x_NCHW.shape)}: expected [N, C, {n}, {n}], as the templates")
    mask_NCHW = unit_Pnn[peak_NC(x_NCHW.detach())]
    return torch.relu(x_NCHW * mask_NCHW)
