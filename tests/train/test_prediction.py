"""Predictions of trained runs against a forward pass by hand: crops, peaks, receptive fields, places of landmarks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.own_photographs import OwnPhotographs
from fakes.training import Bench, tiny
from PIL import Image
from safetensors.torch import load

from ipcnn_ray.errors import DataError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train import prediction
from ipcnn_ray.train.filter_activations import load_filter_activations
from ipcnn_ray.train.final_model import Classifier, final_model
from ipcnn_ray.train.image_inputs import ImageInput
from ipcnn_ray.train.prediction import Unreadable, predict
from ipcnn_ray.train.run_dir import MEAN_KEY

PIXELS = np.zeros((8, 9, 3), np.uint8)
SPEC = tiny(eval={"top_images": 6, "few_images": 3})


@pytest.fixture(scope="module")
def ran(tmp_path_factory, crops) -> tuple[Bench, Classifier]:
    """A run on drawn cows, and its model."""
    bench = Bench(tmp_path_factory.mktemp("ran"), crops)
    bench.run(SPEC)
    return bench, final_model(bench.request(SPEC))[0]


@pytest.fixture
def photo(tmp_path) -> Path:
    """A drawn cow on a page of 150 x 90."""
    pixels = np.random.default_rng(3).integers(0, 256, (9, 15, 3), np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).resize((150, 90), Image.Resampling.BICUBIC).save(path)
    return path


def slowly(bench: Bench, image: Image.Image, box: tuple[int, int, int, int]):
    """The logit; and by layer and filter its activation, and its peak in the crop and in the image (x, y)."""
    inputs = bench.inputs(SPEC)
    tensors = load(bench.weights())
    mean = tensors.pop(MEAN_KEY)
    inputs.net.load_state_dict(tensors)
    inputs.net.eval()
    xmin, ymin, xmax, ymax = box
    crop = image.convert("RGB").crop(box).resize((64, 64), Image.Resampling.BILINEAR)
    x = torch.from_numpy(np.asarray(crop).astype(np.float32).transpose(2, 0, 1))[None]
    with torch.no_grad():
        output = inputs.net((x - mean) * SPEC.model.table.input_scale, full=True)
    found = {}
    for layer, maps_NCHW in output.scores.items():
        field = layer_receptive_field(SPEC.model, layer)
        for c, map_HW in enumerate(maps_NCHW[0].tolist()):
            best = max(max(row) for row in map_HW)
            row = next(r for r, cells in enumerate(map_HW) if best in cells)
            col = map_HW[row].index(best)
            down, right = (field.first_center + field.stride * cell for cell in (row, col))
            at = (
                xmin + (right + 0.5) / 64 * (xmax - xmin) - 0.5,
                ymin + (down + 0.5) / 64 * (ymax - ymin) - 0.5,
            )
            found[layer, c] = (best, (right, down), at)
    return float(output.logits_NL), found


@pytest.mark.parametrize("box", [None, (20, 10, 130, 60)])
def test_against_a_forward_pass_by_hand(ran, photo, box):
    bench, model = ran
    said = model.explain(photo, box)
    with Image.open(photo) as image:
        logit, found = slowly(bench, image, box or (0, 0, 150, 90))
    assert said.scores["cow"].logit == pytest.approx(logit, rel=1e-5)
    assert said.scores["cow"].probability == pytest.approx(1 / (1 + math.exp(-logit)), rel=1e-5)
    assert said.decision == (("cow",) if logit > 0 else ())
    assert (said.width, said.height, said.box) == (150, 90, box or (0, 0, 150, 90))
    firing = {key for key, (activation, *_) in found.items() if activation > 0}
    assert {(fired.layer, fired.filter) for fired in said.filters} == firing
    assert firing
    rows = json.loads((bench.root / "runs/run/filters.json").read_text())["layers"]
    followed = 0
    for fired in said.filters:
        activation, crop, at = found[fired.layer, fired.filter]
        assert fired.activation == pytest.approx(activation, rel=1e-5)
        assert (fired.crop_x, fired.crop_y) == crop and (fired.x, fired.y) == pytest.approx(at)
        row = rows[fired.layer][fired.filter]
        assert (fired.category, fired.landmark, fired.tracking) == ("cow", row["landmark"], row["tracking"])
        width, height = (said.box[2] - said.box[0], said.box[3] - said.box[1])
        if row["landmark"] is None:
            assert fired.landmark_x is None and row["offset"] is None
        else:
            followed += 1
            expected = (at[0] + row["offset"][1] * width, at[1] + row["offset"][0] * height)
            assert (fired.landmark_x, fired.landmark_y) == pytest.approx(expected)
            deviation = (row["offset_deviation"][1] * width, row["offset_deviation"][0] * height)
            assert (fired.landmark_x_deviation, fired.landmark_y_deviation) == pytest.approx(deviation)
    assert followed
    layers = [fired.layer for fired in said.filters]
    assert layers == sorted(layers, reverse=True)  # conv5 before conv4
    for layer in set(layers):
        strengths = [fired.activation for fired in said.filters if fired.layer == layer]
        assert strengths == sorted(strengths, reverse=True)


def test_offsets_are_those_of_the_strongest_images(ran):
    """One filter and landmark at a time, over the images that its landmark tracking is measured on."""
    bench, _ = ran
    seen = load_filter_activations(bench.request(SPEC), "")
    rows = json.loads((bench.root / "runs/run/filters.json").read_text())["layers"][seen.layer]
    names, following = seen.store.landmark_names, [row for row in rows if row["landmark"]]
    assert following
    for row in following:
        c, k = row["filter"], names.index(row["landmark"])
        order = sorted(range(len(seen.image_N)), key=lambda i, c=c: (-float(seen.activation_NC[i, c]), i))
        marks = seen.store.landmarks_NK2[seen.image_N]
        shown = [i for i in order if not np.isnan(marks[i, k]).any()][: SPEC.eval.top_images]
        apart = np.array([marks[i, k] - seen.peaks_NC2[i, c].numpy() for i in shown]) / 64
        assert row["offset"] == pytest.approx(apart.mean(0).tolist(), abs=1e-6)
        assert row["offset_deviation"] == pytest.approx(apart.std(0).tolist(), abs=1e-6)


def test_files_images_and_arrays_are_one(ran, photo):
    model = ran[1]
    with Image.open(photo) as image:
        given = [model.explain(str(photo)), model.explain(image), model.explain(np.asarray(image))]
    told = model.explain(photo)
    assert given[0] == told and told.image == str(photo)
    assert all(one.image == "" and one.scores == told.scores and one.filters == told.filters for one in given[1:])


@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "1", "LA"])
def test_other_colours(ran, photo, tmp_path, mode):
    """As Pillow converts them to RGB, which is what training does."""
    with Image.open(photo) as image:
        other = image.convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "LA") else "x.png")
    other.save(path)
    with Image.open(path) as image:
        by_hand = slowly(ran[0], image, (0, 0, 150, 90))
    said = ran[1].explain(path)
    assert said.scores["cow"].logit == pytest.approx(by_hand[0], rel=1e-5)


def rotated(photo: Path, path: Path) -> Path:
    """The photograph turned by a quarter, with the EXIF orientation that turns it back."""
    with Image.open(photo) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = turned.getexif()
        exif[0x0112] = 6
        turned.save(path, exif=exif)
    return path


def test_exif_orientation_is_as_in_training(ran, photo, tmp_path):
    """Drawn animals have none, so files are taken as stored; one's own photographs are turned."""
    bench, model = ran
    turned = rotated(photo, tmp_path / "turned.png")
    stored = model.explain(turned)
    assert not model.upright and (stored.width, stored.height) == (90, 150)
    with Image.open(turned) as image:
        assert stored.scores["cow"].logit == pytest.approx(slowly(bench, image, (0, 0, 90, 150))[0], rel=1e-5)
    own = Classifier(model.net, model.mean_3SS, model.scale, model.context, upright=True).eval()
    told, as_it_was = own.explain(turned), own.explain(photo)
    assert (told.width, told.height) == (150, 90)
    assert told.scores == as_it_was.scores and told.filters == as_it_was.filters


@pytest.mark.parametrize(
    ("image", "box", "text"),
    [
        (np.zeros((4, 4), np.uint8), None, r"is an array of uint8, shape \(4, 4\): expected uint8 RGB \[H, W, 3\]"),
        (np.zeros((4, 4, 3)), None, "is an array of float64"),
        (
            np.zeros((8, 9, 3), np.uint8),
            (0, 0, 10, 8),
            "has the box 0, 0, 10, 8, which is not a box inside its 0, 0, 9, 8",
        ),
        (PIXELS, (4, 0, 4.2, 8), "has the box 4, 0, 4.2, 8, which is not a box"),
        (PIXELS, (0, 0, math.nan, 8), "has the box .*: expected xmin, ymin, xmax, ymax"),
        (Image.new("I", (8, 8)), None, r"has more than 8 bits per channel \(mode I\)"),
        ("missing.jpg", None, "missing.jpg  is not a file"),
    ],
)
def test_what_cannot_be_explained(ran, image, box, text):
    with pytest.raises(DataError, match=text):
        ran[1].explain(image, box)


def test_batches_have_the_numbers_of_single_images_and_failures_keep_their_place(ran, tmp_path, monkeypatch):
    model = ran[1]
    rng, inputs = np.random.default_rng(5), []
    for number in range(11):
        path = tmp_path / f"{number}.png"
        if number in (2, 3, 7):
            path.write_text("no image")
        else:
            Image.fromarray(rng.integers(0, 256, (40, 50 + number, 3), np.uint8)).save(path)
        inputs.append(ImageInput(str(path), (5, 5, 45, 35) if number % 2 else None))
    inputs[9] = ImageInput(inputs[9].path, (0, 0, 500, 40))
    monkeypatch.setattr(prediction, "BATCH", 2)  # 2 and 3: a batch without any image
    monkeypatch.setattr(prediction, "PART", 5)
    told = list(predict(model, inputs))
    assert [one.image for one in told] == [image.path for image in inputs]
    failed = [number for number, one in enumerate(told) if isinstance(one, Unreadable)]
    assert failed == [2, 3, 7, 9]
    assert told[2].reason == "is not an image" and "has the box 0, 0, 500, 40" in told[9].reason
    for number, one in enumerate(told):
        if number not in failed:
            single = model.explain(inputs[number].path, inputs[number].edges)
            assert one.box == single.box and len(one.filters) == len(single.filters)
            assert one.scores["cow"].logit == pytest.approx(single.scores["cow"].logit, rel=1e-5)
            for ours, theirs in zip(one.filters, single.filters, strict=True):
                assert ours.activation == pytest.approx(theirs.activation, rel=1e-4)


def test_a_run_without_landmarks_and_with_several_categories(bench, tmp_path):
    own = OwnPhotographs(tmp_path / "data")
    data = own.classes(negatives=0).model_dump(mode="json")
    raw = tiny(train={"epochs": 1, "batch_size": 4}).model_dump(mode="json", exclude={"data", "loss"})
    spec = ExperimentSpec.model_validate({**raw, "data": data, "loss": {"classification": "softmax"}})
    own_bench = type("OwnBench", (Bench,), {"paths": own.paths})(tmp_path / "own", own.paths.cache)
    own_bench.run(spec)
    model = final_model(own_bench.request(spec))[0]
    said = model.explain(own.folder / "wren/0.jpg")
    assert model.upright and list(said.scores) == ["wren", "robin"] and len(said.decision) == 1
    assert sum(score.probability for score in said.scores.values()) == pytest.approx(1)
    assert said.filters and {fired.category for fired in said.filters} <= {"wren", "robin"}
    assert {(fired.landmark, fired.tracking, fired.landmark_x) for fired in said.filters} == {(None, None, None)}


def test_an_early_run_tells_less(ran, photo):
    """A run that an earlier version trained recorded no offsets, or nothing of its filters."""
    bench, model = ran
    file = bench.root / "runs/run/filters.json"
    before = file.read_text()
    try:
        rows = json.loads(before)
        for row in (row for layer in rows["layers"].values() for row in layer):
            del row["offset"], row["offset_deviation"]
        file.write_text(json.dumps(rows))
        early = final_model(bench.request(SPEC))[0].explain(photo)
        file.unlink()
        bare = final_model(bench.request(SPEC))[0].explain(photo)
    finally:
        file.write_text(before)
    now = model.explain(photo)
    assert [fired.landmark for fired in early.filters] == [fired.landmark for fired in now.filters]
    assert all(fired.landmark_x is None for fired in early.filters)
    assert [fired.x for fired in bare.filters] == [fired.x for fired in now.filters]
    assert {(fired.category, fired.landmark) for fired in bare.filters} == {(None, None)}
