"""Three drawn animals at once, from the store through training and evaluation to the model."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from fakes.training import Runtime, measure, tiny

from ipcnn_ray.models.build import build
from ipcnn_ray.train.final_model import final_model

DATA = {"category": ["cow", "dog", "bird"], "negatives": 0}


@pytest.mark.parametrize("form", ["logistic", "softmax"])
def test_a_run_from_spec_to_model(bench, form):
    spec = tiny(data=DATA, loss={"classification": form}, train={"epochs": 2})
    result = bench.run(spec, form)
    assert result.state == "succeeded"
    assert 0 <= result.metrics["val_error"] <= 1 and math.isfinite(result.metrics["val_loss"])
    assert result.metrics["val_images"] == 12  # 2 of 10 objects of each category, twice; no negatives
    assert 0 < result.metrics["instability"] < 1
    model, example = final_model(bench.request(spec, form))
    assert model(example).shape == (2, 3)


def test_negatives_are_there_when_asked_for(bench):
    spec = tiny(data={**DATA, "negatives": 10}, train={"epochs": 1})
    store = bench.inputs(spec).store
    assert store.categories == ("cow", "dog", "bird")
    assert store.labels_N.tolist() == [0] * 10 + [1] * 10 + [2] * 10 + [-1] * 10
    assert bench.run(spec, "negatives").metrics["val_images"] == 14


def test_softmax_starts_at_the_loss_of_guessing(bench):
    spec = tiny(data=DATA, loss={"classification": "softmax"})
    inputs = bench.inputs(spec)
    with torch.no_grad():
        inputs.net.head["fc7"].weight.zero_()
    found = measure(inputs, spec, Runtime())
    assert found.counts.loss == pytest.approx(math.log(3), rel=1e-6)
    assert found.counts.error == pytest.approx(2 / 3)  # always the first category


def test_instability_is_that_of_each_category_by_itself(bench):
    spec = tiny(data=DATA)
    inputs = bench.inputs(spec)
    together = measure(inputs, spec, Runtime())
    labels = inputs.store.labels_N.copy()
    own = []
    for label in range(3):
        inputs.store.labels_N[:] = np.where(labels == label, 0, -1)
        own.append(measure(inputs, spec, Runtime()).metrics["instability"]["conv5"].per_filter_C)
    assert torch.equal(together.metrics["instability"]["conv5"].per_filter_C, torch.stack(own).amin(0))


def test_one_category_has_the_weights_that_it_had(bench):
    """The network of three scores starts like that of one, but for its last layer."""
    spec = tiny()
    one, three = build(spec.model, spec.template, 0), build(spec.model, spec.template, 0, 3)
    for name, parameter in one.named_parameters():
        if not name.startswith("head.fc7"):
            assert torch.equal(parameter, dict(three.named_parameters())[name]), name
    x = torch.randn(2, 3, 64, 64)
    assert one.eval()(x).shape == (2,) and three.eval()(x).shape == (2, 3)
