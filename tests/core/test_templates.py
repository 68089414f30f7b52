"""Part templates against numbers done by hand and against a loop over every cell."""

from __future__ import annotations

import math

import pytest
import torch

from ipcnn_ray.core.templates import Offsets, default_tau, log_prior, part_templates, template_bank


def test_gradient_l1_by_hand():
    # n = 3, mu = (0, 0): distances 0 1 2 / 1 2 3 / 2 3 4; 1 - 2 d / 3, not below -1.
    template = part_templates(3, shape="gradient", norm="l1", beta=2.0, tau=3.0, dtype=torch.float64)[0]
    expected = torch.tensor([[3.0, 1, -1], [1, -1, -3], [-1, -3, -3]], dtype=torch.float64)
    torch.testing.assert_close(template, expected, rtol=0, atol=1e-12)


def test_gradient_l2_by_hand():
    # mu = (1, 1) of a 3 x 3 map: 1 in the middle, 1 - 1/3 beside it, 1 - sqrt(2)/3 in the corners.
    template = part_templates(3, shape="gradient", norm="l2", beta=1.0, tau=1.0, dtype=torch.float64)[4]
    side, corner = 2 / 3, 1 - math.sqrt(2) / 3
    expected = [[corner, side, corner], [side, 1, side], [corner, side, corner]]
    torch.testing.assert_close(template, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-15)


def test_uniform_l1_by_hand_is_strict_at_the_threshold():
    # n = 4, beta = 2, gamma = 1: inside where 2 d / 4 < 1, so d = 2 is outside.
    template = part_templates(4, shape="uniform", norm="l1", beta=2.0, gamma=1.0, tau=1.0)[5]  # mu = (1, 1)
    assert template.tolist() == [[-1, 1, -1, -1], [1, 1, 1, -1], [-1, 1, -1, -1], [-1, -1, -1, -1]]


def test_uniform_l2_reaches_the_diagonal_that_l1_does_not():
    arguments = {"shape": "uniform", "beta": 2.0, "gamma": 1.0, "tau": 1.0}
    assert part_templates(4, norm="l2", **arguments)[5, 0].tolist() == [1, 1, 1, -1]
    assert part_templates(4, norm="l1", **arguments)[5, 0].tolist() == [-1, 1, -1, -1]


def test_the_papers_uniform_template_covers_the_map_but_for_far_corners():
    # beta = gamma = 2: the radius is n cells, so only L1 distances of n and more are outside.
    bank = part_templates(13, shape="uniform", norm="l1", beta=2.0, gamma=2.0, tau=1.0)
    assert bool((bank[6 * 13 + 6] > 0).sum() == 169)
    assert torch.equal(bank > 0, Offsets.of(13).distance("l1") < 13)


def test_bank_is_the_positive_templates_then_the_negative_one():
    arguments = {"shape": "gradient", "norm": "l2", "beta": 2.0}
    bank = template_bank(4, **arguments)
    assert bank.shape == (17, 4, 4) and bank.dtype == torch.float32
    assert torch.equal(bank[:16], part_templates(4, **arguments))
    assert torch.equal(bank[16], torch.full((4, 4), -0.5 / 16))
    assert torch.equal(template_bank(4, **arguments, tau=2.0)[16], torch.full((4, 4), -2.0))


def test_default_tau_and_one_cell():
    assert default_tau(13) == 0.5 / 169
    assert template_bank(1, shape="gradient", norm="l1", beta=4.0).flatten().tolist() == [0.5, -0.5]


def test_prior_is_one_over_one_plus_p_for_every_template():
    prior = log_prior(6, dtype=torch.float64)
    assert prior.shape == (37,)
    torch.testing.assert_close(prior.exp(), torch.full((37,), 1 / 37, dtype=torch.float64))


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"n": 0}, r"n = 0: a map has at least one cell"),
        ({"beta": 0.0}, r"beta = 0\.0: expected a positive number"),
        ({"beta": math.inf}, r"beta = inf: expected a positive number"),
        ({"tau": -1.0}, r"tau = -1\.0: expected a positive number"),
        ({"norm": "l3"}, r"norm = 'l3': expected 'l1', 'l2', 'linf' or 'lp'"),
        ({"norm": "lp"}, r"norm = 'lp' with p = None: p belongs to norm 'lp', which needs it"),
        ({"p": 3.0}, r"norm = 'l1' with p = 3\.0: p belongs to norm 'lp', which needs it"),
        ({"norm": "lp", "p": -1.0}, r"p = -1\.0: expected a positive number"),
        ({"shape": "round"}, r"shape = 'round': expected one of gradient, uniform, released, gaussian, "),
        ({"gamma": 2.0}, r"gamma = 2\.0: a gradient template has no gamma; it has norm, beta, p"),
        ({"shape": "uniform"}, r"gamma = None: a uniform template needs gamma"),
        ({"shape": "uniform", "gamma": 0.0}, r"gamma = 0\.0: expected a positive number"),
        ({"beta": torch.tensor([1.0, -2.0])}, r"beta holds -2\.0: expected positive numbers"),
    ],
)
def test_wrong_arguments_are_named(changed, text):
    arguments = {"n": 4, "shape": "gradient", "norm": "l1", "beta": 2.0} | changed
    with pytest.raises(ValueError, match=text):
        part_templates(arguments.pop("n"), **arguments)
