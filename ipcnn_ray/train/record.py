"""What the record of a run says beside its metrics: parameters and tags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ipcnn_ray.data.store import CropStore
from ipcnn_ray.models.weights import LoadReport
from ipcnn_ray.spec.digest import digest
from ipcnn_ray.spec.expand import template_label
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.request import RunRequest
from ipcnn_ray.train.runtime import Runtime


def params(spec: ExperimentSpec) -> dict[str, str]:
    """Every field of a run's spec by dotted path; fields that are not set are left out."""
    return dict(_flat(spec.model_dump(mode="json", exclude={"search"})))


def title(request: RunRequest) -> str:
    """What a list of runs calls it: its name within its experiment, and its template."""
    label, template = request.run_id.rsplit("-", 1)[-1], template_label(request.spec.template)
    return label if label.partition(".")[0] == template else f"{label}: {template}"


def description(request: RunRequest, metrics: Mapping[str, float]) -> str:
    """What a run is and what came of it, in Markdown. metrics: of its last epoch."""
    spec = request.spec
    drawn = ", drawn" if spec.data.kind == "drawn_animals" else ""
    what = f"`{spec.model.network}` on {', '.join(spec.data.categories)} (`{spec.data.kind}`{drawn}), seed {spec.seed}"
    lines = [f"**{template_label(spec.template)}**: {what}. Run `{request.run_id}`."]
    if "val_error" in metrics and "instability" in metrics:
        lines.append(
            f"After epoch {metrics['epoch']:.0f} of {spec.train.epochs}: validation error "
            f"**{100 * metrics['val_error']:.1f} %** of images, location instability **{metrics['instability']:.4f}** "
            "of the image diagonal (both lower is better)."
        )
    return "\n\n".join(lines)


def _flat(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{prefix}{key}.")
        elif isinstance(inner, list):
            yield f"{prefix}{key}", ", ".join(str(item) for item in inner)
        elif inner is not None:
            yield f"{prefix}{key}", str(inner)


def lineage(
    request: RunRequest, store: CropStore, loaded: LoadReport | None, runtime: Runtime, *, bfloat16: bool, cached: bool
) -> dict[str, str]:
    """What a run was made from and on, for its tags. loaded: the pretrained weights, if there are any."""
    on_gpu = runtime.device.type == "cuda"
    return {
        "ipcnn.title": title(request),
        **request.tags,
        **store.tags,
        "data.digest": store.digest,
        "model.weights": ", ".join(loaded.loaded) if loaded else "none",
        "model.weights_report": loaded.text if loaded else "",
        "model.weights_digest": loaded.digest if loaded else "",
        "model.partial_weights": str(loaded is not None and loaded.partial).lower(),
        "ipcnn.digest": digest(request.spec),
        "ipcnn.seed": str(request.spec.seed),
        "ipcnn.workers": str(runtime.world_size),
        "ipcnn.device": torch.cuda.get_device_name(runtime.device) if on_gpu else "cpu",
        "ipcnn.precision": "bfloat16 autocast" if bfloat16 else "float32",
        "ipcnn.frozen_cache": str(cached).lower(),
    }
