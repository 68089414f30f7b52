from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlock, LayerNorm2d
from torchvision.models.densenet import _DenseBlock
from torchvision.models.googlenet import Inception
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.squeezenet import Fire
from torchvision.ops import SqueezeExcitation

from ipcnn_ray.core.receptive_field import Window
from ipcnn_ray.models.fx_receptive_field import NoReceptiveField, module_window, strip_final_relu


def downsample(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, 2, bias=False), nn.BatchNorm2d(outputs))


BLOCKS = {
    "fire": (Fire(8, 4, 4, 4), Window(3, 1, 1)),
    "basic": (BasicBlock(8, 8), Window(5, 1, 2)),
    "basic, stride 2": (BasicBlock(8, 8, 2, downsample(8, 8)), Window(7, 2, 3)),
    "bottleneck": (Bottleneck(8, 2), Window(3, 1, 1)),
    "bottleneck, stride 2": (Bottleneck(8, 4, 2, downsample(8, 16)), Window(3, 2, 1)),
    "convnext": (CNBlock(8, 1.0, 0.5), Window(7, 1, 3)),
    "mobilenet": (InvertedResidual(8, 8, 1, 2), Window(3, 1, 1)),
    "dense": (_DenseBlock(3, 8, 2, 4, 0.0), Window(7, 1, 3)),
    "inception": (Inception(8, 2, 2, 2, 2, 2, 2), Window(3, 1, 1)),
    "norm and conv": (nn.Sequential(LayerNorm2d(8), nn.Conv2d(8, 8, 2, 2)), Window(2, 2, 0)),
    "dilated": (nn.Conv2d(8, 8, 3, padding=2, dilation=2), Window(5, 1, 2)),
    "pool": (nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), Window(3, 2, 1)),
}


class Mean(nn.Module):
    """In place of a maximum: it reaches every pixel that a maximum can."""

    def __init__(self, pool: nn.MaxPool2d) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.pool(x)


@pytest.mark.parametrize("block", BLOCKS)
def test_a_window_is_where_the_gradient_of_a_cell_is(block):
    """Slow twin: the pixels that the sum over channels of one cell has a gradient at; no ReLU is closed."""
    module, expected = BLOCKS[block]
    assert module_window(module) == expected
    module = module.double().eval().requires_grad_(False)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.MaxPool2d):
                setattr(parent, name, Mean(child))
    for name, parameter in module.named_parameters():
        torch.nn.init.uniform_(parameter, 0.1, 1) if "weight" in name else nn.init.constant_(parameter, 0.01)
    x = torch.rand(1, 8, 25, 25, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = module(x)
    cell = y.shape[2] // 2
    (y[0, :, cell, cell] * torch.linspace(1, 2, y.shape[1]).double()).sum().backward()
    seen = x.grad[0].abs().sum(0)
    first = cell * expected.stride - expected.pad
    for axis in (0, 1):
        reached = seen.sum(axis).nonzero()
        assert (reached.min().item(), reached.max().item()) == (first, first + expected.kernel - 1)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (
            SqueezeExcitation(8, 2),
            r"^avgpool \(AdaptiveAvgPool2d\) takes in the whole map \(squeeze-and-excitation or global pooling\)$",
        ),
        (nn.AdaptiveAvgPool2d(1), r"^AdaptiveAvgPool2d takes in the whole map"),
        (nn.Sequential(nn.Flatten(), nn.Linear(8, 8)), r"^0 \(Flatten\) has no receptive field that is known here$"),
        (nn.Conv2d(8, 8, (1, 3)), r"^it does not put out a map whose cells see squares$"),
        (nn.LayerNorm([8, 5, 5]), r"^LayerNorm has no receptive field"),
    ],
)
def test_what_has_no_receptive_field_is_told(module, told):
    with pytest.raises(NoReceptiveField, match=told):
        module_window(module)


class Shuffled(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x, 1, 2)


def test_an_unknown_operation_is_not_guessed():
    with pytest.raises(NoReceptiveField, match="the operation roll has no receptive field that is known here"):
        module_window(Shuffled())


@pytest.mark.parametrize("block", ["fire", "basic", "basic, stride 2", "bottleneck", "inception"])
def test_a_relu_put_behind_a_block_is_the_blocks_own(block):
    module = BLOCKS[block][0].eval().float()
    for parameter in module.parameters():
        nn.init.uniform_(parameter, -1, 1)
    bare, x = strip_final_relu(module), torch.randn(2, 8, 9, 9)
    assert bare.state_dict().keys() == module.state_dict().keys()
    scores, maps = bare(x), module(x)
    assert (scores < 0).any()
    assert torch.equal(scores.relu(), maps)


def test_a_block_that_ends_in_no_relu_has_none_to_put_behind_it():
    assert strip_final_relu(BLOCKS["convnext"][0]) is None
    assert strip_final_relu(BLOCKS["mobilenet"][0]) is None
    assert strip_final_relu(nn.MaxPool2d(2)) is None
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(strip_final_relu(nn.ReLU())(x), x)
