"""Weight files of every kind; MatConvNet's made small: SimpleNN in both forms and both of MATLAB's file formats."""

from __future__ import annotations

import hashlib
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from fakes.matlab import cell, write_mat
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models.vgg import cfgs, make_layers

from ipcnn_ray.errors import DataError
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.pretrained_weights import LoadReport, load_weights, read_simplenn, read_weights
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import NETWORKS
from ipcnn_ray.spec.template import GradientTemplate, NoTemplate
from ipcnn_ray.utils.matlab import MatFileError

PLAIN = NoTemplate(shape="none")
COMPACT = NETWORKS["compact"]
ALL = COMPACT.convs


def compact() -> InterpretableNet:
    return build(Model(network="compact"), PLAIN, 0)


def arrays() -> dict[str, np.ndarray]:
    """A whole file for `compact`: weights of another seed."""
    net = build(Model(network="compact"), PLAIN, 9)
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


def test_all_layers_of_the_original_network_are_the_default(tmp_path):
    np.savez(tmp_path / "w.npz", **arrays())
    report = load_weights(compact(), COMPACT, Weights(file="w.npz"), tmp_path)
    assert report.loaded == ("conv1", "conv2", "conv3", "conv4") and report.random == ("conv5",)
    assert not report.partial  # the appended conv5 is always new
    assert load(compact(), tmp_path, ALL[:-1]).partial and not load(compact(), tmp_path, ALL).partial


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
    torch.save({"conv1.weight": Trap()}, tmp_path / "w.pt")
    (found,) = issues(tmp_path, file="w.pt")
    assert "w.pt  cannot be read: Weights only load failed" in found
    assert found.endswith("torch.save(network.state_dict(), file), or write it as .safetensors.")
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
    content = (tmp_path / "w.npz").read_bytes()
    middle = len(content) // 2
    (tmp_path / "w.npz").write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])
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
        load_weights(assemble(model, PLAIN, device="meta"), model.table, model.weights, tmp_path)


def test_a_state_dict(tmp_path):
    state = {key.replace("_w", ".weight").replace("_b", ".bias"): torch.from_numpy(v) for key, v in arrays().items()}
    torch.save({"state_dict": state}, tmp_path / "w.pt")
    net = compact()
    load(net, tmp_path, file="w.pt", pixels="raw", channels="rgb")
    assert np.array_equal(net.layer("conv2").weight.detach(), arrays()["conv2_w"])
    assert np.array_equal(net.layer("conv1").weight.detach(), arrays()["conv1_w"])
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
    net = build(model, PLAIN, 0)
    with pytest.raises(DataError, match=r"has no array conv4_w\n +Complete in the file: conv1, conv2, conv3, conv5\."):
        load_weights(net, model.table, model.weights, real_weights)


RGB = np.array([123.7, 116.8, 103.9], np.float32)


def matconvnet_layers(old: bool) -> list[dict[str, Any]]:
    """Its conv1 and conv4 of `compact`, HWIO, with what lies between them, and a 1 x 1 layer with a single output."""
    generator = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    for name, (height, inputs, outputs) in {"conv1": (5, 3, 16), "conv4": (3, 32, 32), "fc8": (1, 32, 1)}.items():
        filters = generator.normal(size=(height, height, inputs, outputs)).astype(np.float32)
        biases = generator.normal(size=(1, outputs)).astype(np.float32)
        parameters = {"filters": filters, "biases": biases} if old else {"weights": cell([filters, biases])}
        found.append({"type": "conv", "name": name, "stride": np.array([[1.0, 1.0]]), **parameters})
        found.append({"type": "relu", "name": f"relu_{name}"})
    return found


def matconvnet(form: str, average: np.ndarray) -> dict[str, Any]:
    normalization = {"averageImage": average, "imageSize": np.array([[64.0, 64.0, 3.0]])}
    body = {"layers": cell(matconvnet_layers(form == "old"))}
    if form == "old":
        return body | {"normalization": normalization}
    body |= {"meta": {"normalization": normalization}}
    return {"net": body} if form == "net" else body


@pytest.mark.parametrize("version", ["v5", "v7.3"])
@pytest.mark.parametrize("form", ["old", "new", "net"])
def test_the_same_network_in_every_form(tmp_path, version, form):
    write_mat(tmp_path / "w.mat", version, matconvnet(form, RGB.reshape(1, 1, 3)))
    arrays, average_image = read_simplenn(tmp_path / "w.mat")
    assert list(arrays) == ["conv1_w", "conv1_b", "conv4_w", "conv4_b", "fc8_w", "fc8_b"]
    for layer in matconvnet_layers(old=True)[::2]:
        name = layer["name"]
        weight = arrays[f"{name}_w"]
        assert weight.dtype == np.float32 and np.array_equal(weight, layer["filters"].transpose(3, 2, 0, 1))
        assert np.array_equal(arrays[f"{name}_b"], layer["biases"][0])
    assert np.allclose(average_image, RGB)


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_listed_layers_are_loaded_and_the_report_says_what_was_not(tmp_path, version):
    average = np.broadcast_to(RGB, (64, 64, 3)) + np.random.default_rng(0).normal(size=(64, 64, 3)).astype(np.float32)
    write_mat(tmp_path / "w.mat", version, matconvnet("new", average))
    model = Model(network="compact", weights=Weights(file="w.mat", layers=("conv1", "conv4")))
    net = build(model, PLAIN, 0)
    report = load_weights(net, model.table, model.weights, tmp_path)
    conv1, _, conv4, *_ = matconvnet_layers(old=True)
    assert np.array_equal(net.layer("conv1").weight.detach(), conv1["filters"].transpose(3, 2, 0, 1))
    assert np.array_equal(net.layer("conv4").bias.detach(), conv4["biases"][0])
    assert report.partial and report.random == ("conv2", "conv3", "conv5")
    assert report.text.splitlines()[:3] == [
        "loaded from w.mat: conv1, conv4",
        "not loaded, random at first: conv2, conv3, conv5, and the head",
        "in the file and not used: fc8_w, fc8_b",
    ]
    assert report.text.splitlines()[3].startswith("the file's first layer saw RGB (confirmed: its averageImage has")


def test_a_wrong_channel_order_is_told_where_the_file_shows_it(tmp_path):
    write_mat(tmp_path / "w.mat", "v5", matconvnet("new", RGB.reshape(1, 1, 3)))
    model = Model(network="compact", weights=Weights(file="w.mat", layers=("conv1",), channels="bgr"))
    net = build(model, PLAIN, 0)
    before = net.layer("conv1").weight.clone()
    told = (
        r"model\.weights\.channels = 'bgr', but its averageImage has channel means 123\.7, 116\.8, 103\.9, as "
        r"ImageNet's in that order\n       Say channels: rgb, or name the file that was meant\."
    )
    with pytest.raises(DataError, match=told):
        load_weights(net, model.table, model.weights, tmp_path)
    assert torch.equal(net.layer("conv1").weight, before)
    write_mat(tmp_path / "w.mat", "v5", matconvnet("new", np.full((1, 1, 3), 110.0)))
    assert "as stated; the file does not say" in load_weights(net, model.table, model.weights, tmp_path).text


@pytest.mark.parametrize("name", ["alexnet", "vgg_m", "vgg_s", "vgg16"])
@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_the_four_networks_have_matconvnets_names_and_shapes(tmp_path, name, version):
    """Every convolution is found and fits, but for the last, which is one filter short here."""
    net = assemble(Model(network=name), PLAIN, device="meta")
    held = []
    for layer in NETWORKS[name].convs:
        out, inputs, rows, cols = net.layer(layer).weight.shape
        filters = np.zeros((rows, cols, inputs, out), np.float32)
        held.append({"type": "conv", "name": layer, "weights": cell([filters, np.zeros((1, out), np.float32)])})
    held[-1]["weights"][0, 0] = held[-1]["weights"][0, 0][..., :-1]
    write_mat(tmp_path / "w.mat", version, {"layers": cell(held)})
    model = Model(network=name, weights=Weights(file="w.mat"))
    with pytest.raises(DataError) as caught:
        load_weights(net, model.table, model.weights, tmp_path)
    (problem,) = caught.value.issues
    out, *rest = net.layer(NETWORKS[name].last_conv).weight.shape
    assert problem.what == f"{NETWORKS[name].last_conv}_w has shape {(out - 1, *rest)}"


@pytest.mark.real_data
def test_alexnets_mat_is_its_npz(tmp_path, real_weights):
    """The real layers, RGB and HWIO as MatConvNet has them, load as the BGR, OIHW file does."""
    names = ("conv1", "conv2", "conv3", "conv5")
    held = []
    with np.load(real_weights / "bvlc_alexnet_conv1235.npz", allow_pickle=False) as file:
        for name in names:
            weight = file[f"{name}_w"]
            weight = weight[:, ::-1] if name == "conv1" else weight
            pair = cell([np.ascontiguousarray(weight.transpose(2, 3, 1, 0)), file[f"{name}_b"][None]])
            held.append({"type": "conv", "name": name, "weights": pair})
    with np.load(real_weights / "mean_images.npz", allow_pickle=False) as file:
        average = file["alexnet_mean_rgb_chw_227_matlab"].transpose(1, 2, 0)
    meta = {"normalization": {"averageImage": average}}
    write_mat(tmp_path / "w.mat", "v5", {"layers": cell(held), "meta": meta})
    nets = []
    for file, folder in (("w.mat", tmp_path), ("bvlc_alexnet_conv1235.npz", real_weights)):
        model = Model(network="alexnet", weights=Weights(file=file, layers=names))
        net = assemble(model, PLAIN)
        assert "(confirmed: " in load_weights(net, model.table, model.weights, folder).text
        nets.append(net)
    for name in names:
        assert torch.equal(nets[0].layer(name).weight, nets[1].layer(name).weight)
        assert torch.equal(nets[0].layer(name).bias, nets[1].layer(name).bias)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"x": np.ones(3)}, "has no cell array `layers`"),
        ({"layers": cell([{"type": "relu"}]), "params": np.ones(3)}, "is a DagNN network of MatConvNet"),
    ],
)
def test_another_mat_file_is_told(tmp_path, values, told):
    write_mat(tmp_path / "w.mat", "v5", values)
    with pytest.raises(MatFileError, match=told):
        read_simplenn(tmp_path / "w.mat")


def test_a_damaged_file_is_told(tmp_path):
    model = Model(network="compact", weights=Weights(file="w.mat", layers=("conv1",)))
    for version in ("v5", "v7.3"):
        write_mat(tmp_path / "w.mat", version, matconvnet("new", RGB.reshape(1, 1, 3)))
        whole = (tmp_path / "w.mat").read_bytes()
        for part, told in ((whole[: len(whole) // 2], "is a damaged MATLAB v"), (b"PK", "is not a MATLAB")):
            (tmp_path / "w.mat").write_bytes(part)
            with pytest.raises(DataError, match=told):
                load_weights(build(model, PLAIN, 0), model.table, model.weights, tmp_path)


def npy(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"1234"


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ("(10**13,)", "cannot be read"),
        ("(10000000000000,)", "conv1_w.npy has more than 2 GB"),
        ("(1000000000,)", "conv1_w.npy has more than 2 GB"),
        ("(1000,)", "cannot be read"),
    ],
)
def test_an_npz_that_claims_more_than_it_has(tmp_path, shape, says):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("conv1_w.npy", npy(shape))
    with pytest.raises(DataError, match=says):
        read_weights(tmp_path / "a.npz", {"conv1_w"})


class Code:
    """Makes a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_no_weight_file_runs_code(tmp_path):
    code = Code(tmp_path / "it ran")
    torch.save({"conv1.weight": code}, tmp_path / "a.pth")
    (tmp_path / "b.pth").write_bytes(pickle.dumps(code))
    np.savez(tmp_path / "c.npz", conv1_w=np.array([code], object))
    np.savez(tmp_path / "d.npz", meta=np.array([code], object))
    for name in ("a.pth", "b.pth", "c.npz", "d.npz"):
        with pytest.raises(DataError, match="cannot be read"):
            read_weights(tmp_path / name, {"conv1.weight", "conv1_w"})
    assert not code.mark.exists()
    pickle.loads((tmp_path / "b.pth").read_bytes())
    assert code.mark.exists()  # the file could have


@pytest.mark.parametrize("tensor", [torch.empty(2, device="meta"), torch.eye(2).to_sparse()], ids=["meta", "sparse"])
def test_a_tensor_without_plain_values(tmp_path, tensor):
    torch.save({"conv1.weight": tensor}, tmp_path / "a.pth")
    with pytest.raises(DataError, match=r"conv1.weight is sparse, quantized or without values"):
        read_weights(tmp_path / "a.pth", {"conv1.weight"})
