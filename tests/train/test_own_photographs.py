"""One's own photographs from files to trained runs and a verdict: drawn animals, written as JPEG and PNG."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes.training import Bench, Runtime, as_threads, measure, tiny
from PIL import Image

from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.errors import DataError
from ipcnn_ray.report.ranking_table import Ranking
from ipcnn_ray.report.verdict import WITHOUT_LANDMARKS, Verdicts
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.evaluate import check_metrics
from ipcnn_ray.train.run_metadata import WITHOUT_LANDMARKS as WITHOUT
from ipcnn_ray.train.run_metadata import run_description
from ipcnn_ray.utils.paths import Paths

SIZE, MARGIN = 64, 8
LANDMARKS = ["head", "tail"]
NEED_NONE = [name for name in METRICS.built_in if not METRICS.load(name).needs_landmarks()]
MEASURES = [name for name in NEED_NONE if name not in EVERY_RUN]
FOLDER = {"kind": "folder", "path": "classes", "category": ["cow", "bird"]}
TABLE = {"kind": "table", "file": "coco/animals.json", "category": ["cow", "bird"], "landmarks": LANDMARKS}


class OwnBench(Bench):
    """Runs on the files of `photographs`."""

    @property
    def paths(self) -> Paths:
        return replace(super().paths, data=self.cache)


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """Cows and birds in class folders as JPEG, and the same with a margin around them as PNG, listed by a COCO file."""
    root = tmp_path_factory.mktemp("own")
    drawn = DrawnAnimals.model_validate(
        {"kind": "drawn_animals", "category": ["cow", "bird"], "objects": 10, "negatives": 10, "landmarks": LANDMARKS}
    )
    categories = [{"id": n, "name": name, "keypoints": LANDMARKS} for n, name in enumerate(("cow", "bird"))]
    coco = {"images": [], "annotations": [], "categories": categories}
    for number, name in enumerate(drawn.names()):
        image, category = drawn.draw(number, SIZE), name.split("-")[0]
        pixels = Image.fromarray(image.pixels)
        folder = root / "classes" / ("negatives" if category == "negative" else category)
        folder.mkdir(parents=True, exist_ok=True)
        pixels.save(folder / f"{name}.jpg", quality=95)
        page = Image.new("RGB", (SIZE + 2 * MARGIN, SIZE + MARGIN), "grey")
        page.paste(pixels, (MARGIN, 0))
        (root / "coco").mkdir(exist_ok=True)
        page.save(root / "coco" / f"{name}.png")
        coco["images"].append({"id": number, "file_name": f"{name}.png", "width": page.width, "height": page.height})
        if category != "negative":
            points = [
                [0, 0, 0] if math.isnan(col) else [col + MARGIN, row, 2] for row, col in image.landmarks_K2.tolist()
            ]
            box = {"bbox": [MARGIN, 0, SIZE, SIZE], "keypoints": [value for point in points for value in point]}
            at = {"id": number, "image_id": number, "category_id": ["cow", "bird"].index(category)}
            coco["annotations"].append({**at, **box})
    (root / "coco/animals.json").write_text(json.dumps(coco))
    return root


@pytest.fixture
def own(tmp_path, photographs) -> OwnBench:
    return OwnBench(tmp_path, photographs)


def spec_of(data, measures=(), **sections) -> ExperimentSpec:
    raw = {
        "name": "own",
        "data": data,
        "model": {"network": "compact", "dropout": 0.0},
        "template": {"shape": "gradient"},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 0.05},
        "eval": {"every": 2, "measures": measures},
    }
    return ExperimentSpec.model_validate({**raw, **sections})


def verdicts_of(own: OwnBench, data, goal: str, seeds: int, measures=()) -> tuple[list[RunSummary], Verdicts]:
    """The runs of a plain network and of a template, and what is said of them."""
    runs = []
    for name, template in (("plain", {"shape": "none"}), ("l1", {"shape": "gradient"})):
        for seed in range(seeds):
            run = own.run(spec_of(data, measures, seed=seed, template=template), f"{name}.seed{seed}")
            runs.append(replace(run, group=name, seed=seed, template=name))
    return runs, Verdicts.of(Ranking.of(runs, Objectives((goal,), control="plain")))


def test_a_coco_file_of_drawn_animals_is_the_drawing(own):
    """From file to store: a PNG keeps every pixel, and the box of a drawing cuts it out again."""
    drawn = tiny(data={"category": ["cow", "bird"], "negatives": 10, "landmarks": LANDMARKS, "train_share": 0.8})
    expected, found = own.inputs(drawn).store, own.inputs(spec_of({**TABLE, "negatives": 10})).store
    assert np.array_equal(found.images_N3SS[:20], expected.images_N3SS[:20])  # the negatives are whole images
    np.testing.assert_allclose(found.landmarks_NK2, expected.landmarks_NK2, atol=1e-4)
    assert np.array_equal(found.train_items, expected.train_items)
    assert np.array_equal(found.val_items, expected.val_items)


def test_class_folders_from_files_to_a_verdict(own):
    runs, verdicts = verdicts_of(own, FOLDER, "mutual_information_score", 2, MEASURES)
    names = {name for name in METRICS.built_in if any(key.startswith(name) for key in runs[0].metrics)}
    assert names == set(NEED_NONE) > {"peak_spread", "mutual_information_score", "peak_stability", "ablation_own"}
    assert all(math.isfinite(value) for run in runs for value in run.metrics.values()), runs
    assert not any("instability" in key or "following" in key for run in runs for key in run.metrics)
    filters = json.loads(own.record.texts["filters.json"])["layers"]["conv5"]
    assert {row["category"] for row in filters} <= {"cow", "bird"}
    assert all(row["landmark"] is row["tracking"] is row["instability"] is None for row in filters)
    described = run_description(own.request(spec_of(FOLDER)), runs[0].metrics)
    assert "instability" not in described and described.endswith(f" %** of images. {WITHOUT}")
    assert verdicts.outcomes == {"plain": "control", "l1": "no landmarks"}
    control, setting, method = verdicts.lines
    assert control == WITHOUT_LANDMARKS
    assert setting.startswith("l1: whether its filters follow parts cannot be told: the data have no landmarks. Beside")
    assert all(f"{name} {runs_mean(runs, name)}" in setting for name in MEASURES)
    assert "Error " in setting and "Student" in method
    assert "instability" not in " ".join(verdicts.lines) + Ranking.of(runs, Objectives(("val_error",))).markdown()


def runs_mean(runs: list[RunSummary], name: str) -> str:
    values = [run.metrics[name] for run in runs if run.group == "l1"]
    return f"{sum(values) / len(values):.4f} against"


def test_a_coco_file_from_file_to_a_verdict(own):
    runs, verdicts = verdicts_of(own, TABLE, "instability", 2)
    assert all(0 < run.metrics["instability"] < 1 for run in runs)
    assert {"following_head", "following_tail"} <= set(runs[0].metrics)
    assert verdicts.outcomes["l1"] != "no landmarks"
    assert verdicts.lines[0].startswith("plain: instability 0.")


def test_one_run_of_one_category_says_what_it_cannot_say(own):
    run = own.run(spec_of({**FOLDER, "category": "cow"}))
    assert run.metrics["val_images"] == 6  # 2 of 10 cows, twice, and 2 of 10 negatives
    ranking = Ranking.of([run], Objectives.of(None, landmarks=False))
    assert Verdicts.of(ranking).lines == [WITHOUT_LANDMARKS]
    assert ranking.objectives.goals == ("val_error",) and "instability" not in ranking.table().columns


def test_without_landmarks_two_workers_measure_what_one_does(own):
    spec = spec_of(FOLDER)
    inputs = own.inputs(spec)
    one = measure(inputs, spec, Runtime(), *MEASURES)
    assert set(one.metrics) == set(NEED_NONE)
    for two in as_threads(2, lambda runtime: measure(inputs, spec, runtime, *MEASURES)):
        assert str(two.filters) == str(one.filters)  # NaN is not equal to itself
        for name, by_layer in one.metrics.items():
            for layer, result in by_layer.items():
                torch.testing.assert_close(two.metrics[name][layer].per_filter_C, result.per_filter_C, equal_nan=True)


def test_data_that_cannot_be_trained_on(own):
    store = own.inputs(spec_of(TABLE)).store
    check_metrics(spec_of(TABLE, train={"epochs": 0, "batch_size": 100}), store)
    with pytest.raises(DataError, match=r"batch_size = 33 is more than the 32 training items\n +No batch would"):
        check_metrics(spec_of(TABLE, train={"epochs": 1, "batch_size": 33}), store)
    unseen = replace(store, landmarks_NK2=np.full_like(store.landmarks_NK2, np.nan))
    with pytest.raises(DataError, match="no image shows head or tail"):
        check_metrics(spec_of(TABLE), unseen)
