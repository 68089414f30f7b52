from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from ipcnn_ray.models.backbones import BackboneCutError, backbone_blocks
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.layer_geometry import layer_receptive_field, map_side
from ipcnn_ray.models.model_card import layer_rows
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.pretrained_weights import LoadReport, load_weights
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import IMAGE_SIZES, Trunk
from ipcnn_ray.spec.template import GradientTemplate, NoTemplate
from ipcnn_ray.train.feature_cache import feature_key

L1, PLAIN = GradientTemplate(shape="gradient"), NoTemplate(shape="none")
FILE = Weights(file="w.pth")
SQUEEZE = Model(network="squeezenet1_1", cut="features.12", image_size=127, weights=FILE)
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def original(name: str, **settings: bool) -> nn.Module:
    """torchvision's network with random weights and random statistics."""
    return randomised(torchvision.models.get_model(name, weights=None, **settings))


@torch.no_grad()
def randomised(network: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    network.eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            deviation = (2 / module.weight[0].numel()) ** 0.5
            module.weight.normal_(0, deviation, generator=generator)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.weight.uniform_(0.5, 1, generator=generator)
    return network


def loaded(model: Model, network: nn.Module, folder: Path, template=L1) -> tuple[InterpretableNet, LoadReport]:
    below = {name.split(".")[0] for name in assemble(model, PLAIN, device="meta").names}
    state = {key: value for key, value in network.state_dict().items() if key.split(".")[0] in below}
    torch.save(state, folder / "w.pth")
    net = build(model, template, 0).eval()
    return net, load_weights(net, model.table, model.weights, folder)


def images(count: int, size: int) -> torch.Tensor:
    """RGB, 0 to 255."""
    return 255 * torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def seen(pixels: torch.Tensor, model: Model) -> torch.Tensor:
    """What our network sees of images whose mean is ImageNet's."""
    return (pixels - 255 * MEAN.reshape(3, 1, 1)) * model.table.input_scale


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    return (pixels / 255 - MEAN.reshape(3, 1, 1)) / STD.reshape(3, 1, 1)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_squeezenet_computes_what_torchvisions_does(tmp_path):
    network, x = original("squeezenet1_1"), images(2, 127)
    net, report = loaded(SQUEEZE, network, tmp_path)
    out = net(seen(x, SQUEEZE), full=True)
    expected = network.features(normalised(x))
    close(out.maps["features.12"], expected)
    assert torch.equal(out.maps["features.12"], out.scores["features.12"].relu())
    assert (out.scores["features.12"] < 0).any() and out.maps["features.12"].any()
    assert not report.partial and report.random == ("appended",)
    assert list(out.maps) == ["features.12", "appended"] and out.maps["appended"].shape == (2, 512, 7, 7)


@pytest.mark.parametrize("interpretable", [("layer2.1", "appended"), ("layer2.0", "layer2.1")])
def test_resnet_computes_what_torchvisions_does(tmp_path, interpretable):
    model = Model(network="resnet18", cut="layer2.1", image_size=65, weights=FILE, interpretable_layers=interpretable)
    network, x = original("resnet18"), images(2, 65)
    net, _ = loaded(model, network, tmp_path, PLAIN)
    out = net(seen(x, model), full=True)
    y = network.maxpool(network.relu(network.bn1(network.conv1(normalised(x)))))
    y = network.layer2[0](network.layer1(y))
    if "layer2.0" in interpretable:
        close(out.maps["layer2.0"], y)
    close(out.maps["layer2.1"], network.layer2[1](y))


def test_a_convnext_gets_a_relu_at_the_cut_and_nowhere_else(tmp_path):
    model = Model(network="convnext_tiny", cut="features.1.1", image_size=64, weights=FILE)
    network, x = original("convnext_tiny"), images(1, 64)
    net, _ = loaded(model, network, tmp_path)
    expected = network.features[1][:2](network.features[0](normalised(x)))
    out = net(seen(x, model), full=True)
    close(out.scores["features.1.1"], expected)
    assert torch.equal(out.maps["features.1.1"], out.scores["features.1.1"].relu())
    with pytest.raises(ValueError, match=r"expected some of features.1.1, appended, which end in a ReLU or lie at"):
        assemble(model.model_copy(update={"interpretable_layers": ("features.1.0",)}), L1, device="meta")


def test_a_cell_looks_at_its_receptive_field():
    """Slow twin over the whole network: the gradient of one cell, maxima made means, all weights positive."""
    model = Model(network="squeezenet1_1", cut="features.9")
    net = build(model, PLAIN, 0).double().eval().requires_grad_(False)
    for parameter in net.parameters():
        parameter.fill_(1 / parameter[0].numel())
    x = torch.rand(1, 3, 227, 227, dtype=torch.float64).requires_grad_()
    y, cell = x, 7
    for name in net.names[:-1]:
        layer = net.layer(name)
        y = F.avg_pool2d(y, 3, 2, ceil_mode=True) if isinstance(layer, nn.MaxPool2d) else layer(y)
    y[0, :, cell, cell].sum().backward()
    rows = x.grad[0].abs().sum((0, 2)).nonzero()
    found = layer_receptive_field(model, "features.9")
    center = found.first_center + found.stride * cell
    assert (rows.min().item(), rows.max().item()) == (center - (found.size - 1) / 2, center + (found.size - 1) / 2)


def test_the_map_of_fire9_is_the_references():
    """reference/interpretable-layer.md, section E: 14 x 14 cells behind fire8."""
    model = Model(network="squeezenet1_1", cut="features.12")
    assert (map_side(model, "features.11"), map_side(model, "appended")) == (14, 14)
    assert (layer_receptive_field(model, "features.11").stride, layer_receptive_field(model, "appended").size) == (
        16,
        239,
    )
    net = assemble(model, PLAIN, device="meta")
    assert net.interpretable == ("features.12", "appended") and net.layer("appended").weight.shape == (512, 512, 3, 3)
    net.freeze_through("features.11")
    assert net.feature_shape() == (512, 14, 14)
    net.freeze_through("features.7")
    assert net.feature_shape() == (256, 14, 14)  # behind the pooling of features.8


RESNET = Model(network="resnet18", cut="layer1.1", image_size=65, weights=FILE, dropout=0.0)


def test_statistics_stay_as_they_are_and_the_world_size_changes_nothing():
    net, x = build(RESNET, L1, 0).double(), 3 * torch.randn(8, 3, 65, 65).double()
    net.freeze_through("conv1")
    net.train()
    before = {key: value.clone() for key, value in net.named_buffers() if "running" in key}
    assert before and net.training and not any(module.training for module in net.body.modules())
    whole = net(x)
    halves = torch.cat([net(x[:4]), net(x[4:])])
    torch.testing.assert_close(halves, whole)
    whole.sum().backward()
    assert all(torch.equal(value, dict(net.named_buffers())[key]) for key, value in before.items())
    assert net.layer("bn1").weight.grad is not None and net.layer("conv1").weight.grad is None


def test_weight_decay_is_for_weights_and_not_for_the_scales_of_normalisation():
    net = build(RESNET, L1, 0)
    weights, others = (group["params"] for group in net.parameter_groups(0.1))
    assert all(p.ndim > 1 for p in weights) and all(p.ndim == 1 for p in others)
    assert len(weights) + len(others) == len(list(net.parameters()))
    convnext = build(Model(network="convnext_tiny", cut="features.1.0", image_size=64), L1, 0)
    assert convnext.layer("features.1.0").layer_scale.unique().tolist() == pytest.approx([1e-6])
    assert sum(len(group["params"]) for group in convnext.parameter_groups(0.1)) == len(list(convnext.parameters()))


def test_a_cache_is_not_that_of_other_statistics():
    net = build(RESNET, PLAIN, 0)
    net.freeze_through("layer1.0")
    items = np.zeros((1, 2), np.int64)
    key = feature_key("data", net, 1.0, "cpu", items)
    net.layer("bn1").running_var[0] += 1
    assert feature_key("data", net, 1.0, "cpu", items) != key


def test_the_rows_of_a_backbone():
    rows = {row.name: row for row in layer_rows(Model(network="resnet18", cut="layer2.1"), L1, "layer1.1")}
    assert " ".join(rows) == "conv1 maxpool layer1.0 layer1.1 layer2.0 layer2.1 appended pool fc1 fc2"
    last = rows["layer2.1"]
    assert (last.kind, last.channels, last.side, last.receptive_field, last.stride) == ("BasicBlock", 128, 28, 99, 8)
    assert last.interpretable and last.frozen == 0 and rows["layer1.0"].trainable == 0


@pytest.mark.parametrize(
    ("name", "cut"),
    [
        ("densenet121", "features.transition1"),
        ("googlenet", "inception3b"),
        ("vgg11_bn", "features.10"),
        ("regnet_x_400mf", "trunk_output.block1"),
    ],
)
def test_other_networks_can_be_cut(name, cut):
    net = assemble(Model(network=name, cut=cut, image_size=64), L1, device="meta").eval()
    assert net(torch.empty(2, 3, 64, 64, device="meta")).shape == (2,)
    assert net.interpretable == (cut, "appended")


def test_every_declared_network_is_torchvisions():
    assert set(IMAGE_SIZES) <= set(torchvision.models.list_models(module=torchvision.models))


@pytest.mark.parametrize(
    ("network", "cut", "size", "told"),
    [
        ("squeezenet1_1", "features.13", 227, r"squeezenet1_1 has no such layer; it has features.0, .*Did you mean"),
        ("squeezenet1_1", "features", 227, r"It is a group of layers; its last is features\.12\.$"),
        ("resnet18", "layer1.0.conv1", 224, r"It lies inside layer1\.0, which is one layer\.$"),
        (
            "resnet18",
            "avgpool",
            64,
            r"^has no receptive field that parts could be located by: in avgpool, AdaptiveAvgPool2d takes in the whole "
            r"map \(squeeze-and-excitation or global pooling\), and its output is a map of one cell\. "
            r"Cut resnet18 lower: layer4\.1 is the highest layer that can be kept$",
        ),
        ("resnet18", "layer4.1", 32, r"^has a map of one cell for images of 32 x 32 pixels"),
        ("squeezenet1_1", "features.12", 16, r"(has a map of one cell|the map is too small)"),
    ],
)
def test_a_cut_that_cannot_be_is_told(network, cut, size, told):
    with pytest.raises(BackboneCutError, match=told):
        backbone_blocks(Trunk(network, cut), size)


def plain_squeezenet(w: dict[str, torch.Tensor], x_rgb: torch.Tensor) -> torch.Tensor:
    """SqueezeNet 1.1 up to fire9, written out from the README beside the weight file; it sees BGR."""
    x = F.relu(F.conv2d(x_rgb[:, [2, 1, 0]], w["conv1_w"], w["conv1_b"], stride=2))
    for fire in range(2, 10):
        if fire in (2, 4, 6):
            x = F.max_pool2d(x, 3, 2, ceil_mode=True)

        def conv(x, part, pad=0, fire=fire):
            return F.relu(F.conv2d(x, w[f"fire{fire}.{part}_w"], w[f"fire{fire}.{part}_b"], padding=pad))

        x = conv(x, "squeeze1x1")
        x = torch.cat([conv(x, "expand1x1"), conv(x, "expand3x3", 1)], 1)
    return x


@pytest.mark.real_data
def test_squeezenet_with_caffes_weights_equals_the_plain_program(real_weights):
    model = Model(network="squeezenet1_1", cut="features.12", weights=Weights(file="squeezenet_v1.1.npz"))
    net = build(model, L1, 0).eval()
    report = load_weights(net, model.table, model.weights, real_weights)
    assert not report.partial and report.random == ("appended",)
    with np.load(real_weights / model.weights.file, allow_pickle=False) as file:
        w = {key: torch.from_numpy(file[key]) for key in file if key != "meta"}
    x = images(2, 227) - torch.tensor([123.0, 117, 104]).reshape(3, 1, 1)
    maps = net(x * model.table.input_scale, full=True).maps["features.12"].detach()
    close(maps, plain_squeezenet(w, x))
    assert maps.count_nonzero() > maps.numel() / 50  # not dead
