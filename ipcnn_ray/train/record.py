"""What the record of a run says beside its metrics: parameters and tags."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from ipcnn_ray.data.store import CropStore
from ipcnn_ray.models.weights import LoadReport
from ipcnn_ray.spec.digest import digest
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.request import RunRequest
from ipcnn_ray.train.runtime import Runtime


def params(spec: ExperimentSpec) -> dict[str, str]:
    """Every field of a run's spec by dotted path; fields that are not set are left out."""
    return dict(_flat(spec.model_dump(mode="json", exclude={"search"})))


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
