"""The base class of metrics: categories of filters, results, and what a metric must have."""

from __future__ import annotations

import math

import pytest
import torch
from fakes.metrics import LAYER, Sparsity, WrongShape

from ipcnn_ray.core.metrics.ablation import AblationOwn
from ipcnn_ray.core.metrics.filter_metric import FilterMetric, filter_category
from ipcnn_ray.core.metrics.landmark_tracking import LandmarkTracking


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


def test_a_result_that_is_not_one_number_per_filter():
    inputs = {"activation_NC": torch.ones(4, 3)}
    of_all = {"label_N": torch.zeros(4, dtype=torch.int64), "category_C": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(ValueError, match=r"WrongShape.compute returns \(\): expected a tensor of \[3\]"):
        WrongShape(LAYER).measure(inputs, 3, **of_all)
    with pytest.raises(ValueError, match=r"Number.compute returns float: expected a tensor of \[3\]"):
        type("Number", (WrongShape,), {"compute": lambda self, activation_NC: 1.0})(LAYER).measure(inputs, 3, **of_all)


class OfTheLayer(WrongShape):
    images = "objects"
    one_per_layer = True

    def compute(self, activation_NC):
        return activation_NC.mean()[None]


class OfFilters(OfTheLayer):
    def compute(self, activation_NC):
        return activation_NC.mean(0)


def test_one_number_for_the_layer():
    of_all = {"label_N": torch.tensor([0, 1]), "category_C": torch.tensor([0, 1, 0])}
    activation_NC = torch.tensor([[1.0, 2, 3], [3, 4, 5]])
    found = OfTheLayer(LAYER).measure({"activation_NC": activation_NC}, 3, **of_all)
    assert found.per_filter_C.tolist() == [3] and found.mean == 3
    with pytest.raises(ValueError, match=r"OfFilters.compute returns \(3,\): expected a tensor of \[1\]"):
        OfFilters(LAYER).measure({"activation_NC": activation_NC}, 3, **of_all)


class TrackingTimesImages(LandmarkTracking):
    def compute(self, tracking_CK, activation_NC):
        return tracking_CK.amax(1) * len(activation_NC)


def test_inputs_of_filters_are_not_split_by_category():
    tracking_CK = torch.tensor([[0.25, 0.5], [0.75, 0.0]], dtype=torch.float64)
    inputs = {"tracking_CK": tracking_CK, "activation_NC": torch.ones(3, 2)}
    of_all = {"label_N": torch.tensor([0, 1, 1]), "category_C": torch.tensor([0, 1])}
    assert LandmarkTracking(LAYER).measure({"tracking_CK": tracking_CK}, 2, **of_all).per_filter_C.tolist() == [
        0.5,
        0.75,
    ]
    assert TrackingTimesImages(LAYER).measure(inputs, 2, **of_all).per_filter_C.tolist() == [0.5, 1.5]


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"name": None}, "Mine.name = None: expected one line of text"),
        ({"name": "My metric"}, "Mine.name = 'My metric': expected a name of a-z, 0-9 and _"),
        ({"unit": ""}, "Mine.unit = '': expected one line of text"),
        ({"description": "two\nlines"}, r"Mine.description = 'two\\nlines': expected one line of text"),
        ({"better": "more"}, "Mine.better = 'more': expected one of higher, lower"),
        ({"best": "1"}, "Mine.best = '1': expected a finite number or None"),
        ({"best": math.inf}, "Mine.best = inf: expected a finite number or None"),
        ({"one_per_layer": True}, "Mine: one number per layer cannot be of the images of each filter's category"),
        ({"images": "all"}, "Mine.images = 'all': expected one of own_category, objects, validation"),
        ({"compute": lambda self, state, landmark_NK2: state}, "takes 'landmark_NK2': .*Did you mean 'landmarks_NK2'?"),
        ({"update": lambda self, **maps: None}, "Mine.update takes 'maps': expected some of maps_NCHW, .*threshold_C"),
        ({"compute": lambda self, label_N: label_N}, "`update` and the input `state` of `compute` belong together"),
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
