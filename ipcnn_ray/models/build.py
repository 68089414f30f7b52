"""From a spec to a network: the only file here that reads template sections."""

from __future__ import annotations

import hashlib
import math
from typing import Any, cast

import torch
from torch import Tensor, nn

from ipcnn_ray.core.templates import part_templates, template_bank
from ipcnn_ray.models.geometry import map_side
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import GradientTemplate, Model, NoTemplate, Template, UniformTemplate

OUTPUT_DEVIATION = 0.01
"""Standard deviation of the last layer's initial weights, as in the released code."""


def build(model: Model, template: Template, seed: int) -> InterpretableNet:
    """The network of a spec, on the CPU, with its initial weights.

    Weights are He-normal (variance 2 / fan-in), those of the last layer N(0, 0.01^2), biases 0. Each layer draws
    from its own generator, seeded by `seed` and the layer's name: they do not depend on the template, on other
    layers, or on torch's global generators, so the plain and the interpretable network start alike.

    Deviations: the released code draws every new weight from N(0, 0.01^2), with which a network does not train
    from random weights alone: measured on `compact`, the activations of conv5 fell below 1e-5 of the input's and
    100 steps at a learning rate of 0.01 left the loss at log 2 (He-normal: 0.12).
    """
    net = assemble(model, template)
    initialise(net, seed)
    return net


def assemble(model: Model, template: Template, device: torch.device | str = "cpu") -> InterpretableNet:
    """The network of a spec without initial weights; on the `meta` device it takes no memory."""
    names = interpretable_layers(model)
    return InterpretableNet(
        model.table,
        appended=model.appended_layer,
        interpretable=names,
        units=unit_templates(template, {name: map_side(model, name) for name in names}),
        dropout=model.table.dropout if model.dropout is None else model.dropout,
        device=device,
    )


def interpretable_layers(model: Model) -> tuple[str, ...]:
    """The spec's interpretable layers, or the highest convolution and the appended one."""
    return model.interpretable_layers or model.convs[model.convs.index(model.table.last_conv) :]


def unit_templates(template: Template, sides: dict[str, int]) -> dict[str, Tensor]:
    """Per layer its positive templates divided by tau, [P, n, n]; none for the plain network."""
    if isinstance(template, NoTemplate):
        return {}
    return {name: part_templates(n, **shape_arguments(template), tau=1.0) for name, n in sides.items()}


def template_banks(model: Model, template: Template) -> dict[str, Tensor]:
    """Per interpretable layer all templates, [T, n, n], for the filter loss; none for the plain network."""
    if isinstance(template, NoTemplate):
        return {}
    return {
        name: template_bank(map_side(model, name), **shape_arguments(template), tau=template.tau)
        for name in interpretable_layers(model)
    }


def shape_arguments(template: GradientTemplate | UniformTemplate) -> dict[str, Any]:
    """Arguments of `core.templates` for this section, all but n and tau."""
    given: dict[str, Any] = {"shape": template.shape, "norm": template.norm, "beta": template.beta}
    if isinstance(template, UniformTemplate):
        given["gamma"] = template.gamma
    return given


@torch.no_grad()
def initialise(net: InterpretableNet, seed: int) -> None:
    """Fills all parameters with the initial weights of `seed`."""
    layers = {name: m for name, m in (*net.body.items(), *net.head.items()) if isinstance(m, nn.Conv2d | nn.Linear)}
    last = list(layers)[-1]
    for name, module in layers.items():
        digest = hashlib.blake2b(f"initial {seed} {name}".encode(), digest_size=4).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "big"))
        fan_in = module.weight[0].numel()
        module.weight.normal_(0, OUTPUT_DEVIATION if name == last else math.sqrt(2 / fan_in), generator=generator)
        cast(Tensor, module.bias).zero_()
