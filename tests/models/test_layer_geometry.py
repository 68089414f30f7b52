from __future__ import annotations

import pytest
import torch
from torch import nn

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.layer_geometry import body_layers, layer_receptive_field, map_side
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.networks import NETWORKS, Conv
from ipcnn_ray.spec.template import NoTemplate

PLAIN = NoTemplate(shape="none")


@pytest.mark.parametrize(
    ("network", "stride", "center_1based", "n"),
    [
        ("alexnet", 16, 18, 13),
        ("vgg_m", 16, 18, 13),
        ("vgg_s", 12, 21, 17),
        ("vgg16", 16, 8.5, 14),
        ("compact", 4, 2, 16),
    ],
)
def test_the_appended_layer_has_the_published_cells(network, stride, center_1based, n):
    model = Model(network=network)
    seen = layer_receptive_field(model, model.table.appended.name)
    assert (seen.stride, seen.first_center) == (stride, center_1based - 1)
    assert map_side(model, model.table.appended.name) == n


@pytest.mark.parametrize("network", NETWORKS)
def test_sides_are_those_of_the_maps_that_torch_computes(network):
    model = Model(network=network)
    net = assemble(model, PLAIN, device="meta")
    x = torch.empty(1, 3, model.table.image_size, model.table.image_size, device="meta")
    for layer in body_layers(model.table, True):
        x = net.body[layer.name](x)
        assert x.shape[1:] == net.shape(layer.name), layer.name
        assert x.shape[2] == map_side(model, layer.name), layer.name


@pytest.mark.parametrize("network", ["compact", "alexnet"])
def test_a_cell_looks_at_its_receptive_field(network):
    """Slow twin: with all weights 1, the pixels that have a gradient are the field of the cell."""
    model = Model(network=network)
    layer = model.table.appended.name
    seen, cell = layer_receptive_field(model, layer), map_side(model, layer) // 2
    x = torch.rand(1, 1, model.table.image_size, model.table.image_size).double().requires_grad_()
    y = x
    for part in (block.row for block in body_layers(model.table, True)):
        if isinstance(part, Conv):
            y = nn.functional.conv2d(
                y, torch.ones(1, 1, part.kernel, part.kernel).double(), None, part.stride, part.pad
            )
            y = y / part.kernel**2
        elif hasattr(part, "kernel"):  # an average reaches every pixel that a maximum can
            y = nn.functional.avg_pool2d(y, part.kernel, part.stride, part.pad, ceil_mode=part.ceil)
    y[0, 0, cell, cell].backward()
    rows = x.grad[0, 0].abs().sum(1).nonzero()
    center = seen.first_center + seen.stride * cell
    assert (rows.min().item(), rows.max().item()) == (center - (seen.size - 1) / 2, center + (seen.size - 1) / 2)


def test_windows_by_hand():
    found = {block.name: block.window for block in body_layers(NETWORKS["alexnet"], appended=False)}
    assert found.pop("norm1") is None and found.pop("norm2") is None
    assert [(w.kernel, w.stride, w.pad, w.ceil) for w in found.values()][:3] == [
        (11, 4, 0, False),
        (3, 2, 0, True),
        (5, 1, 2, False),
    ]


def test_an_unknown_layer_is_named_beside_those_that_exist():
    with pytest.raises(IpcnnError, match=r"no layer 'conv5': the network has conv1, conv2, pool2, conv3, conv4$"):
        map_side(Model(network="compact", appended_layer=False), "conv5")


def test_the_appended_layer_has_the_kernel_and_filters_of_the_spec():
    """A 1 x 1 kernel sees what the layer below sees."""
    net = build(Model(network="compact", appended_kernel=1, appended_filters=8), PLAIN, seed=0)
    assert net.shape("conv5") == (8, 16, 16)
    assert net.layer("conv5").weight.shape == (8, 32, 1, 1)
    assert net(torch.zeros(2, 3, 64, 64)).shape == (2,)
    fields = [layer_receptive_field(Model(network="compact", appended_kernel=1), name) for name in ("conv4", "conv5")]
    assert fields[0] == fields[1]
    assert layer_receptive_field(Model(network="compact"), "conv5").size > fields[1].size
