"""From a spec to a network and its templates. Specs become keyword arguments here."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ipcnn_ray.core.receptive_field import map_side as core_map_side
from ipcnn_ray.core.templates import part_templates, template_bank
from ipcnn_ray.models.initial_weights import initialise
from ipcnn_ray.models.layer_geometry import map_side, window
from ipcnn_ray.models.layers import make_mask
from ipcnn_ray.models.net import InterpretableNet, MaskFactory
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import NoTemplate, Template
from ipcnn_ray.spec.training import FilterLoss


def build(
    model: Model, template: Template, seed: int, categories: int = 1, filter_loss: FilterLoss | None = None
) -> InterpretableNet:
    """Return the network of a spec on the CPU with the initial weights of `seed` (see `initialise`), for a concrete
    template. `load_weights` loads pretrained ones; `scale_new_layers` is the second step of `model.new_weights: lsuv`.
    """
    net = assemble(model, template, categories, filter_loss)
    rule = model.new_weights or ("he" if model.weights is None else "released")
    initialise(net, seed, he_normal=rule != "released")
    return net


def assemble(
    model: Model,
    template: Template,
    categories: int = 1,
    filter_loss: FilterLoss | None = None,
    device: torch.device | str = "cpu",
    widening: float = 1.0,
) -> InterpretableNet:
    """Return the network of a spec without initial weights; on the `meta` device it takes no memory.

    widening: factor on the lengths of the masks' template.
    """
    return InterpretableNet(
        model.table,
        appended=model.appended_layer,
        interpretable=interpretable_layers(model),
        mask_factory=mask_factory(template, filter_loss, widening),
        pooled=model.appended_mask == "pooled",
        head=model.head,
        dropout=model.table.dropout if model.dropout is None else model.dropout,
        categories=categories,
        device=device,
    )


def mask_factory(template: Template, filter_loss: FilterLoss | None, widening: float = 1.0) -> MaskFactory | None:
    """Return the function that makes the mask of a layer from its filters and n; None for the plain network.

    Without `template.mask`, a mask is centred on the peak, or with the released form of the filter loss on the
    centroid. With `learn_beta` each filter has its own slope.
    """
    if isinstance(template, NoTemplate):
        return None
    released = filter_loss is not None and filter_loss.form == "released"
    learned = template.learned if filter_loss is not None and filter_loss.learn_beta else ""
    center = template.mask or ("centroid" if released else "peak")
    arguments = template.arguments()

    def make(filters: int, n: int) -> nn.Module:
        return make_mask(n, filters, center, arguments, learned=learned, widening=widening)

    return make


def interpretable_layers(model: Model) -> tuple[str, ...]:
    """Return the spec's interpretable layers, or the highest convolution and the appended one."""
    default = (model.table.last_conv, *((model.table.appended.name,) if model.appended_layer else ()))
    return model.interpretable_layers or default


def template_side(model: Model, layer: str) -> int:
    """Return n, the side of the maps that the templates of an interpretable layer act on, cells."""
    n = map_side(model, layer)
    if layer == model.table.appended.name and model.appended_mask == "pooled":
        return core_map_side(n, [window(model.table.head_pool)])
    return n


def unit_template(model: Model, template: Template, layer: str, widening: float = 1.0) -> Tensor | None:
    """Return the initial positive templates of a layer divided by tau, [P, n, n]; None for the plain network.

    widening: factor on the lengths of the template.
    """
    if isinstance(template, NoTemplate):
        return None
    return part_templates(template_side(model, layer), **template.arguments(), tau=1.0, widening=widening)


def template_banks(model: Model, template: Template, widening: float = 1.0) -> dict[str, Tensor]:
    """Return all templates of each interpretable layer, [T, n, n], for the filter loss; empty for the plain network.

    widening: factor on the lengths of the template.
    """
    if isinstance(template, NoTemplate):
        return {}
    return {
        name: template_bank(template_side(model, name), **template.arguments(), tau=template.tau, widening=widening)
        for name in interpretable_layers(model)
    }
