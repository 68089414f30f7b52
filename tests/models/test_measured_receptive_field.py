"""Receptive fields measured by gradients, and their twin: those that are computed from graphs of known operations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.test_fx_receptive_field import BLOCKS, Shuffled
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18
from torchvision.ops import SqueezeExcitation

from ipcnn_ray.core import receptive_field as core
from ipcnn_ray.core.receptive_field import Field, Window
from ipcnn_ray.models.backbones import backbone_blocks, backbone_modules
from ipcnn_ray.models.build import assemble
from ipcnn_ray.models.fx_receptive_field import NoReceptiveField, module_window
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.models.measured_receptive_field import find_window, measured_window, receptive_field
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.networks import NETWORKS, Conv, Trunk
from ipcnn_ray.spec.template import NoTemplate


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("size", [24, 7])
def test_blocks_of_known_operations(block, size):
    """Also on small maps, in which every field is cut off at an edge."""
    module, expected = BLOCKS[block]
    assert measured_window(module, (8, size, size)) == module_window(module) == expected


class Body(nn.Module):
    """The layers of a network with a ReLU behind each convolution, as it runs; without the masks."""

    def __init__(self, net: InterpretableNet) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.net.names:
            x = torch.relu(self.net.layer(name)(x))
        return x


def measured(net: InterpretableNet, size: int) -> Field:
    return core.receptive_field([measured_window(Body(net), (3, size, size))])


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_the_table(network):
    """With four channels per layer, which do not matter here."""
    model, table = Model(network=network), NETWORKS[network]
    layers = [replace(layer, out=4, groups=1) if isinstance(layer, Conv) else layer for layer in table.layers]
    narrow = replace(table, layers=tuple(layers), appended=replace(table.appended, out=4))
    net = InterpretableNet(narrow, appended=True, interpretable=(), mask_factory=None, device="meta")
    assert measured(net, table.image_size) == layer_receptive_field(model, table.appended.name)


@pytest.mark.parametrize(
    ("network", "cut", "size"),
    [("squeezenet1_1", "features.4", 64), ("squeezenet1_1", "features.12", 127), ("resnet18", "layer2.0", 64)],
)
def test_networks_of_torchvision(network, cut, size):
    model = Model(network=network, cut=cut, image_size=size)
    net = assemble(model, NoTemplate(shape="none"), device="meta")
    assert measured(net, size) == layer_receptive_field(model, "appended")


def test_the_receptive_fields_of_a_network_of_ones_own():
    """The pixels that change one cell, found by changing each; the module stays in its mode."""
    torch.manual_seed(1)  # with some weights both filters are 0 in the cell, and no pixel changes it
    net = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)).train()
    field = receptive_field(net)
    assert net.training and net[1].training
    image = torch.rand(1, 1, 24, 24, requires_grad=True)
    net.eval()(image)[0, :, 3, 2].sum().backward()
    assert field == Field(stride=4, size=7, first_center=0.0)
    rows, cols = image.grad[0, 0].nonzero().unbind(1)
    for seen, center in ((rows, 3 * 4), (cols, 2 * 4)):
        assert center - 3 <= int(seen.min()) and int(seen.max()) <= center + 3


class Unknown(nn.Module):
    """Convolutions, a maximum and a ReLU, with a branch on a value that torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 5, 2, 2), nn.Conv2d(8, 8, 3, padding=1)
        self.norm, self.drop = nn.BatchNorm2d(8), nn.Dropout()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.max_pool2d(self.norm(self.first(x)).relu_(), 3, 2, ceil_mode=True)
        y = self.second(y) if y.sum() > -1e30 else y
        return F.relu(self.drop(y)) + 0 * torch.rand_like(y)


def test_a_network_that_fx_cannot_follow():
    """By hand: 5 and 2 pixels of stride; the pooling sees 9, stride 4, from -2 on; the convolution 17, from -6 on."""
    module = Unknown()
    with torch.no_grad():  # closed ReLUs and dead channels do not matter
        module.first.weight.fill_(-1)
        module.second.weight.zero_()
    state, before = torch.random.get_rng_state(), {key: value.clone() for key, value in module.state_dict().items()}
    with torch.inference_mode():
        assert find_window(module, (3, 50, 50)) == Window(17, 4, 6)
    module.train()
    assert receptive_field(module, (3, 50, 70)) == receptive_field(module) == Field(4, 17, 2.0)
    assert torch.equal(torch.random.get_rng_state(), state) and module.training and module.drop.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_fields_that_reach_beyond_the_image_are_measured_with_a_larger_one():
    deep = nn.Sequential(*[nn.Conv2d(1, 1, 9, padding=4) for _ in range(3)])
    assert measured_window(deep, (1, 16, 16)) == module_window(deep) == Window(25, 1, 12)


class Gate(nn.Module):
    def __init__(self, local: nn.Module, channels: int) -> None:
        super().__init__()
        self.local, self.gate = local, SqueezeExcitation(channels, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gate(self.local(x))


def test_a_gate_over_the_whole_map_leaves_a_cell_in_its_place():
    block = BLOCKS["basic, stride 2"][0]
    assert measured_window(Gate(block, 8), (8, 32, 32)) == Window(7, 2, 3, whole=True)
    assert receptive_field(Gate(nn.Conv2d(3, 8, 3, 2, 1), 8)) == Field(2, 3, 0.0, whole=True)


class Attention(nn.Module):
    """Without positions: each cell is made of all pixels alike."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(x, 4) * 0 + x.mean((2, 3), keepdim=True)


def test_cells_without_a_place_of_their_own_are_a_grid():
    """Eight cells in 32 pixels: centres 4 apart, as far from the left edge as from the right one."""
    field = receptive_field(Attention(), (3, 32, 32))
    assert (field.stride, field.first_center, field.whole) == (4, 1.5, True)
    assert field.first_center + 7 * field.stride == 31 - field.first_center


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x, x


class Two(nn.Module):
    """Every second cell looks elsewhere."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[..., ::2, :], x[..., ::2, :].roll(2, 2)], 3).flatten(2, 3)


@pytest.mark.parametrize(
    ("module", "told"),
    [
        (
            nn.AdaptiveAvgPool2d(1),
            r"^AdaptiveAvgPool2d takes in the whole map .*, and its output is a map of one",
        ),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 8)), r"its output is not a map, \[N, C, rows, columns\]$"),
        (Pair(), r"and its output is not a map"),
        (nn.Conv2d(3, 8, (1, 3)), r"and its cells do not see squares$"),
        (
            nn.Sequential(nn.Conv2d(4, 8, 3), Attention()),
            r"cannot be run on an input of shape \(3, 32, 32\): Given",
        ),
        (Shuffled(), r"and its cells do not lie on a grid with one stride and one size of field$"),
        (Two(), r"and its cells do not lie on a grid with one stride"),
        (nn.Upsample(scale_factor=2), r"and its cells do not lie on a grid with one stride"),
    ],
)
def test_what_has_no_receptive_field_is_told(module, told):
    with pytest.raises(NoReceptiveField, match=told):
        receptive_field(module, (3, 32, 32))


def test_a_module_whose_constants_are_missing_is_not_measured():
    module = nn.Sequential(nn.Conv2d(3, 3, 3), Shuffled())
    module.register_buffer("kernel", torch.ones(3, device="meta"))
    with pytest.raises(NoReceptiveField, match=r"its constants have no values \(kernel\)"):
        measured_window(module, (3, 16, 16))


def test_backbones_with_gates_can_be_cut_anywhere():
    """The centres of EfficientNet's cells are those of its convolutions without the gates."""
    blocks = backbone_blocks(Trunk("efficientnet_b0", "features.2.0"), 64)
    windows = [Window(3, 2, 1), Window(3, 1, 1, whole=True), Window(3, 2, 1, whole=True)]
    assert [block.window for block in blocks] == windows
    module = backbone_modules(Trunk("efficientnet_b0", "features.2.0"), ["features.2.0"], frozenset())["features.2.0"]
    module.block[2] = nn.Identity()  # its squeeze-and-excitation
    assert module_window(module) == Window(3, 2, 1)
    field = layer_receptive_field(Model(network="efficientnet_b0", cut="features.2.0", image_size=64), "features.2.0")
    assert (field.stride, field.first_center, field.whole) == (4, 0.0, True)


def test_the_documented_example():
    field = receptive_field(nn.Sequential(*list(resnet18().children())[:-2]))
    assert field == Field(32, 435, 0.0)
