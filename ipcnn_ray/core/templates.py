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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

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


Norm = Literal["l1", "l2", "linf", "lp"]
Number = float | Tensor
SHAPES: dict[str, Callable[..., Tensor]] = {}
"""Name of a shape -> its function."""


def shape(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Registers a shape under its function's name."""
    if function.__name__ in SHAPES:
        raise ValueError(f"shape {function.__name__!r} is there already")
    SHAPES[function.__name__] = function
    return function


def positive(name: str, value: Number) -> None:
    """Raises ValueError unless a number, or every number of a tensor, is positive and finite."""
    if isinstance(value, Tensor):
        bad = value[~((value > 0) & value.isfinite())]
        if bad.numel():
            raise ValueError(f"{name} holds {bad[0].item()}: expected positive numbers")
    elif not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} = {value}: expected a positive number")


@dataclass(frozen=True)
class Offsets:
    """Where every cell lies from every centre."""

    n: int
    rows_Pnn: Tensor
    """di, cells; positive below the centre."""
    cols_Pnn: Tensor
    """dj, cells; positive to the right of the centre."""

    @classmethod
    def of(cls, n: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None) -> Offsets:
        if n < 1:
            raise ValueError(f"n = {n}: a map has at least one cell")
        axis = torch.arange(n, dtype=dtype, device=device)
        apart_nn = axis[None, :] - axis[:, None]  # [mu, cell]
        rows = apart_nn[:, None, :, None].expand(n, n, n, n)  # [mu_row, mu_col, i, j]
        cols = apart_nn[None, :, None, :].expand(n, n, n, n)
        return cls(n, rows.reshape(n * n, n, n), cols.reshape(n * n, n, n))

    def distance(self, norm: Norm, p: float | None = None) -> Tensor:
        """Distance in cells from the centre. `p` belongs to the norm `lp`; p = 1, 2 and infinity are l1, l2, linf
        to the last bit, and p below 1 gives stars with hollow sides (not a norm any more)."""
        if isinstance(p, Tensor):
            raise ValueError("p is a tensor: all filters share one exponent, a number")
        if (p is None) == (norm == "lp"):
            raise ValueError(f"norm = {norm!r} with p = {p}: p belongs to norm 'lp', which needs it")
        rows, cols = self.rows_Pnn.abs(), self.cols_Pnn.abs()
        if norm == "l1" or p == 1:
            return rows + cols
        if norm == "l2" or p == 2:
            return (rows.square() + cols.square()).sqrt()
        if norm == "linf" or p == math.inf:
            return torch.maximum(rows, cols)
        if norm == "lp" and p is not None:
            positive("p", p)
            # Over the larger offset, so that no power overflows; the centre has none.
            large = torch.maximum(rows, cols)
            share = torch.minimum(rows, cols) / large.clamp(min=1)
            return large * (1 + share.pow(p)).pow(1 / p)
        raise ValueError(f"norm = {norm!r}: expected 'l1', 'l2', 'linf' or 'lp'")


@shape
def gradient(at: Offsets, *, norm: Norm, beta: Number, p: float | None = None) -> Tensor:
    """max(1 - beta * d / n, -1): falls off with distance, crosses 0 at d = n / beta and is -1 from twice that on.

    norm: of d (diamond, disc, square, or between them by `p`). beta: slope, > 0, without unit.
    Source: Zhang et al., CVPR 2018 (l1, beta 4); part-template paper, sections 2 and 4.2 (l1, l2, beta 2); else ours.
    """
    positive("beta", beta)
    return (1 - beta * at.distance(norm, p) / at.n).clamp(min=-1)


@shape
def uniform(at: Offsets, *, norm: Norm, beta: Number, gamma: Number, p: float | None = None) -> Tensor:
    """1 where beta * d / n < gamma, else -1: flat inside a radius of n * gamma / beta cells (not included).

    norm: of d; `linf` makes a box. beta, gamma: > 0, without unit; only gamma / beta counts.
    Source: part-template paper, section 4.2 (l1 and l2, beta = gamma = 2); else ours.
    """
    positive("beta", beta)
    positive("gamma", gamma)
    scaled = beta * at.distance(norm, p) / at.n
    return torch.where(scaled < gamma, torch.ones_like(scaled), -torch.ones_like(scaled))


@shape
def released(at: Offsets, *, width: Number) -> Tensor:
    """max(1 - width * (|di| + |dj|) * 2 / (n - 1), -1): the gradient template of norm l1 in coordinates that run from
    -1 to 1 over the map, with beta = 2 * width * n / (n - 1).

    width: slope, > 0, without unit. In a map of one cell it is 1.
    Source: the authors' code (getMask.m, add_block_mask.m), which starts at width 2.
    """
    positive("width", width)
    return (1 - width * at.distance("l1") * 2 / max(at.n - 1, 1)).clamp(min=-1)


@shape
def gaussian(at: Offsets, *, sigma: Number) -> Tensor:
    """2 * exp(-d^2 / (2 (sigma n)^2)) - 1 with Euclidean d: a bell that crosses 0 at d = 1.177 sigma n.

    sigma: standard deviation, > 0, share of n. Tends to -1 outside without reaching it; its top is rounded, where
    that of a gradient template is a point. Source: ours.
    """
    positive("sigma", sigma)
    return 2 * torch.exp(-(at.rows_Pnn.square() + at.cols_Pnn.square()) / (2 * (sigma * at.n) ** 2)) - 1


@shape
def ellipse(at: Offsets, *, beta: Number, aspect: Number, angle: Number = 0.0) -> Tensor:
    """max(1 - beta * e / n, -1), e^2 = u^2 / aspect + v^2 * aspect, u and v the offset along and across the long axis.

    0 on an ellipse with half-axes n * sqrt(aspect) / beta and n / (beta * sqrt(aspect)) cells, whose area does not
    depend on aspect; aspect 1 is the gradient template of norm l2.

    beta: slope, > 0, without unit. aspect: long over short axis, > 0 (below 1 is 1 / aspect, turned by 90 degrees).
    angle: of the long axis, degrees; 0 along the columns, 90 along the rows, between them rising to the right as the
    map is drawn (row 0 on top). Source: ours.
    """
    positive("beta", beta)
    positive("aspect", aspect)
    turned = torch.deg2rad(torch.as_tensor(angle, dtype=at.rows_Pnn.dtype, device=at.rows_Pnn.device))
    cos, sin = turned.cos(), turned.sin()
    along = at.cols_Pnn * cos - at.rows_Pnn * sin
    across = at.cols_Pnn * sin + at.rows_Pnn * cos
    squared = along.square() / aspect + across.square() * aspect
    off = squared > 0  # at the centre itself the root has no slope
    apart = torch.where(off, torch.where(off, squared, 1).sqrt(), 0)
    return (1 - beta * apart / at.n).clamp(min=-1)


@shape
def ring(at: Offsets, *, radius: Number, width: Number) -> Tensor:
    """max(1 - 2 * |d - radius n| / (width n), -1) with Euclidean d: 1 on a circle about mu, 0 at both of its edges.

    radius: of the circle, > 0, share of n. width: between the edges, > 0, share of n; a ring narrower than a cell
    (width < 1 / n) breaks into single cells.

    The circle's value is 1, that of mu itself max(1 - 2 radius / width, -1): below 0 for width < 2 radius. The mask
    centres a template on the map's peak, so a peak that stands alone erases itself and only what lies around it goes
    on; the filter loss rewards maps that light up around a blank place. With width > 2 radius it is a disc with a
    dimple. Source: ours.
    """
    positive("radius", radius)
    positive("width", width)
    apart = ((at.rows_Pnn.square() + at.cols_Pnn.square()).sqrt() - radius * at.n).abs()
    return (1 - 2 * apart / (width * at.n)).clamp(min=-1)


@shape
def mask(at: Offsets, *, values: Sequence[Sequence[float]] | Tensor, extent: Number) -> Tensor:
    """A table of unit values [G, G] laid over the map, its middle on mu; linear in between, -1 one step outside.

    values: in [-1, 1], some above 0; the first row lies on top. extent: side of the table, > 0, share of n: a cell of
    the table is extent * n / G cells of the map wide. A table that is coarser than the map is interpolated, a finer one
    sampled. Source: ours; the mean part mask of a dataset is one such table.
    """
    positive("extent", extent)
    table = torch.as_tensor(values, dtype=at.rows_Pnn.dtype, device=at.rows_Pnn.device)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.numel():
        raise ValueError(f"values has shape {tuple(table.shape)}: expected a square table")
    if not bool((table.abs() <= 1).all()) or not bool((table > 0).any()):
        raise ValueError(f"values from {table.min():g} to {table.max():g}: expected [-1, 1], some above 0")
    size = len(table)
    padded = torch.nn.functional.pad(table, (1, 1, 1, 1), value=-1.0)
    step = extent * at.n / size
    row, row_share = _between(at.rows_Pnn / step + (size + 1) / 2, size)
    col, col_share = _between(at.cols_Pnn / step + (size + 1) / 2, size)
    upper = padded[row, col] * (1 - col_share) + padded[row, col + 1] * col_share
    lower = padded[row + 1, col] * (1 - col_share) + padded[row + 1, col + 1] * col_share
    return upper * (1 - row_share) + lower * row_share


def _between(place: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Index below a place in a padded table, and how far the place is towards the next one, from 0 to 1."""
    inside = place.clamp(0, size + 1)
    below = inside.detach().floor().clamp(max=size)
    return below.long(), inside - below
