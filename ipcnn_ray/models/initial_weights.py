"""Initial weights of new layers. Those of pretrained layers come from a file: see pretrained_weights.py."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from ipcnn_ray.models.net import InterpretableNet

RELEASED_DEVIATION = 0.01
"""Standard deviation of new weights in the released code."""


@torch.no_grad()
def initialise(net: InterpretableNet, seed: int, *, he_normal: bool) -> None:
    """Fill all parameters with the initial weights of `seed`.

    Args:
        he_normal: Whether weights are He-normal (variance 2 / fan-in), except in the last layer; by default in a
            network without pretrained layers. All other new weights are N(0, 0.01^2).

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


@torch.no_grad()
def scale_new_layers(net: InterpretableNet, rows: Tensor, loaded: Collection[str]) -> dict[str, float]:
    """Scale the weights of every new layer so that the mean square of its output before the ReLU is 1.

    Layers are scaled from below, each for the input that the scaled layers and the masks below it give. Their biases
    are 0, so an output is proportional to the weights and one forward pass is enough. A layer whose output is 0
    everywhere is left as it is.

    Args:
        rows: Outputs of the frozen layers, `net(rows, from_features=True)`; the same on all workers.
        loaded: Layers of the body with pretrained weights. All others are new.

    Returns:
        The factor on the weights of each new layer, by name.

    Source: layer-sequential unit variance, Mishkin & Matas, ICLR 2016.
    Deviations: weights are orthonormal there before they are scaled, and Gaussian here. Outputs have variance 1 there
    and mean square 1 here. The two differ for a layer of few outputs, such as a single score, whose variance over a few
    images can be small beside its mean.
    """
    factors: dict[str, float] = {}

    def scale(name: str, weight: Tensor, output: Tensor) -> Tensor:
        size = float(output.double().square().mean().sqrt())
        factors[name] = 1 / size if size > 0 else 1.0
        weight.mul_(factors[name])
        return output * factors[name]

    hooks = [
        module.register_forward_hook(lambda module, _, output, name=name: scale(name, module.weight, output))
        for name, module in _weight_layers(net, without=loaded)
    ]
    training = net.training
    try:
        net.eval()(rows, from_features=True)
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return factors


def _weight_layers(net: InterpretableNet, without: Collection[str] = ()) -> Iterator[tuple[str, nn.Conv2d | nn.Linear]]:
    """Yield the convolutions and fully connected layers with the name of their layer and their name in it.

    without: layers of the body that are passed over.
    """
    for name, layer in (*((name, net.layer(name)) for name in net.names if name not in without), *net.head.items()):
        for inside, module in layer.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                yield f"{name}.{inside}" if inside else name, module
