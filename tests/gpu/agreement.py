"""The device against the CPU: templates, masks, every form of the filter loss with its gradient, every metric."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from fakes.training import Bench, Runtime, tiny
from rows import check, within
from torch import Tensor

from ipcnn_ray.core.filter_loss import filter_loss
from ipcnn_ray.core.mask import mask_maps, peak_NC
from ipcnn_ray.core.released import centroids, groups, linear_mask, masked, released_gradient, strengths, width_gradient
from ipcnn_ray.core.templates import log_prior, part_templates, template_bank

BOUND = 1e-5
"""Largest error in float32, as a share of the largest number of the float64 result on the CPU."""
METRIC_BOUND = 2e-3
"""Largest difference of a metric: rounding moves the peaks of a few maps."""
SHAPES: dict[str, dict[str, Any]] = {
    "gradient l1": {"shape": "gradient", "norm": "l1", "beta": 4.0},
    "uniform l2": {"shape": "uniform", "norm": "l2", "beta": 2.0, "gamma": 0.5},
    "gaussian": {"shape": "gaussian", "sigma": 0.1},
    "ellipse": {"shape": "ellipse", "beta": 4.0, "aspect": 2.0, "angle": 30.0},
    "ring": {"shape": "ring", "radius": 0.25, "width": 0.25},
}


def agreement(device: str, small: bool, seconds: float) -> list[dict[str, Any]]:
    """Rows of all comparisons."""
    N, C, n = (6, 4, 5) if small else (64, 128, 14)
    # Activations of order 100, as those of the Caffe networks that the paper's tau is made for.
    x_NCHW = 100 * torch.randn(N, C, n, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64).relu()
    rows = [_templates(n, device)]
    rows += [within(f"filter loss {name}", error, BOUND) for name, error in _filter_losses(x_NCHW, device).items()]
    rows += [within(f"released {name}", error, BOUND) for name, error in _released(x_NCHW / 10, device).items()]
    rows += [check("peaks (arg-max)", "equal", bool((peak_NC(x_NCHW) == peak_NC(x_NCHW.to(device)).cpu()).all()))]
    return rows + _metrics(device, small)


def _error(result: Tensor, reference: Tensor) -> float:
    """Largest difference as a share of the largest number of the reference."""
    return float((result.double().cpu() - reference).abs().max() / reference.abs().max().clamp_min(1e-30))


def _templates(n: int, device: str) -> dict[str, Any]:
    errors = [
        _error(
            part_templates(n, tau=1.0, device=torch.device(device), **shape),
            part_templates(n, tau=1.0, **shape).double(),
        )
        for shape in SHAPES.values()
    ]
    return within(f"templates of {len(SHAPES)} shapes", max(errors), BOUND)


def _filter_losses(x_NCHW: Tensor, device: str) -> dict[str, float]:
    """Form -> largest error of the loss and of its gradient, over some shapes; then those of the mask."""
    N, C, n, _ = x_NCHW.shape
    positive_NC = (torch.arange(N) % 2 == 0)[:, None]

    def result(x: Tensor, form: str, shape: dict[str, Any]) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        where = {"device": x.device}
        bank_Tnn = template_bank(n, **shape, **where).to(x.dtype)
        prior_T = log_prior(n, **where).to(x.dtype)
        loss_C = filter_loss(
            x, bank_Tnn, prior_T, form=form, positive_NC=positive_NC.to(x.device) if form == "single" else None
        )
        loss_C.sum().backward()
        return loss_C.detach(), x.grad

    def masked_maps(x: Tensor, shape: dict[str, Any]) -> tuple[Tensor, Tensor]:
        x = x.clone().requires_grad_()
        y_NCHW = mask_maps(x, part_templates(n, tau=1.0, **shape, device=x.device).to(x.dtype))
        (y_NCHW**2).mean().backward()
        return y_NCHW.detach(), x.grad

    errors, x_device = {}, x_NCHW.float().to(device)
    shapes = [SHAPES[name] for name in ("gradient l1", "uniform l2", "gaussian")]
    pairs = {
        form: [(result(x_device, form, shape), result(x_NCHW.float().double(), form, shape)) for shape in shapes]
        for form in ("exact", "zconst", "single")
    }
    pairs["mask"] = [(masked_maps(x_device, shape), masked_maps(x_NCHW.float().double(), shape)) for shape in shapes]
    for name, results in pairs.items():
        errors[f"{name}: value"] = max(_error(ours[0], reference[0]) for ours, reference in results)
        errors[f"{name}: gradient"] = max(_error(ours[1], reference[1]) for ours, reference in results)
    own_CTnn = template_bank(n, **SHAPES["gradient l1"]).double().expand(C, -1, -1, -1).contiguous()
    args = own_CTnn, log_prior(n).double()
    reference_C = filter_loss(x_NCHW.float().double(), *args)
    device_C = filter_loss(x_NCHW.float().to(device), *(tensor.float().to(device) for tensor in args))
    errors["exact, templates of each filter's own: value"] = _error(device_C, reference_C)
    return errors


def _released(x_NCHW: Tensor, device: str) -> dict[str, float]:
    """What the released layer computes -> largest error. Its exponent s / 0.5 multiplies the rounding of s by s, so the
    activations are of order 10."""
    N, C, n, _ = x_NCHW.shape
    class_N = (torch.arange(N) % 3 == 0).long() - 1

    def result(x: Tensor) -> dict[str, Tensor]:
        mu = centroids(x)
        width_C = torch.full((C,), 2.0, device=x.device, dtype=x.dtype)
        mask_NCHW = linear_mask(mu, width_C, n)
        strength = strengths(x, mask_NCHW, mask_NCHW)
        group = groups(class_N.to(x.device), C, None, torch.full((1,), 0.25, device=x.device))
        return {
            "mask": mask_NCHW,
            "masked maps": masked(x, mask_NCHW),
            "gradient": released_gradient(mask_NCHW, strength, group, 0.1),
            "gradient of the widths": width_gradient(width_C, mu.sigma_NC, strength, group),
        }

    ours, reference = result(x_NCHW.float().to(device)), result(x_NCHW.float().double())
    return {name: _error(ours[name], reference[name].double()) for name in reference}


def _metrics(device: str, small: bool) -> list[dict[str, Any]]:
    """Every metric of a network that is trained by next to nothing, evaluated on the device and on the CPU."""
    from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS

    chosen = [name for name in METRICS.built_in if name not in EVERY_RUN]
    sections = {
        "data": {"objects": 12 if small else 60, "negatives": 12 if small else 60},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 1e-12, "final_learning_rate": None},
        "eval": {"measures": chosen},
    }
    with tempfile.TemporaryDirectory() as folder:
        bench, spec = Bench(Path(folder), Path(folder)), tiny(**sections)
        ours, reference = (bench.run(spec, f"{n}", Runtime(name)).metrics for n, name in enumerate((device, "cpu")))
    names = [name for name in reference if name in {"val_error", "val_loss", *EVERY_RUN, *chosen}]
    return [within(f"metric {name}", abs(ours[name] - reference[name]), METRIC_BOUND) for name in names]
