from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ipcnn_ray.core.templates import part_templates
from ipcnn_ray.models.build import assemble, build, template_banks
from ipcnn_ray.models.initial_weights import scale_new_layers
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.template import GradientTemplate, NoTemplate, UniformTemplate

COMPACT = Model(network="compact")
PRETRAINED = COMPACT.model_copy(update={"weights": Weights(file="w.npz", layers=("conv1",))})
PLAIN = NoTemplate(shape="none")
L1 = GradientTemplate(shape="gradient")


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize("model", [COMPACT, Model(network="squeezenet1_1", cut="features.12")], ids=lambda m: m.network)
def test_the_seed_alone_decides_the_weights(model):
    state = torch.get_rng_state()
    net = build(model, L1, 3)
    assert torch.equal(state, torch.get_rng_state())
    assert same(net, build(model, PLAIN, 3))
    assert same(net, build(model, UniformTemplate(shape="uniform", norm="l2", gamma=0.5), 3))
    assert not same(net, build(model, L1, 4))
    if model is not COMPACT:
        assert "body.features_12.squeeze.weight" in net.state_dict()


def test_layers_keep_their_weights_without_the_appended_one():
    full, original = build(COMPACT, L1, 0), build(COMPACT.model_copy(update={"appended_layer": False}), L1, 0)
    assert "conv5" not in original.body
    for name in ("conv1", "conv2", "conv3", "conv4"):
        assert torch.equal(full.layer(name).weight, original.layer(name).weight)
    assert list(full.head) == ["pool5", "fc6", "drop6", "fc7"]
    assert list(original.head) == ["pool5", "fc5", "drop5", "fc6"]


@pytest.mark.parametrize(
    ("model", "layer", "deviation", "tolerance"),
    [
        (COMPACT, "conv4", math.sqrt(2 / (32 * 9)), 0.05),
        (COMPACT, "fc6", math.sqrt(2 / 512), 0.05),
        (COMPACT, "fc7", 0.01, 0.3),  # the last layer
        (PRETRAINED, "conv4", 0.01, 0.05),
        (PRETRAINED, "conv5", 0.01, 0.05),
        (PRETRAINED, "fc6", 0.01, 0.05),
        (Model(network="alexnet", appended_layer=False), "conv2", math.sqrt(2 / (48 * 25)), 0.01),  # in two groups
    ],
    ids=lambda value: getattr(value, "network", None),
)
def test_weights_are_he_normal_but_for_the_last_layer_and_behind_pretrained_ones(model, layer, deviation, tolerance):
    net = build(model, PLAIN, 0)
    module = net.head[layer] if layer in net.head else net.layer(layer)
    assert module.weight.std().item() == pytest.approx(deviation, rel=tolerance)
    assert all(not p.any() for name, p in net.named_parameters() if name.endswith("bias"))


@pytest.mark.parametrize(
    ("model", "rule", "deviations"),
    [
        (COMPACT, "released", (0.01, 0.01, 0.01)),
        (PRETRAINED, "he", (math.sqrt(2 / 288), math.sqrt(2 / 512), 0.01)),
        (PRETRAINED, "lsuv", (math.sqrt(2 / 288), math.sqrt(2 / 512), 0.01)),
    ],
)
def test_the_rule_of_new_weights_can_be_chosen(model, rule, deviations):
    """`lsuv` is drawn as `he` and then scaled for the data."""
    net = build(model.model_copy(update={"new_weights": rule}), PLAIN, 0)
    for module, deviation in zip((net.layer("conv4"), net.head["fc6"], net.head["fc7"]), deviations, strict=True):
        assert module.weight.std().item() == pytest.approx(deviation, rel=0.3 if module is net.head["fc7"] else 0.05)
    assert (
        build(COMPACT, PLAIN, 0)
        .layer("conv4")
        .weight.equal(build(PRETRAINED.model_copy(update={"new_weights": "he"}), PLAIN, 0).layer("conv4").weight)
    )


def output_sizes(net: InterpretableNet, rows: torch.Tensor) -> dict[str, float]:
    """Root mean square of the output of every convolution and fully connected layer, before its ReLU."""
    sizes: dict[str, float] = {}
    modules = {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)}
    hooks = [
        module.register_forward_hook(lambda _, __, y, name=name: sizes.update({name: float(y.square().mean().sqrt())}))
        for name, module in modules.items()
    ]
    with torch.no_grad():
        net.eval()(rows, from_features=True)
    for hook in hooks:
        hook.remove()
    return sizes


def test_scaled_layers_have_outputs_of_mean_square_one_behind_a_narrow_mask():
    """And equal those of scaling one layer after the other, from below."""
    torch.manual_seed(0)
    rows, narrow = 60 * torch.randn(8, 3, 64, 64), GradientTemplate(shape="gradient", norm="l2", beta=12.0)
    net, slow = (build(COMPACT.model_copy(update={"new_weights": "lsuv"}), narrow, 0) for _ in range(2))
    before = output_sizes(net, rows)
    assert before["head.fc7"] < 0.3 * before["body.conv1"]
    start = {name: parameter.clone() for name, parameter in net.state_dict().items()}
    net.train()
    factors = scale_new_layers(net, rows, ["conv1"])
    assert net.training and not any(module._forward_hooks for module in net.modules())
    after = output_sizes(net, rows)
    assert after.pop("body.conv1") == before["body.conv1"], "a loaded layer keeps its weights"
    assert after == pytest.approx(dict.fromkeys(after, 1.0), rel=1e-5)
    assert list(factors) == ["conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
    for name, factor in factors.items():
        key = f"{'head' if name in net.head else 'body'}.{name}"
        slow.get_submodule(key).weight.data /= output_sizes(slow, rows)[key]
        torch.testing.assert_close(net.state_dict()[f"{key}.weight"], start[f"{key}.weight"] * factor)
    for name, tensor in slow.state_dict().items():
        torch.testing.assert_close(net.state_dict()[name], tensor, rtol=1e-4, atol=0, msg=name)


def test_a_layer_without_signal_keeps_its_weights():
    net = build(COMPACT, PLAIN, 0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert set(scale_new_layers(net, torch.zeros(2, 3, 64, 64), ()).values()) == {1.0}
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_layers_of_a_torchvision_network_are_scaled_by_their_own_names():
    net = build(Model(network="squeezenet1_1", cut="features.4", image_size=64), PLAIN, 0)
    loaded = [name for name in net.names if name != "features.4" and name != "appended"]
    factors = scale_new_layers(net, 60 * torch.randn(2, 3, 64, 64), loaded)
    inside = [f"features.4.{name}" for name in ("squeeze", "expand1x1", "expand3x3")]
    assert list(factors) == [*inside, "appended", *(name for name in net.head if name.startswith("fc"))]


def test_masks_take_the_template_without_its_tau():
    net = build(COMPACT, UniformTemplate(shape="uniform", norm="l2", beta=3, gamma=0.5, tau=7), 0)
    assert set(net.masks) == {"conv4", "conv5"}
    assert torch.equal(
        net.mask("conv5").unit_Pnn, part_templates(16, shape="uniform", norm="l2", beta=3, gamma=0.5, tau=1)
    )
    assert not [key for key in net.state_dict() if "unit" in key], "templates are not saved with the weights"
    plain = build(COMPACT, PLAIN, 0)
    assert not plain.masks and plain.interpretable == ("conv4", "conv5")


def test_the_filter_loss_takes_the_template_with_its_tau():
    banks = template_banks(COMPACT, GradientTemplate(shape="gradient", norm="l2", beta=3, tau=7))
    assert list(banks) == ["conv4", "conv5"]
    positives = part_templates(16, shape="gradient", norm="l2", beta=3, tau=7)
    expected = torch.cat([positives, torch.full((1, 16, 16), -7.0)])
    assert torch.equal(banks["conv5"], expected)
    assert template_banks(COMPACT, PLAIN) == {}


def test_dropout_is_the_specs_or_the_networks_own():
    assert assemble(Model(network="vgg16"), PLAIN, device="meta").head["drop7"].p == 0.5
    assert assemble(Model(network="vgg16", dropout=0.8), PLAIN, device="meta").head["drop8"].p == 0.8


# conv1 7 x 7 x 3 x 96, conv2 5 x 5 x 96 x 256, conv3 3 x 3 x 256 x 512, conv4 and conv5 3 x 3 x 512 x 512, with biases.
VGG_M_CONVS = 14_208 + 614_656 + 1_180_160 + 2 * 2_359_808


@pytest.mark.parametrize(
    ("network", "first", "parameters"),
    [
        # conv6 is 3 x 3 x C x C + C; fc7 (6 x 6 or 7 x 7) x C x 4096 + 4096; fc8 4096^2 + 4096; fc9 4096 + 1.
        ("alexnet", (4096, 9216), 2_334_080 + 590_080 + 37_752_832 + 16_781_312 + 4_097),
        ("vgg_m", (4096, 18432), VGG_M_CONVS + 2_359_808 + 75_501_568 + 16_781_312 + 4_097),
        ("vgg_s", (4096, 18432), VGG_M_CONVS + 2_359_808 + 75_501_568 + 16_781_312 + 4_097),
        ("vgg16", (4096, 25088), 14_714_688 + 2_359_808 + 102_764_544 + 16_781_312 + 4_097),
    ],
)
def test_networks_have_the_published_number_of_parameters(network, first, parameters):
    net = assemble(Model(network=network), L1, device="meta")
    assert net.head["fc7"].weight.shape == first
    assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.slow
@pytest.mark.parametrize("template", [L1, PLAIN], ids=["gradient", "plain"])
def test_compact_learns_to_see_a_square(template):
    generator = torch.Generator().manual_seed(0)
    net = build(COMPACT, template, 0).train()
    optimiser = torch.optim.SGD(net.parameter_groups(5e-4), lr=0.01, momentum=0.9)
    losses = []
    for step in range(60):
        x = 0.3 * torch.randn(16, 3, 64, 64, generator=generator)
        sign = torch.tensor([1.0, -1.0]).repeat(8)
        for image in x[::2]:
            row, col = torch.randint(4, 48, (2,), generator=generator).tolist()
            image[:, row : row + 12, col : col + 12] += 1.5
        net.set_step(0, 1, step, 0, 16)
        loss = nn.functional.softplus(-sign * net(x)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) / 10 < 0.5 * losses[0]
