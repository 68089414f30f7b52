"""From the spec's model and template to a network: the only place where a config meets the maths."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ipcnn_ray.core.templates import default_tau, log_prior, part_templates, template_bank
from ipcnn_ray.models.geometry import side
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import GradientTemplate, Model, NoTemplate, Template, UniformTemplate


@dataclass(frozen=True)
class Bank:
    """The templates of one layer, for the filter loss."""

    templates_Tnn: Tensor
    log_prior_T: Tensor


def _arguments(template: GradientTemplate | UniformTemplate, n: int) -> dict[str, object]:
    return {
        "n": n,
        "shape": template.shape,
        "norm": template.norm,
        "beta": template.beta,
        "gamma": template.gamma if isinstance(template, UniformTemplate) else None,
        "tau": template.tau,
    }


def _layers(model: Model) -> tuple[str, ...]:
    assert model.interpretable_layers is not None, "a resolved spec names its interpretable layers"
    return model.interpretable_layers


def build(model: Model, template: Template, seed: int) -> InterpretableNet:
    """The network with random weights from `seed`; the same weights whatever the template is."""
    units: dict[str, Tensor | None] = {}
    for layer in _layers(model):
        if isinstance(template, NoTemplate):
            units[layer] = None
        else:
            n = side(model.table, layer)
            units[layer] = part_templates(**_arguments(template, n)) / (template.tau or default_tau(n))  # type: ignore[arg-type]
    assert model.dropout is not None, "a resolved spec says its dropout"
    net = InterpretableNet(
        model.table, appended=model.appended_layer, unit_templates=units, dropout=model.dropout
    )
    net.initialise(seed)
    return net


def banks(model: Model, template: Template) -> dict[str, Bank]:
    """Interpretable layer -> its templates and prior; empty for the plain network."""
    if isinstance(template, NoTemplate):
        return {}
    sides = {layer: side(model.table, layer) for layer in _layers(model)}
    return {
        layer: Bank(template_bank(**_arguments(template, n)), log_prior(n))  # type: ignore[arg-type]
        for layer, n in sides.items()
    }
