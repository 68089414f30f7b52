"""Part templates: the shapes that a filter's map is compared with.

Symbols (Zhang et al., CVPR 2018, section 3; part-template paper, section 4.2)
    n   side of a filter's square map, cells          P = n^2  positions, index = row * n + col
    mu  centre of a template, a cell (row, col)       T = P + 1 templates; the last is the negative one
    tau height, beta slope (inverse scale), gamma threshold of a uniform template

A positive template is tau times a unit template with values in [-1, 1], positive where activation counts as the part.
A shape is a function from `Offsets` and its own parameters to the unit templates, here or in another package. A shape
depends only on the offset [i, j] - mu: a template that extends over the edge of the map is cut off there.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ipcnn_ray.utils.registry import import_object


def default_tau(n: int) -> float:
    """Return Zhang et al.'s height of a template, 0.5 / n^2."""
    if n < 1:
        raise ValueError(f"n = {n}: a map has at least one cell")
    return 0.5 / n**2


def part_templates(
    n: int,
    *,
    shape: str,
    tau: float | None = None,
    widening: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
    **parameters: object,
) -> Tensor:
    """Return the positive templates T_mu of an n x n map, [P, n, n]: tau times the unit template of each cell.

    n: side of the map, cells. shape: name of a shape of this module, or the function of any shape as
    ``module:function``. tau: height; None is 0.5 / n^2. widening: factor on every length of the template. parameters:
    of the shape's function; None is the same as a parameter that is not given. A number can be a tensor [C], one value
    per filter. The result is then [C, P, n, n], and a gradient flows to the parameter if the shape has one (beta of a
    uniform template has none).

    Numbers are computed in float64 and rounded to `dtype` once; tensors in `dtype`.

    Source: part-template paper, sections 2 and 4.2 (gradient and uniform, norms l1 and l2); others ours.

    Raises ValueError for an unknown shape or parameter, a missing one, and one out of its range; IpcnnError if the
    function of another package cannot be imported.
    """
    height = default_tau(n) if tau is None else tau
    check_positive("tau", height)
    check_positive("widening", widening)
    function = _function(shape)
    known = dict(list(inspect.signature(function).parameters.items())[1:])
    given = {name: value for name, value in parameters.items() if value is not None}
    article = f"{'an' if function.__name__[0] in 'aeio' else 'a'} {function.__name__} template"
    for name, value in given.items():
        if name not in known:
            raise ValueError(f"{name} = {value}: {article} has no {name}; it has {', '.join(known)}")
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in given:
            raise ValueError(f"{name} = None: {article} needs {name}")
    per_filter = {
        name: value[:, None, None, None].to(dtype)
        for name, value in given.items()
        if isinstance(value, Tensor) and value.ndim == 1
    }
    offsets = Offsets.of(n, dtype if per_filter else torch.float64, device, widening)
    return (height * function(offsets, **(given | per_filter))).to(dtype)


def _function(shape: str) -> Callable[..., Tensor]:
    if ":" in shape:
        return import_object(shape)  # type: ignore[no-any-return]
    if shape not in SHAPES:
        raise ValueError(f"shape = {shape!r}: expected one of {', '.join(SHAPES)}")
    return SHAPES[shape]


def template_bank(n: int, *, tau: float | None = None, **options: Any) -> Tensor:
    """Return all templates of an n x n map, [T, n, n]: the positive ones by position, then the negative one.

    The negative template, of images without the object, is -tau in every cell. The arguments are those of
    `part_templates`; with a parameter per filter the result is [C, T, n, n].
    """
    positives = part_templates(n, tau=tau, **options)
    negative = torch.full_like(positives[..., :1, :, :], -(default_tau(n) if tau is None else tau))
    return torch.cat([positives, negative], dim=-3)


def log_prior(n: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None) -> Tensor:
    """Return log p(T), [T]. The positive templates share alpha = n^2 / (1 + n^2), so each of all T has 1 / T."""
    return torch.full((n * n + 1,), -math.log(1 + n * n), dtype=dtype, device=device)


Norm = Literal["l1", "l2", "linf", "lp"]
Number = float | Tensor


def check_positive(name: str, value: Number) -> None:
    """Raise ValueError unless a number, or every number of a tensor, is positive and finite."""
    if isinstance(value, Tensor):
        bad = value[~((value > 0) & value.isfinite())]
        if bad.numel():
            raise ValueError(f"{name} holds {bad[0].item()}: expected positive numbers")
    elif not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} = {value}: expected a positive number")


@dataclass(frozen=True)
class Offsets:
    """Offsets of every cell from every centre of an n x n map, divided by the widening of the template."""

    n: int
    """Side of the map, cells."""
    rows_Pnn: Tensor
    """di, cells; positive below the centre."""
    cols_Pnn: Tensor
    """dj, cells; positive to the right of the centre."""

    @classmethod
    def of(
        cls, n: int, dtype: torch.dtype = torch.float64, device: torch.device | None = None, widening: float = 1.0
    ) -> Offsets:
        """Return the offsets of a map of n x n cells. dtype, device: of the tensors, [P, n, n]. widening: divisor.

        Raises ValueError if n is less than 1.
        """
        if n < 1:
            raise ValueError(f"n = {n}: a map has at least one cell")
        axis = torch.arange(n, dtype=dtype, device=device)
        apart_nn = (axis[None, :] - axis[:, None]) / widening  # [mu, cell]
        rows = apart_nn[:, None, :, None].expand(n, n, n, n)  # [mu_row, mu_col, i, j]
        cols = apart_nn[None, :, None, :].expand(n, n, n, n)
        return cls(n, rows.reshape(n * n, n, n), cols.reshape(n * n, n, n))

    def distance(self, norm: Norm, p: float | None = None) -> Tensor:
        """Return the distance in cells of every cell [i, j] from every centre mu, [P, n, n].

        `l1`: |di| + |dj|; `l2`: Euclidean; `linf`: max(|di|, |dj|); `lp`: (|di|^p + |dj|^p)^(1/p). With p 1, 2 and
        infinity `lp` is l1, l2 and linf to the last bit; below 1 it gives stars with hollow sides (not a norm).
        Raises ValueError for another norm, or a p that does not belong to it.
        """
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
            check_positive("p", p)
            # Divided by the larger offset, so that no power overflows; the centre has none.
            large = torch.maximum(rows, cols)
            share = torch.minimum(rows, cols) / torch.where(large > 0, large, 1)
            return large * (1 + share.pow(p)).pow(1 / p)
        raise ValueError(f"norm = {norm!r}: expected 'l1', 'l2', 'linf' or 'lp'")


def gradient(offsets: Offsets, *, norm: Norm, beta: Number, p: float | None = None) -> Tensor:
    """max(1 - beta * d / n, -1): falls off with distance, crosses 0 at d = n / beta and is -1 from twice that on.

    norm: of d (diamond, disc, square, or between them by `p`). beta: slope, > 0, without unit.
    Source: Zhang et al., CVPR 2018 (l1, beta 4); part-template paper, sections 2 and 4.2 (l1, l2, beta 2); else ours.
    """
    check_positive("beta", beta)
    return (1 - beta * offsets.distance(norm, p) / offsets.n).clamp(min=-1)


def uniform(offsets: Offsets, *, norm: Norm, beta: Number, gamma: Number, p: float | None = None) -> Tensor:
    """1 where beta * d / n < gamma, else -1: flat inside a radius of n * gamma / beta cells (not included).

    norm: of d; `linf` makes a box. beta, gamma: > 0, without unit; only gamma / beta counts.
    Source: part-template paper, section 4.2 (l1 and l2, beta = gamma = 2); else ours.
    """
    check_positive("beta", beta)
    check_positive("gamma", gamma)
    scaled = beta * offsets.distance(norm, p) / offsets.n
    return torch.where(scaled < gamma, torch.ones_like(scaled), -torch.ones_like(scaled))


def released(offsets: Offsets, *, width: Number) -> Tensor:
    """max(1 - width * (|di| + |dj|) * 2 / (n - 1), -1): the gradient template of norm l1 in coordinates that run from
    -1 to 1 over the map, with beta = 2 * width * n / (n - 1).

    width: slope, > 0, without unit. In a map of one cell it is 1.
    Source: the authors' code (getMask.m, add_block_mask.m), which starts at width 2.
    """
    check_positive("width", width)
    return (1 - width * offsets.distance("l1") * 2 / max(offsets.n - 1, 1)).clamp(min=-1)


def gaussian(offsets: Offsets, *, sigma: Number) -> Tensor:
    """2 * exp(-d^2 / (2 (sigma n)^2)) - 1 with Euclidean d: a bell that crosses 0 at d = 1.177 sigma n.

    sigma: standard deviation, > 0, share of n. Tends to -1 outside without reaching it; its top is rounded, where
    that of a gradient template is a point. Source: ours.
    """
    check_positive("sigma", sigma)
    return 2 * torch.exp(-(offsets.rows_Pnn.square() + offsets.cols_Pnn.square()) / (2 * (sigma * offsets.n) ** 2)) - 1


def ellipse(offsets: Offsets, *, beta: Number, aspect: Number, angle: Number = 0.0) -> Tensor:
    """max(1 - beta * e / n, -1), e^2 = u^2 / aspect + v^2 * aspect, u and v the offset along and across the long axis.

    0 on an ellipse with half-axes n * sqrt(aspect) / beta and n / (beta * sqrt(aspect)) cells, whose area does not
    depend on aspect; aspect 1 is the gradient template of norm l2.

    beta: slope, > 0, without unit. aspect: long over short axis, > 0 (below 1 is 1 / aspect, turned by 90 degrees).
    angle: of the long axis, degrees; 0 along the columns, 90 along the rows, between them rising to the right as the
    map is drawn (row 0 on top). Source: ours.
    """
    check_positive("beta", beta)
    check_positive("aspect", aspect)
    turned = torch.deg2rad(torch.as_tensor(angle, dtype=offsets.rows_Pnn.dtype, device=offsets.rows_Pnn.device))
    cos, sin = turned.cos(), turned.sin()
    along = offsets.cols_Pnn * cos - offsets.rows_Pnn * sin
    across = offsets.cols_Pnn * sin + offsets.rows_Pnn * cos
    squared = along.square() / aspect + across.square() * aspect
    off = squared > 0  # at the centre itself the root has no slope
    apart = torch.where(off, torch.where(off, squared, 1).sqrt(), 0)
    return (1 - beta * apart / offsets.n).clamp(min=-1)


def ring(offsets: Offsets, *, radius: Number, width: Number) -> Tensor:
    """max(1 - 2 * |d - radius n| / (width n), -1) with Euclidean d: 1 on a circle about mu, 0 at both of its edges.

    radius: of the circle, > 0, share of n. width: between the edges, > 0, share of n; a ring narrower than a cell
    (width < 1 / n) breaks into single cells.

    The value is 1 on the circle and max(1 - 2 radius / width, -1) at mu: below 0 for width < 2 radius. The mask centres
    a template on the map's peak, so it erases an isolated peak and keeps its surroundings; the filter loss rewards maps
    that are active around an inactive cell. With width > 2 radius it is a disc with a dimple. Source: ours.
    """
    check_positive("radius", radius)
    check_positive("width", width)
    apart = ((offsets.rows_Pnn.square() + offsets.cols_Pnn.square()).sqrt() - radius * offsets.n).abs()
    return (1 - 2 * apart / (width * offsets.n)).clamp(min=-1)


def mask(offsets: Offsets, *, values: Sequence[Sequence[float]] | Tensor, extent: Number) -> Tensor:
    """A table of unit values [G, G] laid over the map, its middle on mu; linear in between, -1 one step outside.

    values: in [-1, 1], some above 0; the first row is on top. extent: side of the table, > 0, share of n: a cell of
    the table is extent * n / G cells of the map wide. A table that is coarser than the map is interpolated, a finer one
    sampled. Source: ours; the mean part mask of a dataset is one such table.
    """
    check_positive("extent", extent)
    table = torch.as_tensor(values, dtype=offsets.rows_Pnn.dtype, device=offsets.rows_Pnn.device)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.numel():
        raise ValueError(f"values has shape {tuple(table.shape)}: expected a square table")
    if not bool((table.abs() <= 1).all()) or not bool((table > 0).any()):
        raise ValueError(f"values from {table.min():g} to {table.max():g}: expected [-1, 1], some above 0")
    size = len(table)
    padded = torch.nn.functional.pad(table, (1, 1, 1, 1), value=-1.0)
    step = extent * offsets.n / size
    row, row_share = _between(offsets.rows_Pnn / step + (size + 1) / 2, size)
    col, col_share = _between(offsets.cols_Pnn / step + (size + 1) / 2, size)
    upper = padded[row, col] * (1 - col_share) + padded[row, col + 1] * col_share
    lower = padded[row + 1, col] * (1 - col_share) + padded[row + 1, col + 1] * col_share
    return upper * (1 - row_share) + lower * row_share


def _between(position: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return the index below a position in a padded table, and the position's share of the step to the next index."""
    inside = position.clamp(0, size + 1)
    below = inside.detach().floor().clamp(max=size)
    return below.long(), inside - below


SHAPES: dict[str, Callable[..., Tensor]] = {
    function.__name__: function for function in (gradient, uniform, released, gaussian, ellipse, ring, mask)
}
"""The shapes of this module by name."""
LEARNED = {"gradient": "beta", "ellipse": "beta"}
"""Shape -> its parameter that each filter can learn with the exact gradient of the filter loss."""
