"""Part templates: the shapes that a filter's map is compared with.

Symbols (Zhang et al., CVPR 2018, section 3; part-template paper, section 4.2)
    n   side of a filter's square map, cells          P = n^2  positions, index = row * n + col
    mu  centre of a template, a cell (row, col)       T = P + 1 templates; the last is the negative one
    tau height, beta slope (inverse scale), gamma threshold of a uniform template

A positive template is tau times a unit template with values in [-1, 1], positive where activation counts as the part.
A shape is one function in `core/template_shapes.py`, registered under its name; nothing else needs to know of it.
Every shape depends on the offset [i, j] - mu alone: a template that reaches over the edge of the map is cut off there.
"""

from __future__ import annotations

import inspect
import math

import torch
from torch import Tensor

from ipcnn_ray.core.template_shapes import SHAPES, Norm, Offsets, positive

__all__ = ["Norm", "default_tau", "distances", "log_prior", "negative_template", "part_templates", "template_bank"]


def distances(
    n: int,
    norm: Norm,
    *,
    p: float | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | None = None,
) -> Tensor:
    """Distance in cells of every cell [i, j] from every centre mu, as [P, n, n].

    `l1`: |di| + |dj|; `l2`: Euclidean; `linf`: max(|di|, |dj|); `lp`: (|di|^p + |dj|^p)^(1/p).
    """
    return Offsets.of(n, dtype, device).distance(norm, p)


def default_tau(n: int) -> float:
    """Zhang et al.'s height of a template: 0.5 / n^2."""
    if n < 1:
        raise ValueError(f"n = {n}: a map has at least one cell")
    return 0.5 / n**2


def part_templates(
    n: int,
    *,
    shape: str,
    tau: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    **parameters: object,
) -> Tensor:
    """The positive templates T_mu of an n x n map, one per cell, as [P, n, n]: tau times the unit template of `shape`.

    shape: a name in `SHAPES`; its function says the formula and the `parameters`, None standing for one that is not
    given. `tau` None is 0.5 / n^2.

    A parameter that is a number may be a tensor [C], one value per filter: the result is [C, P, n, n] then, and a
    gradient flows to the parameter wherever the shape has one (beta of a uniform template has none). Numbers are
    computed in float64 and rounded to `dtype` once; tensors in `dtype`.

    Source: part-template paper, sections 2 and 4.2 (gradient and uniform, norms l1 and l2); others ours.
    Raises ValueError for an unknown shape or parameter, a missing one, and one out of its range.
    """
    height = default_tau(n) if tau is None else tau
    positive("tau", height)
    if shape not in SHAPES:
        raise ValueError(f"shape = {shape!r}: expected one of {', '.join(SHAPES)}")
    known = dict(list(inspect.signature(SHAPES[shape]).parameters.items())[1:])
    given = {name: value for name, value in parameters.items() if value is not None}
    article = "an" if shape[0] in "aeio" else "a"
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name} = {value}: {article} {shape} template has no {name}; it has {', '.join(known)}")
    for name, one in known.items():
        if one.default is one.empty and name not in given:
            raise ValueError(f"{name} = None: {article} {shape} template needs {name}")
    per_filter = {
        name: value[:, None, None, None].to(dtype)
        for name, value in given.items()
        if isinstance(value, Tensor) and value.ndim == 1
    }
    at = Offsets.of(n, dtype if per_filter else torch.float64, device)
    return (height * SHAPES[shape](at, **(given | per_filter))).to(dtype)


def negative_template(
    n: int, tau: float | None = None, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
) -> Tensor:
    """The template of images without the object: -tau in every cell, as [n, n]."""
    return torch.full((n, n), -(default_tau(n) if tau is None else tau), dtype=dtype, device=device)


def template_bank(
    n: int,
    *,
    shape: str,
    tau: float | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    **parameters: object,
) -> Tensor:
    """All templates of an n x n map as [T, n, n]: the positive ones by position, then the negative one.

    Arguments as of `part_templates`; with a parameter per filter the result is [C, T, n, n].
    """
    positives = part_templates(n, shape=shape, tau=tau, dtype=dtype, device=device, **parameters)
    negative = negative_template(n, tau, dtype=dtype, device=device).expand(*positives.shape[:-3], 1, n, n)
    return torch.cat([positives, negative], dim=-3)


def log_prior(n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """log p(T) as [T]: alpha = n^2 / (1 + n^2) over the positive templates, so each of all T has 1 / T."""
    return torch.full((n * n + 1,), -math.log(1 + n * n), dtype=dtype, device=device)
