"""Initial weights and rates of layers without pretrained weights, in training."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes.training import OnReport, Runtime, tiny

from ipcnn_ray.train import trainer
from ipcnn_ray.train.runtime import StopRun

NARROW = {"shape": "gradient", "norm": "l2", "beta": 20.0, "narrowing": {"scale": 6.0, "epochs": 2}}
LOADED = {"weights": {"file": "w.npz", "layers": ["conv1", "conv2"]}, "new_weights": "lsuv"}


def spec_of(epochs=2, **compute):
    train = {"epochs": epochs, "freeze_through": "conv2"}
    return tiny(template=NARROW, model=LOADED, train=train, compute=compute)


@pytest.fixture
def pretrained(bench):
    bench.pretrained(["conv1", "conv2"])
    return bench


@pytest.mark.parametrize("epochs", [0, 2])
def test_new_layers_are_scaled_for_training_items_and_the_template_of_the_first_epoch(pretrained, monkeypatch, epochs):
    """Scaled once more for the same items and template, they do not change."""
    first, real = [], {name: getattr(trainer, name) for name in ("train_epoch", "evaluate", "scale_new_layers")}

    def scale(net, rows, loaded):
        scale.rows, scale.loaded = rows, loaded
        return real["scale_new_layers"](net, rows, loaded)

    def look(name):
        def looking(*arguments, **more):
            inputs = next(argument for argument in arguments if hasattr(argument, "net_input"))
            first.append((copy.deepcopy(inputs.net), inputs.net.mask("conv5").unit_Pnn.clone()))
            return real[name](*arguments, **more)

        return looking

    monkeypatch.setattr(trainer, "scale_new_layers", scale)
    for name in ("train_epoch", "evaluate"):
        monkeypatch.setattr(trainer, name, look(name))
    pretrained.run(spec_of(epochs))
    net, unit_Pnn = first[0]
    assert (float(unit_Pnn[0, 0, 1]) > 0) == (epochs > 0), "wide in epoch 1, its own width without training"
    assert len(scale.rows) == 24 and set(scale.loaded) == {"conv1", "conv2"}
    again = real["scale_new_layers"](net, scale.rows, scale.loaded)
    assert again == pytest.approx(dict.fromkeys(["conv3", "conv4", "conv5", "fc6", "fc7"], 1.0), rel=1e-5)


def test_weights_are_scaled_alike_with_and_without_the_cache_and_when_a_run_goes_on(pretrained):
    def stop(epoch):
        if epoch == 1:
            raise StopRun("asked", resumable=True)

    pretrained.run(spec_of(), "whole")
    pretrained.run(spec_of(cache_frozen=False), "computed")
    pretrained.run(spec_of(), "cut", OnReport(stop))
    pretrained.run(spec_of(), "cut", Runtime())
    assert pretrained.weights("whole") == pretrained.weights("computed") == pretrained.weights("cut")


def test_a_rate_of_new_weights_is_that_of_their_learning_rate(bench):
    """Without pretrained weights all are new: twice the factor is twice the learning rate, but for the biases."""
    moved = []
    for train in ({"new_weight_rate": 2.0}, {"learning_rate": 0.1, "final_learning_rate": 0.04}):
        trained = trainer.Trainer(bench.request(tiny(train={"epochs": 1, **train})), Runtime())
        rates = {group["rate"] for group in trained.optimizer.param_groups if group["weight_decay"]}
        start = trained.net.layer("conv4").weight.detach().clone()
        for group in trained.optimizer.param_groups:
            group["lr"] = trained.spec.train.learning_rate * group["rate"]
        torch.autograd.backward(trained.net.layer("conv4").weight.sum())
        trained.optimizer.step()
        moved.append((rates, trained.net.layer("conv4").weight.detach() - start))
    assert moved[0][0] == {2.0} and moved[1][0] == {1.0}
    assert torch.equal(moved[0][1], moved[1][1]) and float(moved[0][1].abs().min()) > 0
