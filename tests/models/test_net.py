from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from ipcnn_ray.core.mask import mask_maps
from ipcnn_ray.core.templates import part_templates
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.layers import PeakMask
from ipcnn_ray.models.net import InterpretableNet, MaskFactory, NetOutput
from ipcnn_ray.spec.model import Head, Model
from ipcnn_ray.spec.networks import Conv, Network, Pool
from ipcnn_ray.spec.template import GradientTemplate, NoTemplate, UniformTemplate

COMPACT = Model(network="compact", dropout=0.5)
SQUEEZE = Model(network="squeezenet1_1", cut="features.12", image_size=127)
PLAIN = NoTemplate(shape="none")
L1 = GradientTemplate(shape="gradient")

# One 1 x 1 filter on 3 x 3 pixels; the head sums the nine cells.
TINY = Network(
    image_size=3,
    layers=(Conv("conv1", 1, 1),),
    appended=Conv("conv2", 1, 1),
    head_pool=Pool("pool1", 1, 1),
    head=(),
    dropout=0.0,
    input_scale=1.0,
)
RED = torch.tensor([[1.0, 2.0, 1.0], [1.0, 4.0, 1.0], [1.0, 1.0, 3.0]])


@torch.no_grad()
def tiny(mask_factory: MaskFactory | None = None, head: Head = "fully_connected") -> InterpretableNet:
    net = InterpretableNet(TINY, appended=False, interpretable=["conv1"], mask_factory=mask_factory, head=head)
    net.layer("conv1").weight.copy_(torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1))
    net.layer("conv1").bias.fill_(-1.5)
    net.head["fc2"].weight.fill_(1)
    net.head["fc2"].bias.fill_(10)
    return net


def image() -> torch.Tensor:
    return torch.stack([RED, torch.full((3, 3), 9.0), torch.full((3, 3), -9.0)])[None]


def test_a_plain_network_by_hand():
    """Red - 1.5, cut at 0: 0.5, 2.5 and 1.5 remain; 10 + 4.5."""
    out = tiny()(image(), full=True)
    assert isinstance(out, NetOutput)
    assert torch.equal(out.scores["conv1"][0, 0], RED - 1.5)
    assert torch.equal(out.maps["conv1"][0, 0], (RED - 1.5).clamp(min=0))
    assert out.logits_NL.tolist() == [[14.5]]


def test_a_masked_network_by_hand():
    """L1, beta 3, n 3: 1 at the peak (1, 1), 0 beside it, -1 in the corners. Only the peak's 2.5 remains."""
    out = tiny(lambda filters, n: PeakMask(part_templates(n, shape="gradient", norm="l1", beta=3, tau=1)))(
        image(), full=True
    )
    assert torch.equal(out.maps["conv1"][0, 0], (RED - 1.5).clamp(min=0))
    assert torch.equal(out.scores["conv1"][0, 0], RED - 1.5)
    assert out.logits_NL.tolist() == [[12.5]]


@pytest.mark.parametrize(("head", "plain", "masked"), [("average_pool", 4.5 / 9, 2.5 / 9), ("max_pool", 2.5, 2.5)])
def test_global_pooling_by_hand(head, plain, masked):
    """As above, with the mean or the maximum of the nine cells in place of their sum."""
    assert tiny(head=head)(image()).tolist() == [10 + plain]
    net = tiny(lambda filters, n: PeakMask(part_templates(n, shape="gradient", norm="l1", beta=3, tau=1)), head)
    assert net(image()).tolist() == [pytest.approx(10 + masked)]


@pytest.mark.parametrize("head", ["average_pool", "max_pool"])
@pytest.mark.parametrize("mask", ["full", "pooled"])
@pytest.mark.parametrize("template", [L1, PLAIN])
def test_the_pooled_head_is_pooling_dropout_and_one_linear_layer(head, mask, template):
    net = build(COMPACT.model_copy(update={"head": head, "appended_mask": mask}), template, 0, categories=3)
    x = torch.randn(4, 3, 64, 64)
    net.train().set_step(0, 1, 5, 0, 4)
    out = net(x, full=True)
    maps, side = out.passed["conv5"], 16
    if mask == "pooled":
        maps, side = (maps if template is L1 else nn.functional.max_pool2d(maps, 4, 4)), 4
    assert maps.shape == (4, 32, side, side)
    pooled = maps.mean((2, 3)) if head == "average_pool" else maps.amax((2, 3))
    dropped = net.head["drop"](pooled)
    assert ((dropped == 0) | torch.isclose(dropped, 2 * pooled)).all() and not torch.equal(dropped, pooled)
    torch.testing.assert_close(out.logits_NL, net.head["fc6"](dropped))
    assert net.head["fc6"].weight.shape == (3, 32)
    out.logits_NL.sum().backward()
    assert net.layer("conv1").weight.grad.any()


def test_the_new_layers_below_a_pooled_head_start_as_below_the_other():
    connected, pooled = build(COMPACT, L1, 3), build(COMPACT.model_copy(update={"head": "max_pool"}), L1, 3)
    for name in connected.names:
        assert all(
            torch.equal(a, b)
            for a, b in zip(connected.layer(name).parameters(), pooled.layer(name).parameters(), strict=True)
        )
    weight = pooled.head["fc6"].weight
    assert 0.005 < weight.std() < 0.015  # the last layer: N(0, 0.01^2), not He-normal


def test_the_next_layer_sees_the_masked_map():
    net = build(COMPACT, L1, 0).eval()
    out = net(torch.randn(2, 3, 64, 64), full=True)
    masked = mask_maps(out.maps["conv4"], net.mask("conv4").unit_Pnn)
    torch.testing.assert_close(out.scores["conv5"], net.body["conv5"](masked))
    assert list(out.maps) == list(out.scores) == ["conv4", "conv5"]
    assert torch.equal(out.maps["conv5"], out.scores["conv5"].relu())


def test_the_plain_network_is_the_network_without_masks():
    """Slow twin: torch's own layers one after the other."""
    net, x = build(COMPACT, PLAIN, 0).eval(), torch.randn(2, 3, 64, 64)
    y, relu = x, nn.functional.relu
    for name in ("conv1", "conv2", "pool2", "conv3", "conv4", "conv5"):
        y = net.body[name](y) if name == "pool2" else relu(net.body[name](y))
    y = net.head["fc7"](relu(net.head["fc6"](nn.functional.max_pool2d(y, 4, 4).flatten(1))))
    assert torch.equal(net(x), y[:, 0])
    assert not torch.equal(net(x), build(COMPACT, L1, 0).eval()(x))


@pytest.mark.parametrize(
    ("model", "through", "shape"),
    [
        (COMPACT, "conv1", (16, 32, 32)),
        (COMPACT, "conv2", (32, 16, 16)),  # behind pool2, which has no parameters
        (COMPACT, "conv3", (32, 16, 16)),
        (COMPACT.model_copy(update={"head": "average_pool", "appended_mask": "pooled"}), "conv3", (32, 16, 16)),
        # The maps of conv2 are computed every time.
        (COMPACT.model_copy(update={"interpretable_layers": ("conv2",)}), "conv3", (16, 32, 32)),
        (SQUEEZE, "features.0", (64, 31, 31)),
        (SQUEEZE, "features.7", (256, 7, 7)),
        (SQUEEZE, "features.11", (512, 7, 7)),
    ],
)
def test_cached_features_give_the_same_output(model, through, shape):
    net, size = build(model, L1, 0).eval(), model.table.image_size
    x = torch.randn(3, 3, size, size)
    whole = net(x, full=True)
    assert net.feature_shape() == (3, size, size)
    net.freeze_through(through)
    features = net.frozen_features(x)
    assert features.shape == (3, *shape) and net.feature_shape() == shape
    assert not features.requires_grad
    kept = features.clone()
    behind = net(features, from_features=True, full=True)
    assert torch.equal(behind.logits_NL, whole.logits_NL) and torch.equal(features, kept)
    assert all(torch.equal(behind.scores[layer], whole.scores[layer]) for layer in net.interpretable)


def test_the_cut_of_alexnet_lies_behind_normalisation_and_pooling():
    net = assemble(Model(network="alexnet"), L1, device="meta")
    for name, shape in {"conv1": (96, 27, 27), "conv2": (256, 13, 13), "conv3": (384, 13, 13)}.items():
        net.freeze_through(name)
        assert net.feature_shape() == shape


def test_frozen_layers_are_not_trained_and_biases_do_not_decay():
    net = build(COMPACT, L1, 0)
    net.freeze_through("conv2")
    weights, biases = net.parameter_groups(0.25)
    trained = ["body.conv3", "body.conv4", "body.conv5", "head.fc6", "head.fc7"]
    parameters = dict(net.named_parameters())
    assert (weights["weight_decay"], biases["weight_decay"]) == (0.25, 0.0)
    assert all(p is parameters[f"{name}.weight"] for p, name in zip(weights["params"], trained, strict=True))
    assert all(p is parameters[f"{name}.bias"] for p, name in zip(biases["params"], trained, strict=True))


def test_new_weights_have_their_own_rate():
    net = build(COMPACT, L1, 0)
    groups = net.parameter_groups(0.25, loaded=["conv1", "conv2"], new_weight_rate=3.0, new_bias_rate=2.0)
    rates = {id(p): (group["rate"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert len(rates) == len(list(net.parameters()))
    for name, parameter in net.named_parameters():
        new = not name.startswith(("body.conv1", "body.conv2"))
        expected = (3.0 if new else 1.0, 0.25) if name.endswith("weight") else (2.0 if new else 1.0, 0.0)
        assert rates[id(parameter)] == expected, name


def test_workers_together_compute_what_one_worker_computes():
    net, x = build(COMPACT, L1, 0).double().train(), torch.randn(8, 3, 64, 64).double()

    def logits(first: int, last: int) -> torch.Tensor:
        net.set_step(0, 1, 5, first, 8)
        return net(x[first:last])

    torch.testing.assert_close(torch.cat([logits(0, 4), logits(4, 8)]), logits(0, 8))
    assert not torch.allclose(net.eval()(x), net.train()(x))


@pytest.mark.parametrize(
    ("model", "template"),
    [
        pytest.param(COMPACT, L1, id="l1"),
        pytest.param(COMPACT, UniformTemplate(shape="uniform", norm="l2", gamma=0.5), id="uniform l2"),
        pytest.param(COMPACT, PLAIN, id="plain"),
        pytest.param(COMPACT.model_copy(update={"head": "average_pool"}), L1, id="average pool"),
        pytest.param(COMPACT.model_copy(update={"head": "max_pool"}), L1, id="max pool"),
        pytest.param(Model(network="resnet18", cut="layer1.1", image_size=65), L1, id="resnet"),
        pytest.param(SQUEEZE, L1, id="squeezenet", marks=pytest.mark.slow),
    ],
)
def test_an_exported_network_takes_any_batch(model, template):
    net, size, file = build(model, template, 0).eval(), model.table.image_size, io.BytesIO()
    example = torch.randn(2, 3, size, size)
    program = torch.export.export(net, (example,), dynamic_shapes=[{0: torch.export.Dim.AUTO}])
    torch.export.save(program, file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    for batch in (1, 2, 7):
        x = torch.randn(batch, 3, size, size)
        torch.testing.assert_close(loaded(x), net(x))


def test_a_step_of_alexnet_behind_frozen_layers_is_finite():
    net = build(Model(network="alexnet"), L1, 0).train()
    net.freeze_through("conv3")
    features = 20 * torch.rand(2, *net.feature_shape())
    net.set_step(0, 1, 0, 0, 2)
    out = net(features, from_features=True, full=True)
    nn.functional.softplus(-out.logits_NL).mean().backward()
    assert out.maps["conv5"].shape == out.scores["conv6"].shape == (2, 256, 13, 13)
    assert net.layer("conv3").weight.grad is None
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.requires_grad)
    assert net.layer("conv4").weight.grad.any()


def test_misuse_is_told():
    with pytest.raises(ValueError, match=r"freeze_through 'pool2': expected one of conv1, conv2, conv3, conv4, conv5"):
        build(COMPACT, L1, 0).freeze_through("pool2")
    with pytest.raises(ValueError, match=r"interpretable = \('conv9',\): expected some of conv1"):
        InterpretableNet(TINY, appended=False, interpretable=["conv9"])
