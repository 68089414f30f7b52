"""The filter terms of a spec's network, and their templates in each epoch."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ipcnn_ray.core.templates import log_prior
from ipcnn_ray.models.build import template_banks, unit_template
from ipcnn_ray.models.layer_loss import FilterTerm, InformationTerm, ReleasedTerm
from ipcnn_ray.models.layers import CentroidMask, LearnedBetaMask, PeakMask, ReleasedMask
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.template import Template


def filter_terms(
    spec: ExperimentSpec, template: Template, net: InterpretableNet, density_L: Tensor
) -> dict[str, FilterTerm]:
    """Build the filter term of every interpretable layer, by name; empty without a filter loss.

    `template` is concrete (a tailored one has been fitted), `net` on its device. `density_L` is the share of all items
    that are of each category.
    """
    loss = spec.loss.filter
    if loss is None:
        return {}
    device = next(net.parameters()).device
    terms: dict[str, FilterTerm] = {}
    for layer, bank_Tnn in template_banks(spec.model, template).items():
        mask = net.mask(layer)
        if loss.form == "released":
            assert loss.schedule != "paper"
            if not isinstance(mask, CentroidMask | ReleasedMask):
                unit_Pnn = unit_template(spec.model, template, layer)
                assert unit_Pnn is not None
                mask = CentroidMask(unit_Pnn.to(device))
            terms[layer] = ReleasedTerm(mask, density_L.to(device), loss.weight, loss.schedule, loss.learn_beta)
        else:
            learned = mask if isinstance(mask, LearnedBetaMask) else None
            bank_Tnn, log_prior_T = bank_Tnn.to(device), log_prior(bank_Tnn.shape[-1]).to(device)
            terms[layer] = InformationTerm(
                bank_Tnn, log_prior_T, loss.weight, loss.schedule, loss.form, learned, len(density_L)
            )
    return terms


def set_widening(
    spec: ExperimentSpec, template: Template, net: InterpretableNet, terms: Mapping[str, FilterTerm], widening: float
) -> None:
    """Widen the template of every mask and filter term by this factor; 1 is the template's own width."""
    for layer, bank_Tnn in template_banks(spec.model, template, widening).items():
        unit_Pnn, mask = unit_template(spec.model, template, layer, widening), net.mask(layer)
        assert unit_Pnn is not None
        if isinstance(mask, PeakMask | CentroidMask):
            mask.unit_Pnn.copy_(unit_Pnn)
        if layer in terms:
            terms[layer].set_templates(unit_Pnn, bank_Tnn)
