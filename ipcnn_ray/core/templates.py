"""Part templates: the shapes that a filter's map is compared with.

Symbols (Zhang et al., CVPR 2018, section 3; part-template paper, section 4.2)
    n   side of a filter's square map, cells          P = n^2  positions, index = row * n + col
    mu  centre of a template, a cell (row, col)       T = P + 1 templates; the last is the negative one
    tau height, beta slope (inverse scale), gamma threshold of a uniform template
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Shape = Literal["gradient", "uniform"]
Norm = Literal["l1", "l2"]


def distances(n: int, norm: Norm, *, dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Tensor:
    """Distance in cells of every cell [i, j] from every centre mu, as [P, n, n]. `l1`: |di| + |dj|; `l2`: Euclidean."""
    if n < 1:
        raise ValueError(f"n = {n}: a map has at least one cell")
    axis = torch.arange(n, dtype=dtype, device=device)
    apart_nn = (axis[:, None] - axis[None, :]).abs()
    rows, cols = apart_nn[:, None, :, None], apart_nn[None, :, None, :]  # [mu_row, mu_col, i, j]
    if norm == "l1":
        apart = rows + cols
    elif norm == "l2":
        apart = (rows.square() + cols.square()).sqrt()
    else:
        raise ValueError(f"norm = {norm!r}: expected 'l1' or 'l2'")
    return apart.reshape(n * n, n, n)


def default_tau(n: int) -> float:
    """Zhang et al.'s height of a template: 0.5 / n^2."""
    if n < 1:
        raise ValueError(f"n = {n}: a map has at least one cell")
    return 0.5 / n**2


def part_templates(
    n: int,
    *,
    shape: Shape,
    norm: Norm,
    beta: float,
    gamma: float | None = None,
    tau: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """The positive templates T_mu of an n x n map, one per cell, as [P, n, n].

    gradient: tau * max(1 - beta * d / n, -1);  uniform: tau where beta * d / n < gamma, else -tau,
    with d the distance to mu in cells. `tau` None is 0.5 / n^2.

    Source: part-template paper, sections 2 and 4.2 (L1, uniform L1, L2, uniform L2).
    """
    height = default_tau(n) if tau is None else tau
    for name, value in (("beta", beta), ("tau", height)):
        if not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name} = {value}: expected a positive number")
    scaled = beta * distances(n, norm, device=device) / n
    if shape == "gradient":
        if gamma is not None:
            raise ValueError(f"gamma = {gamma}: a gradient template has no threshold")
        unit = (1 - scaled).clamp(min=-1)
    elif shape == "uniform":
        if gamma is None or not (gamma > 0 and math.isfinite(gamma)):
            raise ValueError(f"gamma = {gamma}: a uniform template needs a positive threshold")
        unit = torch.where(scaled < gamma, torch.ones_like(scaled), -torch.ones_like(scaled))
    else:
        raise ValueError(f"shape = {shape!r}: expected 'gradient' or 'uniform'")
    return (height * unit).to(dtype)


def negative_template(
    n: int, tau: float | None = None, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """The template of images without the object: -tau in every cell, as [n, n]."""
    return torch.full((n, n), -(default_tau(n) if tau is None else tau), dtype=dtype, device=device)


def template_bank(
    n: int,
    *,
    shape: Shape,
    norm: Norm,
    beta: float,
    gamma: float | None = None,
    tau: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Tensor:
    """All templates of an n x n map as [T, n, n]: the positive ones by position, then the negative one."""
    positive = part_templates(n, shape=shape, norm=norm, beta=beta, gamma=gamma, tau=tau, dtype=dtype, device=device)
    return torch.cat([positive, negative_template(n, tau, dtype=dtype, device=device)[None]])


def log_prior(n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """log p(T) as [T]: alpha = n^2 / (1 + n^2) over the positive templates, so each of all T has 1 / T."""
    return torch.full((n * n + 1,), -math.log(1 + n * n), dtype=dtype, device=device)
