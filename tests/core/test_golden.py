"""Every check vector of every folder in IPCNN_GOLDEN: the authors' own code, run on random inputs.

Layout and meaning of the files: the README of those folders. The largest error of each kind is printed at the end of
the test run.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from check_vectors import golden_folders, record_error
from torch import Tensor

from ipcnn_ray.core.filter_loss import filter_loss, matching_template
from ipcnn_ray.core.mask import peak_NC
from ipcnn_ray.core.metrics.location_instability import location_instability
from ipcnn_ray.core.receptive_field import Field, centers
from ipcnn_ray.core.released import centroids, groups, linear_mask, masked, released_gradient, strengths, width_gradient
from ipcnn_ray.core.templates import template_bank
from ipcnn_ray.models.layer_geometry import layer_receptive_field, map_side
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.networks import NETWORKS, NetworkName

pytestmark = pytest.mark.real_data
FILES = [file for folder in golden_folders() for file in sorted(folder.glob("*.npz"))]
KINDS = ("exact", "layer", "stability", "rf")


def of_kind(kind: str) -> pytest.MarkDecorator:
    files = [file for file in FILES if file.name.startswith(f"{kind}_")]
    cases = [pytest.param(file, id=f"{file.parent.name}/{file.stem}") for file in files]
    missing = pytest.param(None, marks=pytest.mark.skip(f"no {kind}_*.npz: set IPCNN_GOLDEN to folders that hold them"))
    return pytest.mark.parametrize("file", cases or [missing])


def ours(network: str) -> NetworkName:
    """Our name of a network of the released code."""
    name = network.lower().replace("-", "_").replace("vgg_vd_16", "vgg16").replace("vgg_16", "vgg16")
    assert name in NETWORKS, f"no network {network!r} here"
    return name


def near(kind: str, name: str, found: Tensor | np.ndarray | float, wanted: np.ndarray, at_most: float) -> None:
    """The largest difference is at most this share of the largest wanted entry; NaN stands where it should."""
    found, wanted = np.asarray(found, np.float64), np.asarray(wanted, np.float64)
    assert found.shape == wanted.shape, f"{name}: {found.shape} in place of {wanted.shape}"
    np.testing.assert_array_equal(np.isnan(found), np.isnan(wanted), err_msg=name)
    if not wanted.size or np.isnan(wanted).all():
        return
    largest = float(np.nanmax(np.abs(wanted)))
    error = float(np.nanmax(np.abs(found - wanted))) / (largest or 1.0)
    record_error(kind, error)
    assert error <= at_most, f"{name} is off by {error:.3g} of its largest entry, {largest:.3g}"


def test_no_file_is_left_out():
    unknown = [str(file) for file in FILES if file.name.split("_")[0] not in KINDS]
    assert not unknown, f"check vectors of a kind that no test reads: {unknown}"


@of_kind("exact")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("form", ["exact", "zconst", "single"])
def test_forms_of_the_paper(file: Path, form: str, dtype: torch.dtype):
    vectors, double = np.load(file), dtype == torch.float64
    kind = f"exact, form {form}, {'float64' if double else 'float32'}"
    x_NCHW = torch.tensor(vectors["x"], dtype=dtype, requires_grad=True)
    positive_N1 = torch.tensor(vectors["is_pos"])[:, None]
    loss_C = filter_loss(
        x_NCHW,
        torch.tensor(vectors["templates"], dtype=dtype),
        torch.tensor(vectors["p_T"], dtype=torch.float64).log().to(dtype),
        form=form,
        positive_NC=positive_N1 if form == "single" else None,
    )
    torch.autograd.backward(loss_C.sum())
    bank_Tnn = template_bank(x_NCHW.shape[-1], shape="gradient", norm="l1", beta=4.0, dtype=torch.float64)
    near(kind, "templates", bank_Tnn, vectors["templates"], 1e-14)
    np.testing.assert_array_equal(matching_template(x_NCHW, positive_N1).numpy(), vectors["t_hat"])
    # Absolute, against the largest filter: a filter that tells nothing has a loss of rounding errors alone.
    near(kind, "loss", loss_C.detach(), vectors["loss"], 1e-9 if double else 2e-4)
    near(kind, f"grad_{form}", x_NCHW.grad, vectors[f"grad_{form}"], 1e-9 if double else 1e-5)


@of_kind("layer")
@pytest.mark.parametrize("double", [True, False], ids=["float64", "float32"])
def test_released_layer(file: Path, double: bool):
    vectors = np.load(file)
    dtype = torch.float64 if double else torch.float32
    # Single precision overflows in the authors' code where ours does not: the double keys are right for both.
    overflows = "overflow" in file.stem
    suffix = "_f64" if double or overflows else ""
    kind, bound = f"layer, {'float64' if double else 'float32'}", 1e-9 if double else 1e-5

    def tensor(name: str) -> Tensor:
        return torch.tensor(vectors[name], dtype=dtype)

    def same(name: str, found: Tensor) -> None:
        near(kind, name, found.detach(), vectors[name + suffix], bound)

    x_NCHW, width_C, label_NL = tensor("x").requires_grad_(), tensor("w3"), torch.tensor(vectors["label"])
    filter_C, epoch = torch.tensor(vectors["filter"]), int(vectors["epoch"])
    n, categories, on_C = x_NCHW.shape[-1], label_NL.shape[1], filter_C == 1

    mu = centroids(x_NCHW.detach())
    np.testing.assert_array_equal(mu.row_NC.numpy(), vectors["mu_row_idx"])
    np.testing.assert_array_equal(mu.col_NC.numpy(), vectors["mu_col_idx"])
    same("sigma", mu.sigma_NC)
    axis_n = torch.linspace(-1, 1, n, dtype=torch.float64)
    same("mu_row", axis_n[mu.row_NC])
    same("mu_col", axis_n[mu.col_NC])

    mask_NCHW = linear_mask(mu, width_C, n, on_C)
    same("mask", mask_NCHW)
    inner_NCHW = masked(x_NCHW, mask_NCHW)
    same("masked", inner_NCHW)

    weight, bias = tensor("weight").requires_grad_(), tensor("bias").requires_grad_()
    score_NL = torch.nn.functional.conv2d(inner_NCHW, weight, bias)
    same("conv_out", score_NL)
    loss = torch.nn.functional.softplus(-label_NL.to(dtype) * score_NL[:, :, 0, 0]).sum()
    same("loss", loss)
    torch.autograd.backward(loss)
    same("dW", weight.grad)
    same("db", bias.grad)

    found = strengths(x_NCHW, mask_NCHW, mask_NCHW)
    same("strength", found.template_BC)
    if not overflows:  # there the keys hold what the authors' code was before it repaired infinite entries
        same("alogz_pos", found.alogz_positive_C)
        same("alogz_neg", found.alogz_negative_C)
    class_B = torch.where((label_NL > 0).any(1), label_NL.argmax(1), -1)
    magnitude_CL = torch.tensor(vectors["slicemag"]).double() if vectors["slicemag"].size else None
    density_L = torch.tensor(np.broadcast_to(vectors["density"].ravel(), (categories,)).copy())
    group = groups(class_B, x_NCHW.shape[1], magnitude_CL, density_L)
    added_NCHW = released_gradient(mask_NCHW, found, group, float(vectors["mag"]) / epoch, on_C=on_C)
    same("grad_added", added_NCHW)
    same("grad_total", x_NCHW.grad + added_NCHW)
    # A filter of another type has no loss, but its width is drawn like the others', unless its type is 0.
    same("grad_w3", width_gradient(width_C, mu.sigma_NC, found, group, filter_C > 0))


@of_kind("stability")
def test_location_instability(file: Path):
    vectors = np.load(file)
    side = int(vectors["img"])
    model = Model(network=ours(str(vectors["net"])), interpretable_layers=None)
    layer = model.convs[int(vectors["layer"]) - 1]
    n = vectors["x"].shape[-1]
    x_NCHW = torch.tensor(vectors["x"])
    # Among equal maxima MATLAB takes the first down the columns, we the first along the rows.
    peaks_NC = peak_NC(x_NCHW.transpose(2, 3))
    cells = (peaks_NC % n, peaks_NC // n)
    center_n = centers(layer_receptive_field(model, layer), n)
    positions_NC2 = torch.stack([center_n[cell] for cell in cells], 2)
    near("stability", "pos", positions_NC2 + 1, vectors["pos"], 1e-12)
    near("stability", "score", x_NCHW.amax((2, 3)), vectors["score"], 1e-6)
    found = location_instability(
        positions_NC2,
        x_NCHW.amax((2, 3)),
        torch.tensor(vectors["landmarks"]) - 1,
        side * 2**0.5,
        top_images=int(vectors["topk"]),
    )
    near("stability", "dist_sqrt_var", found.per_filter_C * side * 2**0.5, vectors["dist_sqrt_var"], 1e-9)
    # The authors' code can average over the most stable share of the filters alone.
    kept = found.per_filter_C[~found.per_filter_C.isnan()].sort().values
    kept = kept[: math.floor(len(found.per_filter_C) * float(vectors["ratio"]) + 0.5)]
    if len(kept) == len(found.per_filter_C) - found.dropped:
        near("stability", "stability", found.mean, vectors["stability"], 1e-9)
    near("stability", "stability", kept.mean(), vectors["stability"], 1e-9)


@of_kind("rf")
def test_receptive_fields(file: Path):
    vectors, network = np.load(file), ours(file.stem.removeprefix("rf_"))
    model = Model(network=network, interpretable_layers=None)
    fields = [layer_receptive_field(model, name) for name in model.convs]
    count = len(fields)
    assert count <= len(vectors["stride"])
    near("rf", "stride", [f.stride for f in fields], vectors["stride"][:count], 0)
    near("rf", "center", [f.first_center + 1 for f in fields], vectors["center"][:count], 0)
    near("rf", "map_size", [map_side(model, name) for name in model.convs], vectors["map_size"][:count], 0)
    # `scale` is the size as the released code has it, too large behind a stride: ours is never larger.
    assert all(f.size <= scale for f, scale in zip(fields, vectors["scale"], strict=False))
    measured: Field = fields[int(vectors["metric_layer"]) - 1]
    side = map_side(model, model.convs[int(vectors["metric_layer"]) - 1])
    near("rf", "centers", centers(measured, side) + 1, vectors["centers_1based"], 0)
