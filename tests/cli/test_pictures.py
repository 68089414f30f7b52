"""`ipcnn pictures` on a small record of trained runs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from fakes.commands import run_command
from fakes.own_photographs import OwnPhotographs
from mlflow import MlflowClient
from PIL import Image
from typer.testing import Result

from ipcnn_ray.cli.filter_gallery import IMAGES, MOST_FILTERS, _sample, chosen_runs, galleries
from ipcnn_ray.cli.pictures import rank_filters, run_activations
from ipcnn_ray.errors import DataError, IpcnnError, TrackingError
from ipcnn_ray.report.experiment_record import read_experiments
from ipcnn_ray.report.gallery import SIDE, ShownFilter
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import experiment_id, named_runs, resolved_yaml, run_id
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.filter_activations import load_filter_activations
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths

SPEC = ExperimentSpec.model_validate(
    {
        "name": "sweep",
        "data": {"kind": "drawn_animals", "objects": 10, "negatives": 10},
        "model": {"network": "compact"},
        "template": {"shape": "gradient"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.05},
        "search": {
            "kind": "named",
            "runs": [
                {"name": "plain", "set": {"template": {"shape": "none"}}},
                {"name": "l1"},
                {"name": "l2", "set": {"template.norm": "l2"}},
            ],
        },
    }
)
EXPERIMENT = experiment_id(SPEC)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A home with an experiment of three runs, the last of which failed; one of which nothing but a run is there."""
    home = tmp_path_factory.mktemp("home")
    paths = Paths.from_environment({"IPCNN_HOME": str(home)})
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    tracker.prepare("sweep")
    parent = tracker.open_parent("sweep", EXPERIMENT)
    parent.log_text(resolved_yaml(SPEC), "spec.yaml")
    for run in named_runs(SPEC):
        record = tracker.open_child("sweep", run_id(SPEC, run), parent.handle)
        if run.label == "l2":
            record.set_state("failed", "TrainingError: the loss is not finite")
            continue
        folder = f"{paths.storage}/{EXPERIMENT}/{run.label}"
        summary = RunSummary(run_id(SPEC, run), run.label)
        train_run(RunRequest(summary, run.spec, paths, record.handle, folder), Runtime(), tracker)
    tracker.prepare("single")
    tracker.open_parent("single", "single-87654321").set_state("succeeded")
    return home


@pytest.fixture
def home(home, trained, monkeypatch) -> Path:
    monkeypatch.setenv("IPCNN_HOME", str(trained))
    return trained


def run(*words: str) -> Result:
    return run_command("pictures", *words)


def artifacts(home: Path, id_: str) -> dict[str, int]:
    """Files under pictures/ in the record of a run, with their sizes."""
    uri = f"sqlite:///{home}/mlflow.db"
    (recorded,) = MlflowTracker(uri).find("sweep", id_)
    found = MlflowClient(uri).list_artifacts(recorded.handle, "pictures")
    return {Path(one.path).name: one.file_size for one in found}


@pytest.mark.slow
def test_every_file_is_in_the_folder_and_in_the_record(home, tmp_path):
    done = run("sweep", "--filters", "2", "--out", str(tmp_path), "--json")
    told = json.loads(done.stdout)
    files = [Path(name) for name in told["files"]]
    assert sorted(files) == sorted(path for path in tmp_path.rglob("*") if path.is_file())
    assert sum(path.name.startswith("rank_") for path in files) == 4
    for label in ("plain", "l1"):
        mine = {path.name: path.stat().st_size for path in files if path.parent.name == label}
        assert {"filters.csv", "distances.csv", "filters_ranked.png"} < set(mine)
        assert artifacts(home, f"{EXPERIMENT}-{label}") == mine
    fields = {path.name: path.stat().st_size for path in files if path.parent == tmp_path}
    assert artifacts(home, EXPERIMENT) == fields
    assert set(fields) == {"receptive_fields_stable.png", "receptive_fields_median.png"}
    assert "not pictured: l2 (--run LABEL pictures a run)" in done.stderr
    assert re.search(r"plain: looking, (\d+) of \1 images\nplain: 2 pictures of filters\n", done.stderr)
    for one in told["runs"]:
        assert one["instability"] == pytest.approx(one["recorded"], abs=1e-6)
        rows = list(csv.DictReader((tmp_path / one["run"].rpartition("-")[2] / "filters.csv").open()))
        numbers = [float(row["instability"]) for row in rows if row["rank"]]
        assert numbers == sorted(numbers)
        assert sum(numbers) / len(numbers) == pytest.approx(one["recorded"], abs=1e-6)
        assert len(rows) == one["filters"] == len(numbers) + one["dropped"]


@pytest.mark.slow
def test_what_the_terminal_says(home, tmp_path):
    done = run(f"{EXPERIMENT}", "--run", "l1", "--filters", "3", "--out", str(tmp_path / "new"))
    head, columns, *rows = done.stdout.splitlines()
    assert re.fullmatch(r"l1: L1 β2, conv5: 32 filters, instability 0\.\d{4}", head)
    assert columns.split()[:3] == ["rank", "filter", "instability"]
    assert [row.split()[0] for row in rows[:3]] == ["1", "17", "32"]
    assert max(map(len, (head, columns, *rows[:3]))) <= 80
    assert done.stdout.endswith("files in " + f"{tmp_path / 'new'}\n" + rows[-1] + "\n")
    assert rows[-1] == "the same in the record, under pictures/ of the experiment and of each run"


def test_a_run_by_its_id_goes_to_the_default_folder(home):
    told = json.loads(run(f"{EXPERIMENT}-plain", "--filters", "1", "--json").stdout)
    assert told["folder"] == f"{home}/pictures/{EXPERIMENT}"
    assert [one["run"] for one in told["runs"]] == [f"{EXPERIMENT}-plain"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("swep",), "no experiment and no run is recorded as 'swep'\nDid you mean 'sweep'?"),
        (("sweep", "--run", "l11"), f"no run 'l11' in {EXPERIMENT}\nDid you mean 'l1'?"),
        (("sweep", "--run", "zzzzz"), f"no run 'zzzzz' in {EXPERIMENT}\nIt has plain, l1, l2."),
        (
            ("sweep", "--run", "l2"),
            f"run l2 of {EXPERIMENT} is failed: TrainingError: the loss is not finite\n"
            "Pictures are made of finished runs. Wait for it, or submit the experiment again: it goes on.",
        ),
        (("sweep", "--run", "l1", "--run", "l1"), "--run l1 is given more than once\nGive it once."),
        (
            (f"{EXPERIMENT}-l2",),
            f"no run of {EXPERIMENT} has succeeded: l2 failed\nPictures are made of finished runs.",
        ),
    ],
)
def test_wrong_requests(home, words, text):
    with pytest.raises(IpcnnError, match=re.escape(text)):
        run(*words)


def test_a_record_without_its_spec(home):
    with pytest.raises(TrackingError, match=r"has no readable spec\.yaml in its record\nIts artifacts were deleted"):
        run("single")


def test_another_storage(home, tmp_path, monkeypatch):
    monkeypatch.setenv("IPCNN_STORAGE", str(tmp_path))
    text = f"weights.safetensors is missing in {tmp_path}/{EXPERIMENT}/plain, {tmp_path}/{EXPERIMENT}/l1\nThe runs were"
    with pytest.raises(IpcnnError, match=re.escape(text)):
        run("sweep")


def test_a_folder_that_cannot_be_made(home, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IpcnnError, match=r"file/plain cannot be made: .*\nGive another folder with --out\."):
        run("sweep", "--out", str(tmp_path / "file"))


def test_data_that_are_gone_are_drawn_again_and_others_are_refused(home, tmp_path, monkeypatch):
    monkeypatch.setenv("IPCNN_CACHE", str(tmp_path / "cache"))
    told = json.loads(run("sweep", "--run", "l1", "--filters", "1", "--json", "--out", str(tmp_path / "o")).stdout)
    assert told["runs"][0]["instability"] == pytest.approx(told["runs"][0]["recorded"], abs=1e-6)
    copy = tmp_path / "home"
    copy.mkdir()
    shutil.copy(home / "mlflow.db", copy)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{copy}/mlflow.db")
    tracker = MlflowTracker(f"sqlite:///{copy}/mlflow.db")
    (recorded,) = tracker.find("sweep", f"{EXPERIMENT}-l1")
    tracker.attach(recorded.handle).set_tags({"data.digest": "0123456789abcdef"})
    with pytest.raises(DataError, match=r"recorded 0123456789abcdef\n *Set IPCNN_DATA to the folder of then"):
        run("sweep", "--run", "l1")


def test_without_landmarks_there_are_receptive_fields_only(tmp_path, monkeypatch):
    own = OwnPhotographs(tmp_path / "data")
    data = {"kind": "folder", "path": "mine", "category": ["wren", "robin"]}
    raw = {**SPEC.model_dump(mode="json", exclude={"search"}), "name": "blind", "data": data}
    spec = ExperimentSpec.model_validate({**raw, "train": {"epochs": 0}})
    paths = replace(Paths.from_environment({"IPCNN_HOME": str(tmp_path)}), data=own.root)
    tracker, identity = MlflowTracker(paths.tracking_uri, paths.artifacts), experiment_id(spec)
    tracker.prepare("blind")
    parent = tracker.open_parent("blind", identity)
    parent.log_text(resolved_yaml(spec), "spec.yaml")
    (single,) = named_runs(spec)
    record = tracker.open_child("blind", run_id(spec, single), parent.handle)
    summary = RunSummary(run_id(spec, single), single.label)
    request = RunRequest(summary, single.spec, paths, record.handle, f"{paths.storage}/{identity}/{single.label}")
    train_run(request, Runtime(), tracker)
    monkeypatch.setenv("IPCNN_HOME", str(tmp_path))  # the crops are in the cache
    done = run("blind", "--out", str(tmp_path / "out"), "--json")
    assert "the data have no landmarks, so there are no figures of distances from them" in " ".join(done.stderr.split())
    files = sorted(Path(file).name for file in json.loads(done.stdout)["files"])
    assert files == ["receptive_fields_median.png", "receptive_fields_often.png"]
    assert json.loads(done.stdout)["runs"][0]["instability"] is None
    with Image.open(tmp_path / "out/receptive_fields_often.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 24)) > 1000
    seen = load_filter_activations(request, "")
    ranked = rank_filters(seen)
    fires = [one.fires for one in ranked]
    assert fires == sorted(fires, reverse=True) and {one.category for one in ranked} <= {"wren", "robin"}
    assert [one.rank for one in ranked] == list(range(1, len(ranked) + 1))


@pytest.mark.slow
def test_the_report_shows_the_filters_with_the_numbers_of_their_run(home, tmp_path, monkeypatch):
    """Strongest images, peaks and landmarks are those that the network has, and the page holds each image once."""
    paths = Paths.from_environment()
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    (experiment,) = read_experiments(tracker, ["sweep"])
    assert [run.label for run in chosen_runs(experiment, 5)] == ["plain", "l1"]  # l2 has failed
    shown, _ = galleries(tracker, paths, experiment, 2)
    assert (shown.label, shown.layer, shown.total, len(shown.filters), shown.note) == ("plain", "conv5", 32, 32, "")
    recorded = json.loads(tracker.read(experiment.runs[0].handle, "filters.json"))["layers"]["conv5"]
    for filter_ in shown.filters:
        row = recorded[filter_.number]
        assert (filter_.landmark, filter_.tracking, filter_.instability) == (
            row["landmark"],
            row["tracking"],
            row["instability"],
        )
    activations = run_activations(tracker, paths, experiment.parent, experiment.runs[0])
    store = activations.store
    filter_ = shown.filters[3]
    c, objects = filter_.number, activations.image_N.tolist()
    by_hand = sorted(range(len(objects)), key=lambda i: (-float(activations.activation_NC[i, c]), i))[:IMAGES]
    assert [image.photograph.name for image in filter_.images] == [store.names[objects[i]] for i in by_hand]
    for image, i in zip(filter_.images, by_hand, strict=True):
        assert image.activation == float(activations.activation_NC[i, c])
        centre = (activations.peaks_NC2[i, c] + 0.5) / store.size
        assert image.peak == pytest.approx(centre.tolist(), abs=1e-6)
        for place, wanted in zip(image.landmarks, store.landmarks_NK2[objects[i]].tolist(), strict=True):
            if place is not None:
                assert place == pytest.approx([(position + 0.5) / store.size for position in wanted])
    thumbnail = Image.open(io.BytesIO(filter_.images[0].photograph.jpeg))
    assert (thumbnail.format, max(thumbnail.size)) == ("JPEG", min(SIDE, store.size))
    assert filter_.fires == pytest.approx(float(activations.fires_NC[:, c].double().mean()))
    page = run_command("report", "sweep", "--no-store", "--gallery", "2", "--out", tmp_path / "page.html")
    assert "no pictures" not in page.stderr
    html = (tmp_path / "page.html").read_text()
    photographs = {image.photograph.name for each in shown.filters for image in each.images}
    assert len(photographs) <= html.count("data:image/jpeg;base64,") <= len(objects)
    assert (
        run_command("report", "sweep", "--no-store", "--gallery", "0", "--out", tmp_path / "page.html").exit_code == 0
    )
    assert "data:image/jpeg" not in (tmp_path / "page.html").read_text()

    monkeypatch.setenv("IPCNN_STORAGE", str(tmp_path / "elsewhere"))
    without, _ = galleries(tracker, Paths.from_environment(), experiment, 2)
    assert without.note.startswith("weights.safetensors is missing in ")
    assert [replace(each, fires=None, images=()) for each in shown.filters] == list(without.filters)
    assert without.summary == shown.summary


def test_of_many_filters_an_even_sample_is_shown():
    filters = [ShownFilter(c, "cow", None, c / 200, None) for c in range(200)]
    sample = _sample(filters)
    assert len(sample) == MOST_FILTERS
    assert [sample[0].number, sample[-1].number] == [199, 0]  # from the one that tracks best to the one that does least
    assert [shown.number for shown in _sample(filters[:3])] == [2, 1, 0]
