from __future__ import annotations

import hashlib
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from ipcnn_ray.errors import DataError
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.pretrained_weights import LoadReport, load_weights
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import NETWORKS
from ipcnn_ray.spec.template import GradientTemplate, NoTemplate

COMPACT = NETWORKS["compact"]
ALL = COMPACT.convs


def compact() -> InterpretableNet:
    return build(Model(network="compact"), NoTemplate(shape="none"), 0)


def arrays() -> dict[str, np.ndarray]:
    """A whole file for `compact`: weights of another seed."""
    net = build(Model(network="compact"), NoTemplate(shape="none"), 9)
    found = {}
    for name in ALL:
        found[f"{name}_w"] = net.layer(name).weight.detach().numpy()
        found[f"{name}_b"] = np.full(net.layer(name).out_channels, 0.5, np.float32)
    return found


def load(net: InterpretableNet, folder: Path | None, layers: tuple[str, ...] = ALL, **more: str) -> LoadReport:
    return load_weights(net, COMPACT, Weights(**{"file": "w.npz", "layers": layers, **more}), folder)


def issues(folder: Path | None, **more: object) -> list[str]:
    """The problems of loading, after checking that nothing was loaded."""
    net = compact()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(DataError) as caught:
        load(net, folder, **more)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    return [str(problem) for problem in caught.value.issues]


@pytest.mark.parametrize("file", ["w.npz", "w.safetensors"])
def test_listed_layers_come_from_the_file_and_the_others_stay(tmp_path, file):
    if file == "w.npz":
        np.savez(tmp_path / file, **arrays())
    else:
        save_file({key: torch.from_numpy(value) for key, value in arrays().items()}, tmp_path / file)
    net, fresh = compact(), compact()
    report = load(net, tmp_path, ("conv1", "conv3"), file=file, channels="rgb")
    assert report.loaded == ("conv1", "conv3") and report.random == ("conv2", "conv4", "conv5")
    assert report.digest == hashlib.sha256((tmp_path / file).read_bytes()).hexdigest()
    for name in ("conv1", "conv3"):
        assert np.array_equal(net.layer(name).weight.detach(), arrays()[f"{name}_w"])
        assert np.array_equal(net.layer(name).bias.detach(), arrays()[f"{name}_b"])
    for name in ("conv2", "conv4", "conv5"):
        assert torch.equal(net.layer(name).weight, fresh.layer(name).weight)


def test_partial_asks_for_the_original_networks_convolutions_only(tmp_path):
    np.savez(tmp_path / "w.npz", **arrays())
    assert load(compact(), tmp_path, ALL[:-1]).partial
    assert not load(compact(), tmp_path, ALL).partial  # the appended conv5 is always new


def test_bgr_weights_see_the_same_in_a_network_that_sees_rgb(tmp_path):
    np.savez(tmp_path / "w.npz", **arrays())
    rgb, bgr = compact(), compact()
    load(rgb, tmp_path, channels="rgb")
    load(bgr, tmp_path, channels="bgr")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(bgr(x), rgb(x.flip(1)))
    assert torch.equal(rgb.layer("conv2").weight, bgr.layer("conv2").weight)


def test_every_wrong_array_is_told_at_once(tmp_path):
    wrong = arrays()
    del wrong["conv4_w"]
    wrong["conv1_w"] = wrong["conv1_w"][:, :2]
    wrong["conv2_b"] = np.full(32, np.nan, np.float32)
    wrong["conv3_b"] = np.zeros(32, np.int64)
    np.savez(tmp_path / "w.npz", **wrong)
    found = issues(tmp_path, layers=("conv1", "conv2", "conv3", "conv4", "conv44"))
    where = tmp_path / "w.npz"
    assert found == [
        f"{where}  conv1_w has shape (16, 2, 5, 5)\n"
        "       The network's is (16, 3, 5, 5) (out, in / groups, rows, columns): another network's file?",
        f"{where}  conv2_b (float32) is not all finite floating-point numbers\n       Write it as finite float32.",
        f"{where}  conv3_b (int64) is not all finite floating-point numbers\n       Write it as finite float32.",
        f"{where}  model.weights.layers has 'conv4': the file has no array conv4_w\n"
        "       Complete in the file: conv1, conv2, conv3. Leave 'conv4' out of model.weights.layers (the run is then "
        "tagged as using partial weights), or name another file.",
        f"{where}  model.weights.layers has 'conv44': the network has no such convolution\n"
        "       It has conv1, conv2, conv3, conv4, conv5. Did you mean 'conv4'?",
    ]


def test_a_missing_folder_or_file_is_told(tmp_path):
    (found,) = issues(None)
    assert found == (
        "IPCNN_WEIGHTS  model.weights.file = 'w.npz', and IPCNN_WEIGHTS is not set\n"
        "       Set IPCNN_WEIGHTS to the folder that holds the file, on every machine that trains."
    )
    (tmp_path / "other.npz").touch()
    (found,) = issues(tmp_path)
    assert found == (
        f"{tmp_path / 'w.npz'}  model.weights.file = 'w.npz': no such file\n"
        f"       IPCNN_WEIGHTS = {tmp_path} holds other.npz."
    )
    (found,) = issues(tmp_path / "nowhere")
    assert found.endswith("holds no .npz or .safetensors file.")


class Trap:
    """Unpickling it would be seen."""

    sprung = False

    def __reduce__(self):
        return (setattr, (Trap, "sprung", True))


def test_nothing_is_unpickled(tmp_path):
    np.savez(tmp_path / "w.npz", conv1_w=np.array([Trap()], dtype=object))
    assert "cannot be read: Object arrays cannot be loaded" in issues(tmp_path)[0]
    (tmp_path / "w.npz").write_bytes(pickle.dumps(Trap()))
    assert "cannot be read" in issues(tmp_path)[0]
    assert not Trap.sprung


@pytest.mark.parametrize("file", ["w.npz", "w.safetensors"])
@pytest.mark.parametrize("left", [0, 10, 20_000])
def test_a_truncated_file_is_told(tmp_path, file, left):
    np.savez(tmp_path / "w.npz", **arrays())
    save_file({key: torch.from_numpy(value) for key, value in arrays().items()}, tmp_path / "w.safetensors")
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:left])
    (found,) = issues(tmp_path, file=file)
    assert f"{tmp_path / file}  cannot be read" in found
    assert f"A whole .{file.split('.')[1]} file of plain numbers is needed" in found


def test_a_damaged_array_is_told(tmp_path):
    np.savez_compressed(tmp_path / "w.npz", **arrays())
    content = bytearray((tmp_path / "w.npz").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = bytes(100)
    (tmp_path / "w.npz").write_bytes(content)
    assert "cannot be read" in issues(tmp_path)[0]


def test_torchvisions_vgg16_is_the_tables(tmp_path):
    """Its state dict, RGB 0..1 over the standard deviations, and images of 32 px: the same maps, padding included."""
    original = nn.Sequential(*list(make_layers(cfgs["D"]))[:-1]).eval()  # without the last pooling
    torch.save({f"features.{key}": value for key, value in original.state_dict().items()}, tmp_path / "vgg16.pth")
    small = replace(NETWORKS["vgg16"], image_size=32, head=())
    net = InterpretableNet(small, appended=False, interpretable=["conv5_3"]).eval()
    report = load_weights(net, small, Weights(file="vgg16.pth"), tmp_path)
    assert report.loaded == small.convs and not report.partial
    x = 255 * torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([[[0.485]], [[0.456]], [[0.406]]]), torch.tensor([[[0.229]], [[0.224]], [[0.225]]])
    with torch.no_grad():
        expected = original((x / 255 - mean) / std)
        maps = net((x - 255 * mean) * small.input_scale, full=True).maps["conv5_3"]
    torch.testing.assert_close(maps, expected, rtol=1e-4, atol=1e-5 * expected.max().item())
    assert expected.any()
    assert report.text.splitlines() == [
        "loaded from vgg16.pth: " + ", ".join(small.convs),
        "not loaded, random at first: nothing, and the head",
        "in the file and not used: nothing",
        "the file's first layer saw RGB (as stated; the file does not say), 0..1 less a mean, over torchvision's "
        "standard deviations; its weights: scaled; images are centred on the training split's own mean",
    ]


def test_torchvisions_alexnet_is_another_network(tmp_path):
    state = torchvision.models.alexnet(weights=None).features.state_dict()
    torch.save({f"features.{key}": value for key, value in state.items()}, tmp_path / "w.pth")
    model = Model(network="alexnet", weights=Weights(file="w.pth"))
    told = r"features\.0\.weight has shape \(64, 3, 11, 11\)\n +The network's is \(96, 3, 11, 11\)"
    with pytest.raises(DataError, match=told):
        load_weights(assemble(model, NoTemplate(shape="none"), device="meta"), model.table, model.weights, tmp_path)


def test_a_state_dict_is_read_without_unpickling(tmp_path):
    state = {key.replace("_w", ".weight").replace("_b", ".bias"): torch.from_numpy(v) for key, v in arrays().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    net = compact()
    load(net, tmp_path, file="w.pt", pixels="raw", channels="rgb")
    assert np.array_equal(net.layer("conv2").weight.detach(), arrays()["conv2_w"])
    assert np.array_equal(net.layer("conv1").weight.detach(), arrays()["conv1_w"])
    torch.save({"conv1.weight": Trap()}, tmp_path / "w.pt")
    (found,) = issues(tmp_path, file="w.pt")
    assert "w.pt  cannot be read: Weights only load failed" in found
    assert found.endswith("torch.save(network.state_dict(), file), or write it as .safetensors.")
    assert not Trap.sprung
    torch.save([1, 2], tmp_path / "w.pt")
    assert "it holds a list, not a state dict" in issues(tmp_path, file="w.pt")[0]


def test_an_npz_that_says_its_channel_order_is_believed(tmp_path):
    np.savez(tmp_path / "w.npz", meta="Caffe, RGB input, 0..255", **arrays())
    (found,) = issues(tmp_path, channels="bgr")
    assert found == (
        f"{tmp_path / 'w.npz'}  model.weights.channels = 'bgr', but its `meta` says 'Caffe, RGB input, 0..255'\n"
        "       Say channels: rgb, or name the file that was meant."
    )
    assert "RGB (confirmed: its `meta` says" in load(compact(), tmp_path, channels="rgb").text


def test_all_layers_of_the_original_network_are_the_default(tmp_path):
    np.savez(tmp_path / "w.npz", **arrays())
    report = load_weights(compact(), COMPACT, Weights(file="w.npz"), tmp_path)
    assert report.loaded == ("conv1", "conv2", "conv3", "conv4") and report.random == ("conv5",)
    assert not report.partial


def plain_alexnet(w: dict[str, torch.Tensor], x_rgb: torch.Tensor) -> dict[str, torch.Tensor]:
    """Caffe's AlexNet up to relu5, written out from the README beside the weight file; it sees BGR."""
    x = x_rgb[:, [2, 1, 0]]
    out = {}
    for name, stride, pad, groups in (("conv1", 4, 0, 1), ("conv2", 1, 2, 2)):
        x = F.relu(F.conv2d(x, w[f"{name}_w"], w[f"{name}_b"], stride=stride, padding=pad, groups=groups))
        x = F.local_response_norm(x, 5, 1e-4, 0.75, 1)
        x = F.max_pool2d(x, 3, 2, ceil_mode=True)
    for name, groups in (("conv3", 1), ("conv4", 2), ("conv5", 2)):
        x = F.relu(F.conv2d(x, w[f"{name}_w"], w[f"{name}_b"], padding=1, groups=groups))
        out[name] = x
    return out


@pytest.mark.real_data
def test_alexnet_with_caffes_weights_equals_the_plain_program(real_weights):
    model = Model(
        network="alexnet",
        weights=Weights(file="bvlc_alexnet_conv1235.npz", layers=("conv1", "conv2", "conv3", "conv5")),
    )
    net = build(model, GradientTemplate(shape="gradient"), 0).eval()
    report = load_weights(net, model.table, model.weights, real_weights)
    assert report.loaded == ("conv1", "conv2", "conv3", "conv5") and report.random == ("conv4", "conv6")
    assert report.partial
    with np.load(real_weights / model.weights.file, allow_pickle=False) as file:
        w = {key: torch.from_numpy(file[key]) for key in file if key != "meta"}
    w["conv4_w"], w["conv4_b"] = net.layer("conv4").weight.detach(), net.layer("conv4").bias.detach()
    x = 255 * torch.rand(2, 3, 227, 227, generator=torch.Generator().manual_seed(0)) - 110
    expected = plain_alexnet(w, x)
    net.freeze_through("conv3")
    features = net.frozen_features(x)
    torch.testing.assert_close(features, expected["conv3"], rtol=1e-5, atol=1e-5 * expected["conv3"].max().item())
    maps = net(x, full=True).maps["conv5"].detach()
    torch.testing.assert_close(maps, expected["conv5"], rtol=1e-5, atol=1e-5 * expected["conv5"].max().item())
    assert features.count_nonzero() > features.numel() / 20  # not dead


@pytest.mark.real_data
def test_the_missing_layer_of_caffes_file_is_told(real_weights):
    model = Model(network="alexnet", weights=Weights(file="bvlc_alexnet_conv1235.npz", layers=("conv3", "conv4")))
    net = build(model, NoTemplate(shape="none"), 0)
    with pytest.raises(DataError, match=r"has no array conv4_w\n +Complete in the file: conv1, conv2, conv3, conv5\."):
        load_weights(net, model.table, model.weights, real_weights)
