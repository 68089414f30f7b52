"""A template that narrows over the epochs, in training, evaluation and the model that is stored."""

from __future__ import annotations

import pytest
import torch
from fakes.training import OnReport, Runtime, tiny

from ipcnn_ray.core.templates import part_templates
from ipcnn_ray.models.layer_loss import InformationTerm
from ipcnn_ray.models.layers import NoMask
from ipcnn_ray.train import trainer
from ipcnn_ray.train.final_model import final_model, trained_template
from ipcnn_ray.train.runtime import StopRun

NARROWING = {"scale": 4.0, "epochs": 3}
FACTORS = {1: 4.0, 2: 2.0, 3: 1.0, 4: 1.0}


def stop_after(epoch, **how):
    def on_report(now):
        if now == epoch:
            raise StopRun("asked", **how)

    return OnReport(on_report)


def narrowed(template=None, loss=None, epochs=4):
    return tiny(template={"narrowing": NARROWING, **(template or {})}, loss=loss or {}, train={"epochs": epochs})


def unit_at(template, epoch):
    return part_templates(16, **template.arguments(), tau=1.0, widening=FACTORS[epoch])


@pytest.mark.parametrize(
    ("template", "loss"),
    [
        ({"beta": 4.0}, {}),
        ({"shape": "uniform", "gamma": 0.5}, {"filter": None}),
        ({"mask": "none"}, {}),
        ({"shape": "released"}, {}),
        ({"shape": "released", "mask": "none"}, {}),
        ({"shape": "tailored", "landmark": "head"}, {}),
    ],
)
def test_an_epoch_is_trained_and_evaluated_with_its_own_template(bench, monkeypatch, template, loss):
    spec, seen, real = narrowed(template, loss), [], (trainer.train_epoch, trainer.evaluate)

    def look(epoch, net, terms):
        mask, term = net.mask("conv5"), terms and terms["conv5"]
        units = [] if isinstance(mask, NoMask) else [mask.unit_Pnn.clone()]
        if isinstance(term, InformationTerm):
            units.append(term.bank_Tnn[:-1] / -term.bank_Tnn[-1, 0, 0])
        elif term:
            units.append(term.mask.unit_Pnn.clone())
        seen.append((epoch, units))

    def train_epoch(model, inputs, optimizer, terms, runtime, spec, epoch, **more):
        train_epoch.terms = terms
        look(epoch, inputs.net, terms)
        return real[0](model, inputs, optimizer, terms, runtime, spec, epoch, **more)

    def evaluate(inputs, *arguments, epoch):
        look(epoch, inputs.net, train_epoch.terms)
        return real[1](inputs, *arguments, epoch=epoch)

    monkeypatch.setattr(trainer, "train_epoch", train_epoch)
    monkeypatch.setattr(trainer, "evaluate", evaluate)
    bench.run(spec)
    assert [epoch for epoch, _ in seen] == [1, 1, 2, 2, 3, 3, 4, 4]
    fitted = trained_template(bench.request(spec))
    for epoch, units in seen:
        assert units
        for unit_Pnn in units:
            torch.testing.assert_close(unit_Pnn, unit_at(fitted, epoch), rtol=0, atol=1e-6)
    assert not torch.equal(seen[0][1][0], seen[-1][1][0])
    assert {epoch: metrics["template_widening"] for epoch, metrics in bench.record.epochs.items()} == FACTORS


def test_a_resumed_run_goes_on_with_the_template_of_its_epoch(bench):
    for name, runtime in (("cut", stop_after(2, resumable=True)), ("cut", Runtime()), ("whole", Runtime())):
        bench.run(narrowed(), name, runtime)
    assert bench.weights("cut") == bench.weights("whole")
    bench.run(tiny(train={"epochs": 4}), "narrow from the start")
    assert bench.weights("whole") != bench.weights("narrow from the start")


def test_a_scale_of_one_changes_nothing(bench):
    for name, template in (("as it is", {}), ("scale 1", {"narrowing": {"scale": 1.0, "epochs": 2}})):
        bench.run(tiny(template=template, train={"epochs": 2}), name)
    assert bench.weights("as it is") == bench.weights("scale 1")


@pytest.mark.parametrize("epoch", [1, 2, 4])
def test_the_model_has_the_template_of_the_last_epoch(bench, epoch):
    """That is its own one, unless the run was pruned."""
    request = bench.request(narrowed())
    state = bench.run(request.spec, runtime=stop_after(epoch)).state
    assert state == ("pruned" if epoch < 4 else "succeeded")
    net = final_model(request)[0].net
    assert torch.equal(net.mask("conv5").unit_Pnn, unit_at(request.spec.template, epoch))
