"""MatConvNet's files, made small: SimpleNN in both forms and both of MATLAB's file formats."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from fakes.matlab import cell, write_mat

from ipcnn_ray.errors import DataError
from ipcnn_ray.models.build import assemble, build
from ipcnn_ray.models.pretrained_weights import load_weights, read_simplenn
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import NETWORKS
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.utils.matlab import MatFileError

PLAIN = NoTemplate(shape="none")
RGB = np.array([123.7, 116.8, 103.9], np.float32)


def layers(old: bool) -> list[dict[str, Any]]:
    """conv1 and conv4 of `compact`, HWIO, with what lies between them, and a 1 x 1 layer with a single output."""
    generator = np.random.default_rng(0)
    found: list[dict[str, Any]] = []
    for name, (height, inputs, outputs) in {"conv1": (5, 3, 16), "conv4": (3, 32, 32), "fc8": (1, 32, 1)}.items():
        filters = generator.normal(size=(height, height, inputs, outputs)).astype(np.float32)
        biases = generator.normal(size=(1, outputs)).astype(np.float32)
        parameters = {"filters": filters, "biases": biases} if old else {"weights": cell([filters, biases])}
        found.append({"type": "conv", "name": name, "stride": np.array([[1.0, 1.0]]), **parameters})
        found.append({"type": "relu", "name": f"relu_{name}"})
    return found


def content(form: str, average: np.ndarray) -> dict[str, Any]:
    normalization = {"averageImage": average, "imageSize": np.array([[64.0, 64.0, 3.0]])}
    body = {"layers": cell(layers(form == "old"))}
    if form == "old":
        return body | {"normalization": normalization}
    body |= {"meta": {"normalization": normalization}}
    return {"net": body} if form == "net" else body


@pytest.mark.parametrize("version", ["v5", "v7.3"])
@pytest.mark.parametrize("form", ["old", "new", "net"])
def test_the_same_network_in_every_form(tmp_path, version, form):
    write_mat(tmp_path / "w.mat", version, content(form, RGB.reshape(1, 1, 3)))
    arrays, average_image = read_simplenn(tmp_path / "w.mat")
    assert list(arrays) == ["conv1_w", "conv1_b", "conv4_w", "conv4_b", "fc8_w", "fc8_b"]
    for layer in layers(old=True)[::2]:
        name = layer["name"]
        weight = arrays[f"{name}_w"]
        assert weight.dtype == np.float32 and np.array_equal(weight, layer["filters"].transpose(3, 2, 0, 1))
        assert np.array_equal(arrays[f"{name}_b"], layer["biases"][0])
    assert np.allclose(average_image, RGB)


@pytest.mark.parametrize("version", ["v5", "v7.3"])
def test_listed_layers_are_loaded_and_the_report_says_what_was_not(tmp_path, version):
    average = np.broadcast_to(RGB, (64, 64, 3)) + np.random.default_rng(0).normal(size=(64, 64, 3)).astype(np.float32)
    write_mat(tmp_path / "w.mat", version, content("new", average))
    model = Model(network="compact", weights=Weights(file="w.mat", layers=("conv1", "conv4")))
    net = build(model, PLAIN, 0)
    report = load_weights(net, model.table, model.weights, tmp_path)
    conv1, _, conv4, *_ = layers(old=True)
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
    write_mat(tmp_path / "w.mat", "v5", content("new", RGB.reshape(1, 1, 3)))
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
    write_mat(tmp_path / "w.mat", "v5", content("new", np.full((1, 1, 3), 110.0)))
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
        write_mat(tmp_path / "w.mat", version, content("new", RGB.reshape(1, 1, 3)))
        whole = (tmp_path / "w.mat").read_bytes()
        for part, told in ((whole[: len(whole) // 2], "is a damaged MATLAB v"), (b"PK", "is not a MATLAB")):
            (tmp_path / "w.mat").write_bytes(part)
            with pytest.raises(DataError, match=told):
                load_weights(build(model, PLAIN, 0), model.table, model.weights, tmp_path)
