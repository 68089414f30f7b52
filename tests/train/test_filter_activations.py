"""A finished run looked at again: the same numbers as recorded, and what its pictures are drawn from."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.training import tiny

from ipcnn_ray.data.crop_store import folder_of
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError, IpcnnError
from ipcnn_ray.train.filter_activations import load_filter_activations
from ipcnn_ray.train.run_dir import WEIGHTS_FILE

TWO = {"data": {"category": ["cow", "bird"], "objects": 10, "negatives": 8}, "eval": {"top_images": 5}}


@pytest.mark.parametrize(
    "sections",
    [{}, TWO, {"eval": {"images": "validation", "top_images": 3}, "data": {"objects": 24}}],
    ids=["one category", "two categories", "validation images"],
)
def test_the_instability_is_the_recorded_one(bench, sections):
    """Of the run, and of each filter as the mean of the deviations that are printed."""
    spec = tiny(train={"epochs": 1}, **sections)
    result = bench.run(spec)
    progress: list[tuple[int, int]] = []
    store = prepare(spec.data, spec.model.table.image_size, bench.paths)
    seen = load_filter_activations(bench.request(spec), store.digest, progress=lambda *counts: progress.append(counts))
    assert seen.instability.mean == pytest.approx(result.metrics["instability"], abs=1e-6)
    assert progress[-1][0] == progress[-1][1]
    measured = 0
    for c, recorded in enumerate(seen.instability.per_filter_C.tolist()):
        if recorded == recorded:
            found = seen.distances(c).deviation_K
            assert found[~found.isnan()].mean().item() == pytest.approx(recorded, abs=1e-9)
            measured += 1
    assert measured == len(seen.instability.per_filter_C) - seen.instability.dropped > 0


@pytest.fixture
def finished(bench):
    """A run of one epoch, its request and the digest of its data."""
    spec = tiny(train={"epochs": 1})
    bench.run(spec)
    return bench.request(spec), prepare(spec.data, spec.model.table.image_size, bench.paths).digest


def test_thresholds_and_regions(finished):
    """The threshold leaves 0.5 % of the cells above it; a filter has a region where it fires, and nowhere else."""
    request, digest = finished
    seen = load_filter_activations(request, digest)
    with torch.no_grad():
        crops = torch.from_numpy(np.array(seen.store.images_N3SS[seen.image_N])).float()
        images = (crops - torch.from_numpy(seen.store.mean_3SS)) * seen.inputs.scale
        maps = seen.inputs.net.eval()(images, full=True).passed[seen.layer]
    cells_CX = maps.transpose(0, 1).flatten(1).sort(dim=1, descending=True).values
    above = int(0.005 * cells_CX.shape[1])
    assert torch.allclose(seen.threshold_C, cells_CX[:, above], rtol=1e-5, atol=1e-7)
    regions = seen.regions([0, 3], range(len(seen.image_N)))
    assert regions.shape == (len(seen.image_N), 2, seen.store.size, seen.store.size)
    assert regions.any((2, 3)).tolist() == seen.fires_NC[:, [0, 3]].tolist()
    assert seen.fires_NC[:, [0, 3]].any(0).all() and not seen.fires_NC[:, [0, 3]].all()


def test_weights_that_are_missing_or_damaged(finished):
    request, digest = finished
    path = Path(request.folder) / WEIGHTS_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    with pytest.raises(IpcnnError, match=r"the weights of run run in .* cannot be read: .*\nThe file is damaged"):
        load_filter_activations(request, digest)
    path.unlink()
    with pytest.raises(
        IpcnnError, match=re.escape(f"run run has no {WEIGHTS_FILE} in {request.folder}") + "\nIt has ended"
    ):
        load_filter_activations(request, digest)


def test_other_data_than_it_was_trained_on(finished):
    request, digest = finished
    with pytest.raises(DataError, match=f"not those it was trained on: digest {digest}, recorded 0123456789abcdef"):
        load_filter_activations(request, "0123456789abcdef")
    images = folder_of(request.paths.cache, digest) / "images.npy"
    images.rename(images.with_suffix(".gone"))
    try:
        with pytest.raises(DataError, match=r"this cache of crops is damaged: images\.npy is missing"):
            load_filter_activations(request, digest)
    finally:
        images.with_suffix(".gone").rename(images)
