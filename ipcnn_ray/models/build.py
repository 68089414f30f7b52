"""From a spec to a network, its initial weights, and its templates. Specs become keyword arguments here.

Weights of pretrained layers come from a file: see pretrained_weights.py.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ipcnn_ray.core.receptive_field import map_side as core_map_side
from ipcnn_ray.core.templates import part_templates, template_bank
from ipcnn_ray.models.layer_geometry import map_side, window
from ipcnn_ray.models.layers import CentroidMask, LearnedBetaMask, PeakMask, ReleasedMask
from ipcnn_ray.models.net import InterpretableNet, MaskFactory
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import NoTemplate, Template
from ipcnn_ray.spec.training import FilterLoss

RELEASED_DEVIATION = 0.01
"""Standard deviation of new weights in the released code."""


def build(
    model: Model, template: Template, seed: int, categories: int = 1, filter_loss: FilterLoss | None = None
) -> InterpretableNet:
    """Return the network of a spec on the CPU with the initial weights of `seed` (see `initialise`), for a concrete
    template. `load_weights` loads pretrained ones."""
    net = assemble(model, template, categories, filter_loss)
    initialise(net, seed, he_normal=model.weights is None)
    return net


def assemble(
    model: Model,
    template: Template,
    categories: int = 1,
    filter_loss: FilterLoss | None = None,
    device: torch.device | str = "cpu",
) -> InterpretableNet:
    """Return the network of a spec without initial weights; on the `meta` device it takes no memory."""
    return InterpretableNet(
        model.table,
        appended=model.appended_layer,
        interpretable=interpretable_layers(model),
        mask_factory=mask_factory(template, filter_loss),
        pooled=model.appended_mask == "pooled",
        dropout=model.table.dropout if model.dropout is None else model.dropout,
        categories=categories,
        device=device,
    )


@torch.no_grad()
def initialise(net: InterpretableNet, seed: int, *, he_normal: bool) -> None:
    """Fill all parameters with the initial weights of `seed`.

    Args:
        he_normal: Whether weights are He-normal (variance 2 / fan-in), except in the last layer: in a network without
            pretrained layers. All other new weights are N(0, 0.01^2).

    Biases are 0. Normalisation layers of a backbone start as the identity, layer scales of ConvNeXt at the published
    1e-6. Each layer has its own generator, seeded by `seed` and the layer's name. Its weights do not depend on the
    template, on other layers, or on torch's global generators, so plain and interpretable networks start alike.

    Deviations: the released code draws every new weight from N(0, 0.01^2), always above pretrained layers. Without
    pretrained layers this does not train: on `compact`, the activations of conv5 fell below 1e-5, and 100 steps at a
    learning rate of 0.01 left the loss at log 2 (He-normal: 0.12). Above Caffe's conv1 to conv3 of `alexnet`, whose
    features have a standard deviation of 24, He-normal starts at a loss of 8 and jumps to 70 at a learning rate of
    0.001, while N(0, 0.01^2) starts at log 2 and falls smoothly at 0.01.
    """
    layers = dict(_weight_layers(net))
    last = list(layers)[-1]
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            module.reset_parameters()
    for name, parameter in net.named_parameters():
        if name.endswith("layer_scale"):
            parameter.fill_(1e-6)
    for name, module in layers.items():
        digest = hashlib.blake2b(f"initial {seed} {name}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        he_deviation = math.sqrt(2 / module.weight[0].numel())
        deviation = he_deviation if he_normal and name != last else RELEASED_DEVIATION
        module.weight.normal_(0, deviation, generator=generator)
        if module.bias is not None:
            module.bias.zero_()


def _weight_layers(net: InterpretableNet) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Yield the convolutions and fully connected layers with the name of their layer and their name in it."""
    for name, layer in (*((name, net.layer(name)) for name in net.names), *net.head.items()):
        for inside, module in layer.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield f"{name}.{inside}" if inside else name, module


def mask_factory(template: Template, filter_loss: FilterLoss | None) -> MaskFactory | None:
    """Return the function that makes the mask of a layer from its filters and n; None for the plain network.

    A mask is centred on the peak, or with the released form of the filter loss on the centroid. With `learn_beta` each
    filter has its own slope.
    """
    if isinstance(template, NoTemplate):
        return None
    released = filter_loss is not None and filter_loss.form == "released"
    learns = filter_loss is not None and filter_loss.learn_beta
    arguments = template.arguments()

    def make(filters: int, n: int) -> nn.Module:
        if released and learns:
            return ReleasedMask(filters, n, arguments[template.learned])
        if learns:
            # A shape with a learned slope is max(1 - slope * distance, -1); a slope of 1/2 gives every distance.
            distance_Pnn = 2 * (1 - part_templates(n, **{**arguments, template.learned: 0.5}, tau=1.0))
            return LearnedBetaMask(distance_Pnn, filters, arguments[template.learned])
        unit_Pnn = part_templates(n, **arguments, tau=1.0)
        return CentroidMask(unit_Pnn) if released else PeakMask(unit_Pnn)

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


def unit_template(model: Model, template: Template, layer: str) -> Tensor | None:
    """Return the initial positive templates of a layer divided by tau, [P, n, n]; None for the plain network."""
    if isinstance(template, NoTemplate):
        return None
    return part_templates(template_side(model, layer), **template.arguments(), tau=1.0)


def template_banks(model: Model, template: Template) -> dict[str, Tensor]:
    """Return all templates of each interpretable layer, [T, n, n], for the filter loss; empty for the plain network."""
    if isinstance(template, NoTemplate):
        return {}
    return {
        name: template_bank(template_side(model, name), **template.arguments(), tau=template.tau)
        for name in interpretable_layers(model)
    }
