"""Predictions on Ray: the numbers of this process, a folder that is complete or not there, and what goes on."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas
import pyarrow.parquet
import pytest
from fakes.training import Bench as TrainingBench
from fakes.training import tiny
from PIL import Image

from ipcnn_ray.core.explanation import Explanation
from ipcnn_ray.errors import IpcnnError, TrainingError
from ipcnn_ray.on_ray import batch_prediction
from ipcnn_ray.on_ray.batch_prediction import PartPredictor, PredictionFolder, predict_on_ray, to_parquet
from ipcnn_ray.train.final_model import final_model
from ipcnn_ray.train.image_inputs import find_images
from ipcnn_ray.train.prediction import predict
from ipcnn_ray.train.run_metadata import RunRequest

SPEC = tiny(train={"epochs": 1}, eval={"top_images": 6, "few_images": 3})
IMAGES = 300
"""Three parts."""


@pytest.fixture(scope="module")
def request_(tmp_path_factory) -> RunRequest:
    bench = TrainingBench(tmp_path_factory.mktemp("run"), tmp_path_factory.mktemp("cache"))
    bench.run(SPEC)
    return bench.request(SPEC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Small photographs, two of which cannot be read."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(6)
    for number in range(IMAGES):
        path = folder / f"{number:04}.png"
        if number in (5, 200):
            path.write_text("no image")
        else:
            Image.fromarray(rng.integers(0, 256, (8, 6 + number % 5, 3), np.uint8)).save(path)
    return folder


@pytest.fixture
def here(monkeypatch) -> list[list[int]]:
    """Ray is replaced by this process; the numbers of the parts of each call."""
    calls = []

    def on_ray(request, target, items, address, workers):
        calls.append([item["number"] for item in items])
        actor = PartPredictor(request, target)
        return map(actor, items)

    monkeypatch.setattr(batch_prediction, "_on_ray", on_ray)
    return calls


@pytest.fixture(scope="module")
def as_told(request_: RunRequest, photos: Path) -> list[dict]:
    """The predictions of this process, as Parquet has them."""
    told = list(predict(final_model(request_)[0], find_images([str(photos)])))
    return pyarrow.parquet.read_table(io.BytesIO(to_parquet(told))).to_pylist()


def rows_of(folder: Path) -> list[dict]:
    return pyarrow.parquet.read_table(folder).to_pylist()


def test_a_parquet_file_has_what_explain_says(request_, photos):
    model = final_model(request_)[0]
    images = find_images([str(photos)])[4:7]
    told = list(predict(model, images))
    rows = pyarrow.parquet.read_table(io.BytesIO(to_parquet(told))).to_pylist()
    assert rows[1] == {**dict.fromkeys(rows[1]), "image": images[1].path, "error": "is not an image"}
    for row, said in ((rows[0], told[0]), (rows[2], told[2])):
        assert isinstance(said, Explanation) and row["error"] is None
        expected = json.loads(json.dumps(said.as_json()))
        scores = {score["category"]: {k: score[k] for k in ("logit", "probability")} for score in row["scores"]}
        assert scores == expected.pop("scores") and row["filters"] == expected.pop("filters")
        assert {key: row[key] for key in expected} == expected
    empty = pyarrow.parquet.read_table(io.BytesIO(to_parquet([]))).schema
    assert empty.equals(batch_prediction.SCHEMA)


def test_a_folder_is_complete_or_not_there_and_the_missing_parts_are_added(
    request_, photos, as_told, tmp_path, here, monkeypatch
):
    out, images, seen = tmp_path / "out", find_images([str(photos)]), []
    put = PredictionFolder.put

    def dies(folder, number, predictions):
        if number == 2:
            raise KeyboardInterrupt
        put(folder, number, predictions)

    monkeypatch.setattr(PredictionFolder, "put", dies)
    with pytest.raises(KeyboardInterrupt):
        predict_on_ray(request_, images, str(out))
    assert not out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["out.partial", "out.request.json"]
    monkeypatch.setattr(PredictionFolder, "put", put)
    with pytest.raises(IpcnnError, match="holds unfinished predictions of other images, or of another model\nGive"):
        predict_on_ray(request_, images[1:], str(out))
    summary = predict_on_ray(request_, images, str(out), progress=lambda *counts: seen.append(counts))
    assert here == [[0, 1, 2], [2]] and seen == [(300, 300)]
    names = ["_predictions.json", "part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert sorted(path.name for path in out.iterdir()) == names and list(tmp_path.iterdir()) == [out]
    assert json.loads((out / "_predictions.json").read_text()) == json.loads(json.dumps(asdict(summary)))
    assert rows_of(out) == as_told
    assert summary.images == 300 and sum(summary.decisions.values()) == 298 and summary.parts == 3
    assert [(Path(one["image"]).name, one["error"]) for one in summary.failed] == [
        ("0005.png", "is not an image"),
        ("0200.png", "is not an image"),
    ]
    assert len(pandas.read_parquet(out)) == 300
    # again: nothing is computed; others are refused
    assert predict_on_ray(request_, images, str(out)) == stored_summary(out) and len(here) == 2
    with pytest.raises(IpcnnError, match="out holds predictions of other images, or of another model\nGive another"):
        predict_on_ray(request_, images[:10], str(out))


def stored_summary(folder: Path) -> batch_prediction.PredictionSummary:
    return batch_prediction.PredictionSummary(**json.loads((folder / "_predictions.json").read_text()))


def test_a_process_that_dies_while_it_completes(request_, photos, tmp_path, here, monkeypatch):
    """The parts are moved, and the summary is not there yet."""
    out, images = tmp_path / "out", find_images([str(photos)])[:130]

    def dies(folder, summary):
        folder.storage.move("out.partial", "out")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(PredictionFolder, "complete", dies)
        with pytest.raises(KeyboardInterrupt):
            predict_on_ray(request_, images, str(out))
    assert out.is_dir() and not (out / "_predictions.json").exists()
    assert predict_on_ray(request_, images, str(out)).images == 130
    assert len(here) == 1 and (out / "_predictions.json").is_file() and not (tmp_path / "out.request.json").exists()


def test_what_is_refused(request_, photos, tmp_path, here):
    images = find_images([str(photos)])[:2]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/diary.txt").write_text("dear diary")
    with pytest.raises(IpcnnError, match="out holds other files\nGive another --parquet"):
        predict_on_ray(request_, images, str(tmp_path / "out"))
    with pytest.raises(IpcnnError, match="s3://bucket names a whole bucket\nGive a folder in it: s3://bucket/NAME"):
        predict_on_ray(request_, images, "s3://bucket/")
    unfinished = TrainingBench(tmp_path, tmp_path).request(SPEC)
    with pytest.raises(TrainingError, match=r"run run has no weights.safetensors in .*: it has not ended yet"):
        predict_on_ray(unfinished, images, str(tmp_path / "other"))


def test_another_model_of_the_same_name_is_another_request(request_, photos, tmp_path, here):
    images, out = find_images([str(photos)])[:2], tmp_path / "out"
    one = predict_on_ray(request_, images, str(out))
    weights = Path(request_.folder, "weights.safetensors")
    weights.write_bytes(weights.read_bytes())  # trained again
    with pytest.raises(IpcnnError, match="of another model"):
        predict_on_ray(request_, images, str(out))
    assert predict_on_ray(request_, images, str(tmp_path / "new")).digest != one.digest


def test_to_and_from_a_bucket(request_, photos, as_told, tmp_path, here, fake_s3):
    fake_s3.objects = {f"in/{path.name}": path.read_bytes() for path in sorted(photos.iterdir())[:7]}
    images = find_images(["s3://bucket/in"])
    summary = predict_on_ray(request_, images, "s3://bucket/said/new")
    assert summary.parquet == "s3://bucket/said/new" and summary.failed == [
        {"image": "s3://bucket/in/0005.png", "error": "is not an image"}
    ]
    said = sorted(key for key in fake_s3.objects if key.startswith("said"))
    assert said == ["said/new/_predictions.json", "said/new/part-00000.parquet"]
    rows = pyarrow.parquet.read_table(io.BytesIO(fake_s3.objects[said[1]])).to_pylist()
    expected = as_told[:7]
    assert [row["image"] for row in rows] == [f"s3://bucket/in/{number:04}.png" for number in range(7)]
    # the batch is the first seven of sixteen
    for row, other in zip(rows, expected, strict=True):
        assert row["error"] == other["error"]
        if row["error"] is None:
            assert row["scores"][0]["logit"] == pytest.approx(other["scores"][0]["logit"], rel=1e-5)
    assert predict_on_ray(request_, images, "s3://bucket/said/new/").digest == summary.digest


@pytest.mark.slow
def test_on_ray_the_numbers_are_those_of_this_process(ray_here, request_, photos, as_told, tmp_path, capfd):
    seen = []
    summary = predict_on_ray(
        request_, find_images([str(photos)]), str(tmp_path / "out"), workers=2, progress=lambda *c: seen.append(c)
    )
    assert rows_of(tmp_path / "out") == as_told
    assert summary.images == 300 and len(summary.failed) == 2 and summary.parts == 3
    assert seen[-1] == (300, 300) and len(seen) == 3
    assert capfd.readouterr().out == ""  # where JSON for scripts is
