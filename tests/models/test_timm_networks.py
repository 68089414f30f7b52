"""Networks of timm: cut, loaded by name and from files, and what is told where they cannot be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from models.test_backbones import close, images, randomised
from safetensors.torch import save_file
from torch import nn

from ipcnn_ray.core.receptive_field import Field
from ipcnn_ray.errors import DataError, SpecError
from ipcnn_ray.models.backbones import BackboneCutError, backbone_blocks
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.models.model_checks import check_backbones
from ipcnn_ray.models.named_weights import input_mean, named_weights
from ipcnn_ray.models.pretrained_weights import load_pretrained
from ipcnn_ray.models.timm_networks import timm_network
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import Trunk
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.train.data_sync import fetch_weights
from ipcnn_ray.utils.paths import Paths

timm = pytest.importorskip("timm", reason="needs timm: pip install ipcnn-ray[timm]")
PLAIN = NoTemplate(shape="none")
NAMED = Model(network="timm/resnet18", cut="layer2.0", image_size=65, weights=Weights(timm="a1_in1k"))


def original(name: str) -> nn.Module:
    return randomised(timm.create_model(name))


def at(folder: Path) -> Paths:
    return Paths.from_environment({"IPCNN_HOME": str(folder / "home"), "IPCNN_WEIGHTS": str(folder)})


def below_layer2_1(network: nn.Module, x: torch.Tensor) -> torch.Tensor:
    x = network.maxpool(network.act1(network.bn1(network.conv1(x))))
    return network.layer2[0](network.layer1(x))


def test_a_resnet_computes_what_timms_does(tmp_path):
    """Weights by name, whose preprocessing is that of timm's configuration."""
    network, x = original("resnet18"), images(2, 65)
    save_file(network.state_dict(), tmp_path / "resnet18.a1_in1k.safetensors")
    net = build(NAMED, PLAIN, 0).eval()
    report = load_pretrained(net, NAMED, at(tmp_path))
    assert not report.partial and report.random == ("appended",)
    assert "resnet18.a1_in1k.safetensors (timm's a1_in1k of resnet18): conv1, bn1, layer1.0" in report.text
    config = network.pretrained_cfg
    mean, std = (torch.tensor(config[name]).reshape(3, 1, 1) for name in ("mean", "std"))
    seen = (x - torch.tensor(input_mean(NAMED)).reshape(3, 1, 1)) * NAMED.table.input_scale
    close(net(seen, full=True).maps["layer2.0"], below_layer2_1(network, (x / 255 - mean) / std))
    assert layer_receptive_field(NAMED, "layer2.0") == Field(8, 67, 0.0)


@pytest.mark.parametrize("file", ["own.pth", "own.safetensors"])
def test_files_of_ones_own_are_taken_for_rgb_and_normalised(tmp_path, file):
    network = original("resnet18")
    save = save_file if file.endswith("safetensors") else torch.save
    save(network.state_dict(), tmp_path / file)
    model = NAMED.model_copy(update={"weights": Weights(file=file)})
    net = build(model, PLAIN, 0)
    assert "saw RGB" in load_pretrained(net, model, at(tmp_path)).text and input_mean(model) is None
    scale = 255 * torch.tensor([0.229, 0.224, 0.225]) * model.table.input_scale
    assert torch.equal(net.layer("conv1").weight, network.conv1.weight / scale.reshape(1, 3, 1, 1))


def test_every_tag_has_an_address_and_a_preprocessing():
    for network in ("resnet18", "vgg16", "convnext_tiny", "inception_v3", "efficientnet_b0"):
        for key in timm.list_pretrained(f"{network}.*"):
            tag = key.partition(".")[2]
            named = named_weights(Model(network=f"timm/{network}", cut="x", weights=Weights(timm=tag)))
            config = timm.models.get_pretrained_cfg(key)
            assert named.mean == pytest.approx([255 * value for value in config.mean])
            assert named.std == pytest.approx([255 * value for value in config.std])
            assert named.file == f"{key}.safetensors"
            assert named.url == f"https://huggingface.co/{config.hf_hub_id}/resolve/main/model.safetensors"
    default = named_weights(Model(network="timm/resnet18", cut="x", weights=Weights(timm="DEFAULT")))
    assert default.label == f"timm's {timm.models.get_pretrained_cfg('resnet18').tag} of resnet18"


def test_weights_come_from_the_hub_that_is_named(tmp_path, monkeypatch):
    published = tmp_path / "hub" / "timm" / "resnet18.a1_in1k" / "resolve" / "main" / "model.safetensors"
    published.parent.mkdir(parents=True)
    published.write_bytes(b"weights")
    monkeypatch.setenv("HF_ENDPOINT", f"file://{tmp_path}/hub")
    fetch_weights([NAMED], at(tmp_path), shared=False)
    assert (tmp_path / "resnet18.a1_in1k.safetensors").read_bytes() == b"weights"


def test_without_a_connection_the_file_and_its_place_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError) as caught:
        fetch_weights([NAMED], at(tmp_path), shared=False)
    (problem,) = caught.value.issues
    assert problem.where == "http://127.0.0.1:9/timm/resnet18.a1_in1k/resolve/main/model.safetensors"
    assert problem.advice.endswith(f"put it here as {tmp_path / 'resnet18.a1_in1k.safetensors'}")


def test_a_network_with_gates_keeps_the_places_of_its_cells():
    model = Model(network="timm/mobilenetv3_small_100", cut="blocks.1.0", image_size=64)
    field = layer_receptive_field(model, "blocks.1.0")
    assert (field.stride, field.first_center, field.whole) == (8, 0.0, True)
    net = assemble(model, PLAIN, device="meta").eval()
    assert net(torch.empty(2, 3, 64, 64, device="meta")).shape == (2,)


def told(model: str) -> list[str]:
    others = "name: t\ndata: {kind: drawn_animals}\ntrain: {epochs: 4}\ntemplate: {shape: uniform}\n"
    with pytest.raises(SpecError) as caught:
        check_backbones(loads(f"model: {{{model}}}\n{others}", "s.yaml"))
    return [part.strip() for problem in caught.value.issues for part in str(problem).split("\n")]


def test_unknown_names_are_told():
    assert told("network: timm/resnet, cut: layer1.1")[0] == "s.yaml:1  model.network = 'timm/resnet'"
    (_, what) = told("network: timm/resnet_18, cut: layer1.1, weights: {timm: DEFAULT}")
    assert what == f"is no network of timm {timm.__version__}. Did you mean 'resnet18'?"
    (where, what) = told("network: timm/resnet18, cut: layer1.1, weights: {timm: a9_in1k}")
    assert where == "s.yaml:1  model.weights.timm = 'a9_in1k'"
    assert what.startswith("timm's weights of resnet18 are a1_in1k, ") and "Did you mean 'a" in what
    (where, what) = told("network: timm/resnet18, cut: layer5.1, weights: {timm: DEFAULT}")
    assert where == "s.yaml:1  model.cut = 'layer5.1'" and what.startswith(
        "timm/resnet18 has no such layer; it has conv1,"
    )


@pytest.mark.parametrize(
    ("network", "cut", "expected"),
    [
        ("vit_tiny_patch16_224", "blocks.0", r"has no such layer|torch\.fx cannot follow|does not put out a map"),
        ("resnetblur50", "layer2.0", r"maxpool\.1 has constants that are in no file of weights\. Cut lower$"),
    ],
)
def test_what_cannot_be_cut_is_told(network, cut, expected):
    with pytest.raises(BackboneCutError, match=expected):
        backbone_blocks(Trunk(f"timm/{network}", cut), 224)


def test_a_network_is_built_without_memory_and_random_numbers():
    before = torch.random.get_rng_state()
    network = timm_network("timm/resnet18")
    assert all(parameter.is_meta for parameter in network.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_what_to_install_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    where, what = told("network: timm/resnet50, cut: layer1.1, weights: {timm: DEFAULT}")
    assert where == "s.yaml:1  model.network = 'timm/resnet50'"
    assert what.startswith("needs timm, which cannot be imported (")
    assert what.endswith("): pip install ipcnn-ray[timm]")
