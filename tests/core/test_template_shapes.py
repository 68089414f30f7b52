"""Every shape against its formula in plain Python, at the map sides of the networks and at the edges of the map."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch

from ipcnn_ray.core.templates import SHAPES, Offsets, part_templates, template_bank
from ipcnn_ray.errors import IpcnnError

CROSS = [[-1, 0.5, -1], [0.5, 1, 0.5], [-1, 0.5, -1]]


def norm_of(name: str, p: float | None = None) -> Callable[[int, int], float]:
    if p is not None:
        return lambda i, j: (abs(i) ** p + abs(j) ** p) ** (1 / p)
    return {"l1": lambda i, j: abs(i) + abs(j), "l2": math.hypot, "linf": lambda i, j: max(abs(i), abs(j))}[name]


def by_hand(n: int, shape: str, **given: Any) -> Callable[[int, int], float]:
    """The value of a unit template at an offset, as the docstring prints it."""
    if shape in ("gradient", "uniform"):
        d = norm_of(given["norm"], given.get("p"))
        if shape == "gradient":
            return lambda i, j: max(1 - given["beta"] * d(i, j) / n, -1)
        return lambda i, j: 1 if given["beta"] * d(i, j) / n < given["gamma"] else -1
    if shape == "released":
        return lambda i, j: max(1 - given["width"] * (abs(i) + abs(j)) * 2 / max(n - 1, 1), -1)
    if shape == "gaussian":
        return lambda i, j: 2 * math.exp(-(i * i + j * j) / (2 * (given["sigma"] * n) ** 2)) - 1
    if shape == "ring":
        wide, far = given["width"] * n, given["radius"] * n
        return lambda i, j: max(1 - 2 * abs(math.hypot(i, j) - far) / wide, -1)
    if shape == "ellipse":

        def value(i: int, j: int) -> float:
            angle = math.radians(given["angle"])
            along = j * math.cos(angle) - i * math.sin(angle)
            across = j * math.sin(angle) + i * math.cos(angle)
            return max(1 - given["beta"] * math.sqrt(along**2 / given["aspect"] + across**2 * given["aspect"]) / n, -1)

        return value
    table, step = given["values"], given["extent"] * n / len(given["values"])

    def looked_up(i: int, j: int) -> float:
        """The sum over cells of the table of its height above -1 times a tent of one step's width."""
        middle = (len(table) - 1) / 2
        total = 0.0
        for r, row in enumerate(table):
            for c, height in enumerate(row):
                tent = max(0, 1 - abs(i / step - (r - middle))) * max(0, 1 - abs(j / step - (c - middle)))
                total += (height + 1) * tent
        return total - 1

    return looked_up


GIVEN = {
    "l1": {"shape": "gradient", "norm": "l1", "beta": 2.0},
    "l2": {"shape": "gradient", "norm": "l2", "beta": 4.0},
    "pyramid": {"shape": "gradient", "norm": "linf", "beta": 3.0},
    "l3": {"shape": "gradient", "norm": "lp", "p": 3.0, "beta": 2.5},
    "star": {"shape": "gradient", "norm": "lp", "p": 0.5, "beta": 2.0},
    "disc": {"shape": "uniform", "norm": "l2", "beta": 2.0, "gamma": 0.7},
    "box": {"shape": "uniform", "norm": "linf", "beta": 2.0, "gamma": 0.5},
    "squircle": {"shape": "uniform", "norm": "lp", "p": 4.0, "beta": 2.0, "gamma": 0.7},
    "released": {"shape": "released", "width": 1.7},
    "gaussian": {"shape": "gaussian", "sigma": 0.25},
    "lying": {"shape": "ellipse", "beta": 3.0, "aspect": 2.0, "angle": 0.0},
    "slanted": {"shape": "ellipse", "beta": 3.0, "aspect": 3.0, "angle": 30.0},
    "ring": {"shape": "ring", "radius": 0.3, "width": 0.25},
    "dimple": {"shape": "ring", "radius": 0.1, "width": 0.5},
    "cross": {"shape": "mask", "values": CROSS, "extent": 0.5},
    "even": {"shape": "mask", "values": [[1.0, 0.0], [0.25, -0.5]], "extent": 0.8},
}
each_shape = pytest.mark.parametrize("given", GIVEN.values(), ids=GIVEN)


def test_every_shape_is_here():
    assert {given["shape"] for given in GIVEN.values()} == set(SHAPES)


@each_shape
@pytest.mark.parametrize("n", [1, 6, 13, 14, 16])
def test_equals_the_printed_formula_and_is_cut_at_the_edge(given, n):
    """Every centre of a small map, and the corners, edges and middle of a large one."""
    value, around = by_hand(n, **given), range(-(n - 1), n)
    table = torch.tensor([[value(i, j) for j in around] for i in around], dtype=torch.float64)
    unit = part_templates(n, **given, tau=1.0, dtype=torch.float64)
    assert unit.shape == (n * n, n, n)
    some = {(0, 0), (n // 2, n - 1), (n // 2, n // 2), (n - 1, n // 3)}
    for row, col in product(range(n), repeat=2) if n <= 6 else some:
        cut = table[n - 1 - row : 2 * n - 1 - row, n - 1 - col : 2 * n - 1 - col]
        torch.testing.assert_close(unit[row * n + col], cut, rtol=0, atol=1e-12)
    torch.testing.assert_close(part_templates(n, **given, tau=0.3, dtype=torch.float64), 0.3 * unit)
    assert float(unit.max()) <= 1 and float(unit.min()) >= -1


@each_shape
@pytest.mark.parametrize("widening", [1.7, 8.0])
def test_a_widened_template_has_all_its_lengths_times_the_factor(given, widening):
    n, value = 7, by_hand(7, **given)
    unit = part_templates(n, **given, tau=1.0, widening=widening, dtype=torch.float64)
    for (row, col), (i, j) in product(product(range(n), repeat=2), repeat=2):
        wanted = value((i - row) / widening, (j - col) / widening)
        assert float(unit[row * n + col, i, j]) == pytest.approx(wanted, abs=1e-12)


@each_shape
@pytest.mark.parametrize("n", [6, 13, 14, 16])
def test_a_template_is_positive_near_its_centre_and_negative_far_from_it(given, n):
    unit = part_templates(n, **given, tau=1.0)
    assert all(bool((one > 0).any()) for one in unit), "a mask that erases every map"
    if given["shape"] != "ring" and given is not GIVEN["even"]:
        centres = torch.arange(n * n)
        assert bool((unit.flatten(1)[centres, centres] == 1).all())
    if given not in (GIVEN["l1"], GIVEN["pyramid"]):
        assert float(unit[0, -1, -1]) == pytest.approx(-1, abs=0.01)
    assert float(unit[0, -1, -1]) < 0


def test_one_cell():
    ones = {name: float(part_templates(1, **given, tau=1.0)) for name, given in GIVEN.items()}
    # The ring's only cell is its middle: 1 - 2 * 0.3 / 0.25 is below -1; 1 - 2 * 0.1 / 0.5 = 0.6. The middle of an
    # even table is the mean of its four values.
    assert ones.pop("ring") == -1
    assert ones.pop("dimple") == pytest.approx(0.6)
    assert ones.pop("even") == pytest.approx(0.1875)
    assert set(ones.values()) == {1.0}


@pytest.mark.parametrize("n", [1, 6, 13, 14, 16])
def test_p_of_1_2_and_infinity_are_the_named_norms_to_the_last_bit(n):
    distance = Offsets.of(n).distance
    for p, norm in ((1, "l1"), (2, "l2"), (2.0, "l2"), (math.inf, "linf")):
        assert torch.equal(distance("lp", p=p), distance(norm))
        for given in ({"shape": "gradient"}, {"shape": "uniform", "gamma": 0.7}):
            named = template_bank(n, **given, norm=norm, beta=1.7)
            assert torch.equal(template_bank(n, **given, norm="lp", p=p, beta=1.7), named)
    near = distance("lp", p=1 + 1e-9), distance("lp", p=2 + 1e-9), distance("lp", p=1e4)
    for found, norm in zip(near, ("l1", "l2", "linf"), strict=True):
        torch.testing.assert_close(found, distance(norm), rtol=1e-3, atol=0)


def test_a_tiny_p_is_finite_only_along_the_axes():
    far = Offsets.of(3).distance("lp", p=1e-4)[4]
    assert far.tolist() == [[math.inf, 1, math.inf], [1, 0, 1], [math.inf, 1, math.inf]]
    assert part_templates(3, shape="gradient", norm="lp", p=1e-4, beta=1.5, tau=1.0)[4, 0].tolist() == [-1, 0.5, -1]


@pytest.mark.parametrize("n", [1, 2, 6, 13, 14, 16])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_the_papers_templates_are_what_they_were_to_the_last_bit(n, norm):
    """The lines that computed them before there were other shapes."""
    axis = torch.arange(n, dtype=torch.float64)
    apart = (axis[:, None] - axis[None, :]).abs()
    rows, cols = apart[:, None, :, None], apart[None, :, None, :]
    far = (rows + cols if norm == "l1" else (rows.square() + cols.square()).sqrt()).reshape(n * n, n, n)
    for beta, gamma, tau in ((2.0, 2.0, None), (4.0, 0.5, 1.0), (1.7, 0.3, 0.02)):
        scaled, height = beta * far / n, 0.5 / n**2 if tau is None else tau
        gradient = (height * (1 - scaled).clamp(min=-1)).float()
        flat = (height * torch.where(scaled < gamma, torch.ones_like(scaled), -torch.ones_like(scaled))).float()
        given = {"norm": norm, "beta": beta, "tau": tau}
        assert torch.equal(part_templates(n, shape="gradient", **given), gradient)
        assert torch.equal(part_templates(n, shape="uniform", gamma=gamma, **given), flat)


def test_an_ellipse_of_aspect_1_is_the_l2_gradient_and_half_turns_swap_its_axes():
    given = {"shape": "ellipse", "beta": 2.5, "tau": 1.0, "dtype": torch.float64}
    round_one = part_templates(7, shape="gradient", norm="l2", beta=2.5, tau=1.0, dtype=torch.float64)
    assert torch.equal(part_templates(7, aspect=1.0, angle=0.0, **given), round_one)
    torch.testing.assert_close(part_templates(7, aspect=1.0, angle=50.0, **given), round_one, rtol=0, atol=1e-12)
    upright = part_templates(7, aspect=3.0, angle=90.0, **given)
    lying = part_templates(7, aspect=3.0, angle=0.0, **given)
    swapped = lying.reshape(7, 7, 7, 7).permute(1, 0, 3, 2).reshape(49, 7, 7)
    torch.testing.assert_close(upright, swapped, rtol=0, atol=1e-12)
    torch.testing.assert_close(part_templates(7, aspect=1 / 3, angle=0.0, **given), upright, rtol=0, atol=1e-12)


def test_an_ellipse_crosses_zero_at_its_half_axes():
    # n = 12, beta 2, aspect 4: 12 * 2 / 2 = 12 cells along and 12 / (2 * 2) = 3 across; a diagonal rises to the right.
    unit = part_templates(12, shape="ellipse", beta=2.0, aspect=4.0, angle=0.0, tau=1.0, dtype=torch.float64)
    assert float(unit[0, 3, 0]) == pytest.approx(0)
    assert float(unit[0, 0, 6]) == pytest.approx(0.5)
    slanted = part_templates(12, shape="ellipse", beta=2.0, aspect=4.0, angle=45.0, tau=1.0)[6 * 12 + 6]
    assert float(slanted[4, 8]) > float(slanted[4, 4]) + 0.5


def test_the_bell_crosses_zero_where_its_docstring_says():
    assert by_hand(10, "gaussian", sigma=0.3)(0, 1.1774100225 * 0.3 * 10) == pytest.approx(0, abs=1e-9)


def test_the_mask_of_a_thin_ring_erases_the_peak():
    unit = part_templates(16, shape="ring", radius=0.25, width=0.25, tau=1.0)[8 * 16 + 8]
    assert float(unit[8, 8]) == -1
    assert float(unit[8, 12]) == 1 and float(unit[4, 8]) == 1


def test_a_tensor_of_betas_gives_a_bank_per_filter():
    beta = torch.tensor([1.0, 2.0, 4.5])
    for given in ({"shape": "gradient", "norm": "l1"}, {"shape": "ellipse", "aspect": 2.0, "angle": 20.0}):
        banks = template_bank(5, beta=beta, **given)
        assert banks.shape == (3, 26, 5, 5) and banks.dtype == torch.float32
        for one, value in zip(banks, beta, strict=True):
            torch.testing.assert_close(one, template_bank(5, beta=float(value), **given), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    ("given", "name", "values"),
    [
        ({"shape": "gradient", "norm": "l1"}, "beta", [1.1, 2.3]),
        ({"shape": "gradient", "norm": "lp", "p": 3.0}, "beta", [1.1, 2.3]),
        ({"shape": "gaussian"}, "sigma", [0.2, 0.5]),
        ({"shape": "ellipse", "beta": 1.3, "aspect": 1.7}, "angle", [13.0, 61.0]),
        ({"shape": "ellipse", "beta": 1.3, "angle": 10.0}, "aspect", [1.7, 3.1]),
        ({"shape": "ring", "width": 0.93}, "radius", [0.21, 0.37]),
        ({"shape": "mask", "values": CROSS}, "extent", [0.57, 1.13]),
    ],
)
def test_gradients_reach_parameters_per_filter(given, name, values):
    def templates(values_C: torch.Tensor) -> torch.Tensor:
        return part_templates(4, **given, **{name: values_C}, tau=1.0, dtype=torch.float64)

    assert torch.autograd.gradcheck(templates, torch.tensor(values, dtype=torch.float64, requires_grad=True))


def test_the_slope_of_a_gradient_template_in_beta_is_its_distance():
    beta = torch.tensor([1.5], dtype=torch.float64, requires_grad=True)
    templates = part_templates(3, shape="gradient", norm="l1", beta=beta, tau=2.0, dtype=torch.float64)
    templates[0, 0, 0, 1].backward()  # 2 * (1 - 1.5 * 1 / 3), so -2 / 3 by beta
    assert beta.grad is not None
    assert beta.grad.tolist() == pytest.approx([-2 / 3])


def plus(offsets: Offsets, *, arm: float) -> torch.Tensor:
    on = (offsets.rows_Pnn == 0) | (offsets.cols_Pnn == 0)
    return torch.where(on & (offsets.distance("l1") <= arm), 1.0, -1.0)


def test_a_shape_of_another_module_is_named_by_its_function():
    unit = part_templates(3, shape=f"{__name__}:plus", arm=1, tau=1.0)[4]
    assert unit.tolist() == [[-1, 1, -1], [1, 1, 1], [-1, 1, -1]]
    for missing, reason in (("nowhere:plus", "No module named 'nowhere'"), (f"{__name__}:minus", "minus")):
        with pytest.raises(IpcnnError, match=f"{missing} cannot be imported: .*{reason}"):
            part_templates(3, shape=missing)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"shape": "gaussian", "sigma": 0.0}, r"sigma = 0\.0: expected a positive number"),
        ({"shape": "gaussian"}, r"sigma = None: a gaussian template needs sigma"),
        ({"shape": "ellipse", "beta": 2.0}, r"aspect = None: an ellipse template needs aspect"),
        ({"shape": "ellipse", "beta": 2.0, "aspect": -1.0}, r"aspect = -1\.0: expected a positive number"),
        ({"shape": "ring", "radius": 0.2, "width": math.nan}, r"width = nan: expected a positive number"),
        ({"shape": "mask", "values": [[1, 0]], "extent": 1.0}, r"values has shape \(1, 2\): expected a square table"),
        ({"shape": "mask", "values": [[-0.5]], "extent": 1.0}, r"values from -0.5 to -0.5: expected \[-1, 1\], some"),
        ({"shape": "gradient", "norm": "lp", "beta": 2.0, "p": torch.ones(2)}, "p is a tensor: all filters share one"),
    ],
)
def test_wrong_parameters_are_named(given, text):
    with pytest.raises(ValueError, match=text):
        part_templates(4, **given)
