"""The base class of metrics; ablation and entropy of the activation map against numbers by hand and loops."""

from __future__ import annotations

import math

import pytest
import torch
from fakes.metrics import LAYER, Sparsity, WrongShape
from torch import Tensor

from ipcnn_ray.core.metrics.ablation_others import AblationOthers
from ipcnn_ray.core.metrics.ablation_own import AblationOwn
from ipcnn_ray.core.metrics.activation_entropy import ActivationEntropy
from ipcnn_ray.core.metrics.filter_metric import FilterMetric, MetricResult, filter_category

ENTROPY = ActivationEntropy(LAYER)


def ablation(loss_N: Tensor, ablated_loss_NC: Tensor, own_NC: Tensor) -> tuple[MetricResult, MetricResult]:
    change_NC = ablated_loss_NC.double() - loss_N.double()[:, None]
    own, others = AblationOwn(LAYER), AblationOthers(LAYER)
    return MetricResult(own.compute(change_NC, own_NC)), MetricResult(others.compute(change_NC, own_NC))


def test_ablation_by_hand():
    # Filter 0 is of the class of images 0 and 1; filter 1 of that of image 2.
    loss_N = torch.tensor([1.0, 2.0, 3.0])
    ablated_NC = torch.tensor([[1.5, 1.0], [2.1, 1.0], [2.0, 7.0]])
    own_NC = torch.tensor([[True, False], [True, False], [False, True]])
    own, others = ablation(loss_N, ablated_NC, own_NC)
    assert own.per_filter_C.tolist() == pytest.approx([(0.5 + 0.1) / 2, 4.0], abs=1e-6)
    assert others.per_filter_C.tolist() == pytest.approx([1.0, (0.0 + 1.0) / 2], abs=1e-6)


def test_ablation_equals_a_loop_and_drops_what_has_no_images():
    generator = torch.Generator().manual_seed(1)
    loss_N = torch.rand(20, generator=generator)
    ablated_NC = torch.rand(20, 5, generator=generator)
    own_NC = torch.rand(20, 5, generator=generator) < 0.5
    own_NC[:, 0], own_NC[:, 1] = True, False
    own, others = ablation(loss_N, ablated_NC, own_NC)
    for c in range(5):
        rises = [float(ablated_NC[i, c]) - float(loss_N[i]) for i in range(20) if own_NC[i, c]]
        moves = [abs(float(ablated_NC[i, c]) - float(loss_N[i])) for i in range(20) if not own_NC[i, c]]
        for found, values in ((own, rises), (others, moves)):
            expected = sum(values) / len(values) if values else math.nan
            assert float(found.per_filter_C[c]) == pytest.approx(expected, nan_ok=True)
    assert (own.dropped, others.dropped) == (1, 1)
    assert own.mean == pytest.approx(float(own.per_filter_C[[0, 2, 3, 4]].mean()))


def test_the_category_whose_images_activate_a_filter_the_most():
    pooled_NC = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.5, 8.0], [99.0, 99.0]])
    label_N = torch.tensor([0, 0, 1, -1])
    assert filter_category(pooled_NC, label_N, torch.tensor([0, 1])).tolist() == [0, 1]
    assert filter_category(pooled_NC, label_N, torch.tensor([0, 1, 2])).tolist() == [0, 1]  # no image of category 2
    assert filter_category(pooled_NC, label_N, torch.tensor([1])).tolist() == [1, 1]


def test_each_filter_over_the_images_of_its_own_category():
    value_NC = torch.tensor([[1.0, 10.0, 100.0], [3.0, 30.0, 300.0], [5.0, 50.0, 500.0]])
    label_N, own_C = torch.tensor([4, 4, 7]), torch.tensor([7, 4, 9])
    found = Sparsity(LAYER).measure({"state": value_NC}, 3, label_N=label_N, category_C=own_C)
    assert found.per_filter_C.tolist() == pytest.approx([5, 20, math.nan], nan_ok=True)
    assert found.dropped == 1 and found.mean == 12.5


def test_ablation_names_wrong_shapes():
    with pytest.raises(ValueError, match=r"own_NC has shape \(3, 1\): expected \[3, 2\]"):
        ablation(torch.zeros(3), torch.zeros(3, 2), torch.zeros(3, 1))


def test_entropy_by_hand():
    one, half, flat, zero = (torch.zeros(2, 2) for _ in range(4))
    one[1, 0] = 7.0
    half[0] = 3.0  # two of four cells: log 2 / log 4
    flat[:] = 0.1
    x_NCHW = torch.stack([torch.stack([one, half]), torch.stack([flat, zero])])
    entropy_NC = ENTROPY.update(x_NCHW)
    assert entropy_NC.flatten().tolist() == pytest.approx([0, 0.5, 1, math.nan], abs=1e-7, nan_ok=True)
    found = MetricResult(ENTROPY.compute(entropy_NC))
    assert found.per_filter_C.tolist() == pytest.approx([0.5, 0.5], abs=1e-7)


def test_entropy_equals_a_loop_and_a_dead_filter_is_dropped():
    generator = torch.Generator().manual_seed(4)
    x_NCHW = torch.randn(6, 3, 5, 5, generator=generator).relu()
    x_NCHW[:, 2] = 0
    x_NCHW[1, 0] = 0
    found = MetricResult(ENTROPY.compute(ENTROPY.update(x_NCHW)))
    for c in range(2):
        entropies = []
        for i in range(6):
            cells = x_NCHW[i, c].flatten().tolist()
            if sum(cells):
                shares = [cell / sum(cells) for cell in cells]
                entropies.append(-sum(p * math.log(p) for p in shares if p) / math.log(25))
        assert float(found.per_filter_C[c]) == pytest.approx(sum(entropies) / len(entropies), rel=1e-6)
    assert found.dropped == 1 and math.isnan(float(found.per_filter_C[2]))


def test_entropy_names_wrong_maps():
    with pytest.raises(ValueError, match="maps_NCHW has negative entries: expected maps after ReLU"):
        ENTROPY.update(-torch.ones(1, 1, 2, 2))
    with pytest.raises(ValueError, match="maps_NCHW has maps of 1 cell: expected at least 2"):
        ENTROPY.update(torch.ones(1, 1, 1, 1))


def test_a_result_that_is_not_one_number_per_filter():
    inputs = {"activation_NC": torch.ones(4, 3)}
    of_all = {"label_N": torch.zeros(4, dtype=torch.int64), "category_C": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"WrongShape.compute returns \(\): expected a tensor of \[3\]"):
        WrongShape(LAYER).measure(inputs, 3, **of_all)
    with pytest.raises(ValueError, match=r"Number.compute returns float: expected a tensor of \[3\]"):
        type("Number", (WrongShape,), {"compute": lambda self, activation_NC: 1.0})(LAYER).measure(inputs, 3, **of_all)


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"name": None}, "Mine.name = None: expected one line of text"),
        ({"name": "My metric"}, "Mine.name = 'My metric': expected a name of a-z, 0-9 and _"),
        ({"unit": ""}, "Mine.unit = '': expected one line of text"),
        ({"description": "two\nlines"}, r"Mine.description = 'two\\nlines': expected one line of text"),
        ({"better": "more"}, "Mine.better = 'more': expected one of higher, lower"),
        ({"images": "all"}, "Mine.images = 'all': expected one of own_category, objects, validation"),
        (
            {"compute": lambda self, state, landmark_NK2: state},
            "Mine.compute takes 'landmark_NK2': expected some of state, .*Did you mean 'landmarks_NK2'?",
        ),
        ({"update": lambda self, **maps: None}, "Mine.update takes 'maps': expected some of maps_NCHW, .*threshold_C"),
        (
            {"compute": lambda self, label_N: label_N},
            "Mine: `update` and the input `state` of `compute` belong together",
        ),
    ],
)
def test_a_metric_that_is_not_complete(attributes, text):
    with pytest.raises(ValueError, match=text):
        type("Mine", (Sparsity,), attributes)


def test_what_a_metric_needs():
    assert Sparsity.update_inputs() == ("maps_NCHW",) and Sparsity.compute_inputs() == ("state",)
    assert WrongShape.update_inputs() == () and WrongShape.needs() == {"activation_NC"}
    assert AblationOwn.ablates() and not AblationOwn.needs_part_sizes()
    with pytest.raises(TypeError, match="abstract"):
        FilterMetric(LAYER)
