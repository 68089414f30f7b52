"""Weights by name: their preprocessing is that of their publisher, and their names are checked before anything starts.

The files are made here, with random numbers; their addresses, names and preprocessing are torchvision's.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from models.test_backbones import close, images, original, randomised
from torch import nn
from torchvision.models.vgg import cfgs, make_layers

from ipcnn_ray.errors import DataError, SpecError
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.model_checks import check_backbones, models_of
from ipcnn_ray.models.named_weights import NamedWeights, input_mean, named_weights
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.pretrained_weights import LoadReport, load_pretrained, load_weights
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import IMAGE_SIZES, IN_TORCHVISION
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.utils.files import sha256_of
from ipcnn_ray.utils.paths import Paths

PLAIN = NoTemplate(shape="none")


def of(network: str, cut: str | None, name: str = "DEFAULT", size: int | None = None, **more: str) -> Model:
    return Model(network=network, cut=cut, image_size=size, weights=Weights(torchvision=name, **more))


def saved(model: Model, network: nn.Module, folder: Path, state=None) -> tuple[InterpretableNet, LoadReport]:
    """Our network with the state dict of torchvision's, whose file has the published name but for the hash."""
    named = named_weights(model)
    torch.save(state or network.state_dict(), folder / named.file)
    named = replace(named, sha256=sha256_of(folder / named.file)[:8])
    net = build(model, PLAIN, 0).eval()
    return net, load_weights(net, model.table, model.weights, folder, named)


def vgg16() -> nn.Module:
    """torchvision's, without the fully connected layers, which are most of its 138 million weights."""
    return randomised(nn.Sequential(OrderedDict(features=make_layers(cfgs["D"], batch_norm=False))))


def seen(pixels: torch.Tensor, model: Model) -> torch.Tensor:
    return (pixels - torch.tensor(input_mean(model)).reshape(3, 1, 1)) * model.table.input_scale


def published(pixels: torch.Tensor, network: str, name: str) -> torch.Tensor:
    """What torchvision's own preprocessing makes of the images, without its resizing and cropping."""
    preset = torchvision.models.get_model_weights(network)[name].transforms()
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (preset.mean, preset.std))
    return (pixels / 255 - mean) / std


def test_every_name_of_every_network_is_known():
    for network in (*IN_TORCHVISION, *IMAGE_SIZES):
        for name, weights in torchvision.models.get_model_weights(network).__members__.items():
            named = named_weights(of(network, None if network in IN_TORCHVISION else "cut", name))
            assert named.url == weights.url and weights.url.endswith(f"/{named.file}")
            assert re.fullmatch("[0-9a-f]{8,}", named.sha256) and named.sha256 in named.file
            assert all(40 < mean < 170 for mean in named.mean) and all(0.9 < std < 160 for std in named.std)


def test_the_vgg_of_the_papers_sees_pixels_less_a_mean(tmp_path):
    """The layers of `vgg16` are torchvision's, and the scores of its highest one are the same numbers."""
    model, network, x = of("vgg16", None, "IMAGENET1K_FEATURES"), vgg16(), images(1, 224)
    named = named_weights(model)
    assert named.file == "vgg16_features-amdegroot-88682ab5.pth" and named.sha256 == "88682ab5"
    assert named.mean == pytest.approx((123.0, 117.0, 104.0), abs=1e-2) and named.std == pytest.approx((1, 1, 1))
    net, report = saved(model, network, tmp_path)
    assert not report.partial and report.random == ("conv6",)
    expected = network.features[:30](published(x, "vgg16", "IMAGENET1K_FEATURES"))
    close(net(seen(x, model), full=True).maps["conv5_3"], expected)
    assert report.text == (
        f"loaded from {named.file} (torchvision's IMAGENET1K_FEATURES of vgg16): {', '.join(model.table.convs)}\n"
        "not loaded, random at first: conv6, and the head\n"
        "in the file and not used: nothing\n"
        "the file's first layer saw RGB (as published), 0..255 less (123.00, 117.00, 104.00), over (1.00, 1.00, 1.00); "
        "its weights: as they are; images are centred on that mean"
    )


def test_a_resnet_sees_normalised_images(tmp_path):
    model, network, x = of("resnet18", "layer1.1", size=65), original("resnet18"), images(2, 65)
    net, report = saved(model, network, tmp_path)
    y = network.maxpool(network.relu(network.bn1(network.conv1(published(x, "resnet18", "DEFAULT")))))
    close(net(seen(x, model), full=True).maps["layer1.1"], network.layer1(y))
    assert "over (58.40, 57.12, 57.38); its weights: scaled; images are centred on that mean" in report.text


def test_a_googlenet_converts_its_normalised_images(tmp_path):
    """torchvision's networks with published weights have transform_input, which the plain ones lack."""
    model, x = of("googlenet", "inception3a", size=64), images(2, 64)
    network = original("googlenet", init_weights=False)
    net, _ = saved(model, network, tmp_path)
    y = published(x, "googlenet", "DEFAULT")
    network.transform_input = True
    y = network._transform_input(y)
    for name in ("conv1", "maxpool1", "conv2", "conv3", "maxpool2", "inception3a"):
        y = getattr(network, name)(y)
    close(net(seen(x, model), full=True).maps["inception3a"], y)


def test_a_densenet_of_earlier_names(tmp_path):
    """torchvision renames the arrays of its DenseNet files when it loads them; `norm.1` became `norm1`."""
    model, x = of("densenet121", "features.transition1", size=64), images(1, 64)
    network = original("densenet121")
    rename = re.compile(r"(denselayer\d+\.(?:norm|conv))(\d\.)")
    state = {rename.sub(r"\1.\2", key): value for key, value in network.state_dict().items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in state
    net, _ = saved(model, network, tmp_path, state)
    expected = network.features[:6](published(x, "densenet121", "DEFAULT"))
    close(net(seen(x, model), full=True).scores["features.transition1"], expected)


def test_channels_that_are_stated_are_turned_round(tmp_path):
    model = of("vgg16", None, "IMAGENET1K_FEATURES", channels="bgr")
    network = vgg16()
    net, report = saved(model, network, tmp_path)
    assert torch.equal(net.layer("conv1_1").weight, network.features[0].weight.flip(1))
    assert "saw BGR (as stated; the file does not say)" in report.text


def test_a_file_that_is_not_the_published_one(tmp_path):
    paths = Paths.from_environment({"IPCNN_HOME": str(tmp_path / "home"), "IPCNN_WEIGHTS": str(tmp_path)})
    model = of("squeezenet1_1", "features.3")
    net, file = assemble(model, PLAIN, device="meta"), tmp_path / named_weights(model).file
    with pytest.raises(DataError, match=rf"{file}  torchvision's IMAGENET1K_V1 of squeezenet1_1: no such file"):
        load_pretrained(net, model, paths)
    file.write_bytes(b"truncated")
    begins = r"has the SHA-256 [0-9a-f]{64}; that of torchvision's IMAGENET1K_V1 of squeezenet1_1 begins with b8a52dc0"
    with pytest.raises(DataError, match=rf"{begins}\n +The file is damaged or another one\. Delete it, and submit"):
        load_pretrained(net, model, paths)


def test_where_a_file_is(tmp_path):
    def paths(**env: str) -> Paths:
        return Paths.from_environment({"IPCNN_HOME": str(tmp_path / "home"), **env})

    named = NamedWeights("label", "url", "w.pth", "", (0, 0, 0), (1, 1, 1))
    own, given = tmp_path / "home" / "weights" / "w.pth", tmp_path / "given" / "w.pth"
    assert named.path(paths()) == own
    assert named.path(paths(IPCNN_WEIGHTS=str(given.parent))) == given
    staged = replace(paths(IPCNN_WEIGHTS="s3://bucket/weights"), weights=given.parent)
    assert named.path(staged) == own  # a copy of a bucket is not changed
    own.parent.mkdir(parents=True)
    own.touch()
    assert named.path(paths(IPCNN_WEIGHTS=str(given.parent))) == own
    given.parent.mkdir()
    given.touch()
    assert named.path(staged) == named.path(paths(IPCNN_WEIGHTS=str(given.parent))) == given


def text(model: str) -> str:
    others = "name: t\ndata: {kind: drawn_animals}\ntrain: {epochs: 4}\ntemplate: {shape: uniform}\n"
    return f"model: {{{model}}}\n{others}"


def told(model: str) -> list[str]:
    with pytest.raises(SpecError) as caught:
        check_backbones(loads(text(model), "s.yaml"))
    return [part.strip() for problem in caught.value.issues for part in str(problem).split("\n")]


def test_an_unknown_name_is_told_with_all_that_there_are():
    assert told("network: vgg16, weights: {torchvision: IMAGENET1K_V2}") == [
        "s.yaml:1  model.weights.torchvision = 'IMAGENET1K_V2'",
        "torchvision's weights of vgg16 are IMAGENET1K_V1, IMAGENET1K_FEATURES, DEFAULT",
    ]
    assert told("network: resnet18, cut: layer1.1, weights: {torchvision: best}") == [
        "s.yaml:1  model.weights.torchvision = 'best'",
        "torchvision's weights of resnet18 are IMAGENET1K_V1, DEFAULT",
    ]


def test_the_digest_depends_on_the_name():
    def digest(weights: str) -> str:
        return loads(text(f"network: vgg16, weights: {weights}"), "s.yaml").spec.digest()

    names = ["{torchvision: DEFAULT}", "{torchvision: IMAGENET1K_V1}", "{torchvision: IMAGENET1K_FEATURES}"]
    assert len({digest(weights) for weights in [*names, "{file: w.pth}", "{file: v.pth}"]}) == 5
    assert digest("{torchvision: DEFAULT}") == digest("{torchvision: DEFAULT, channels: rgb}")


def test_the_models_of_a_search():
    search = (
        "search: {kind: grid, runs: [{name: plain, set: {template.shape: none}}], "
        "grid: {model.weights.torchvision: [IMAGENET1K_V1, IMAGENET1K_FEATURES]}}\n"
    )
    spec = loads(text("network: vgg16, weights: {torchvision: DEFAULT}") + search, "s.yaml").spec
    names = [model.weights.torchvision for model in models_of(spec)]
    assert names == ["DEFAULT", "IMAGENET1K_V1", "IMAGENET1K_FEATURES"]
