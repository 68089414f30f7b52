"""`ipcnn predict` on small recorded runs: table, JSON, files, boxes, what is refused, and the job of a cluster."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fakes.commands import run_command
from PIL import Image

import ipcnn_ray
from ipcnn_ray.cli import output
from ipcnn_ray.cli import predict as command
from ipcnn_ray.errors import DataError, IpcnnError, TrainingError
from ipcnn_ray.on_ray import job_client
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.runs import experiment_id, named_runs, resolved_yaml, run_id
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.trainer import train_run
from ipcnn_ray.utils.paths import Paths

SPEC = ExperimentSpec.model_validate(
    {
        "name": "two",
        "data": {"kind": "drawn_animals", "category": ["cow", "dog"], "objects": 12, "negatives": 6},
        "model": {"network": "compact"},
        "template": {"shape": "gradient"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.05},
        "eval": {"top_images": 5, "few_images": 3},
        "search": {
            "kind": "named",
            "runs": [
                {"name": "plain"},
                {"name": "broken", "set": {"template.norm": "l2"}},
                {"name": "late", "set": {"seed": 1}},
            ],
            "objective": {"kind": "measure", "measure": "instability"},
        },
    }
)
EXPERIMENT = experiment_id(SPEC)
RUN = f"{EXPERIMENT}-plain"


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A home with a run that was pruned after its first epoch, one that failed and one that is queued."""
    home = tmp_path_factory.mktemp("home")
    paths = Paths.from_environment({"IPCNN_HOME": str(home)})
    tracker = MlflowTracker(paths.tracking_uri, paths.artifacts)
    tracker.prepare("two")
    parent = tracker.open_parent("two", EXPERIMENT)
    parent.log_text(resolved_yaml(SPEC), "spec.yaml")
    for run in named_runs(SPEC):
        record = tracker.open_child("two", run_id(SPEC, run), parent.handle)
        record.set_tags({"ipcnn.label": run.label, "ipcnn.origin": "named"})
        if run.label == "plain":
            summary = RunSummary(run_id(SPEC, run), run.label)
            folder = f"{paths.storage}/{EXPERIMENT}/{run.label}"
            train_run(RunRequest(summary, run.spec, paths, record.handle, folder), Runtime(), tracker)
            record.set_state("pruned", "worse than others")
        if run.label == "broken":
            record.set_state("failed", "TrainingError: the loss is not finite")
    return home


@pytest.fixture
def home(home, trained, monkeypatch) -> Path:
    monkeypatch.setenv("IPCNN_HOME", str(trained))
    shutil.rmtree(trained / "predictions", ignore_errors=True)
    return trained


@pytest.fixture
def photos(tmp_path, monkeypatch) -> Path:
    """Four photographs that are not square, one of which is in a folder below, and a file that is none."""
    rng = np.random.default_rng(4)
    for name, size in (("a.png", (90, 60)), ("b.jpg", (50, 80)), ("in/c.png", (64, 64)), ("in/d.png", (130, 40))):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), np.uint8))
        small.resize(size, Image.Resampling.BICUBIC).save(path)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def test_json_is_what_explain_says(home, photos):
    told = json.loads(run_command("predict", RUN, "photos/a.png", "photos/in", "--json").stdout)
    assert (told["run"], told["categories"], told["failed"]) == (RUN, ["cow", "dog"], [])
    assert [image["image"] for image in told["images"]] == ["photos/a.png", "photos/in/c.png", "photos/in/d.png"]
    model = ipcnn_ray.load_model(RUN)
    for image in told["images"]:
        said = model.explain(image["image"])
        expected = json.loads(json.dumps(said.as_json()))
        assert {key: image[key] for key in ("width", "height", "box", "crop_size", "decision")} == {
            key: expected[key] for key in ("width", "height", "box", "crop_size", "decision")
        }
        for name, score in said.scores.items():
            assert image["scores"][name]["logit"] == pytest.approx(score.logit, rel=1e-5)
        assert len(image["filters"]) == len(expected["filters"]) > 0
        for ours, theirs in zip(image["filters"], expected["filters"], strict=True):
            assert ours["activation"] == pytest.approx(theirs["activation"], rel=1e-4)
    assert not (home / "predictions").exists()  # only with --out


def test_table_page_and_files(home, photos, tmp_path, monkeypatch):
    monkeypatch.setattr(output.stdout, "width", output.PIPE_WIDTH)
    (photos / "broken.jpg").write_text("no image")
    done = run_command("predict", RUN, "photos", "--filters", "2", code=1)
    folder = home / "predictions" / RUN
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["image", "decision", "probability", "(logit)", "filters", "that", "fire"]
    assert re.match(r"photos/a\.png +(none|cow|dog|cow, dog) +(cow|dog) \d+\.\d % \([+-]\d", lines[1])
    assert "photos/in/d.png" in done.stdout
    assert f"page, pictures, JSON and CSV: {folder}/predictions.html" in done.stdout
    error = " ".join(done.stderr.split())
    assert "photos/broken.jpg is not an image It has no prediction. 1 image of 5 could not be read" in error
    told = json.loads((folder / "predictions.json").read_text())
    assert told["failed"] == [{"image": "photos/broken.jpg", "error": "is not an image"}]
    with (folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == [
        *(image["image"] for image in told["images"]),
        "photos/broken.jpg",
    ]
    assert float(rows[0]["logit_dog"]) == told["images"][0]["scores"]["dog"]["logit"]
    assert (rows[0]["xmax"], rows[0]["ymax"], rows[-1]["error"]) == ("90", "60", "is not an image")
    names = ["0001_a.jpg", "0002_b.jpg", "0003_c.jpg", "0004_d.jpg"]
    assert sorted(path.name for path in (folder / "pictures").iterdir()) == names
    with Image.open(folder / "pictures/0001_a.jpg") as picture:
        assert picture.width > picture.height and len(picture.convert("RGB").getcolors(1 << 24)) > 1000
    html = (folder / "predictions.html").read_text()
    assert html.count("data:image/jpeg;base64,") == 4 and f"Predictions of {RUN}" in html
    for table in re.findall(r'<table id="filters_000.*?</table>', html, re.S):
        assert 1 <= table.count("<tr>") - 1 <= 6  # two of each layer, and those that are drawn
    # again, with fewer images: nothing of the earlier call is left, and its pictures are no images
    run_command("predict", RUN, "photos/a.png", "--filters", "2")
    assert [path.name for path in (folder / "pictures").iterdir()] == ["0001_a.jpg"]
    (photos / "broken.jpg").unlink()
    for _ in range(2):
        told = json.loads(run_command("predict", RUN, "photos", "--json", "--out", "photos/said").stdout)
        assert len(told["images"]) == 4


def test_boxes(home, photos):
    Path("boxes.csv").write_text(
        "image,xmin,ymin,xmax,ymax\na.png,10,5,70,45\na.png,0,0,20,20\nphotos/b.jpg,0,0,60,9\n"
    )
    told = json.loads(run_command("predict", RUN, "photos", "--boxes", "boxes.csv", "--json", code=1).stdout)
    assert [(image["image"][7:], image["box"]) for image in told["images"]] == [
        ("a.png", [10, 5, 70, 45]),
        ("a.png", [0, 0, 20, 20]),
        ("in/c.png", [0, 0, 64, 64]),
        ("in/d.png", [0, 0, 130, 40]),
    ]
    assert told["failed"][0]["image"] == "photos/b.jpg"
    assert told["failed"][0]["error"].startswith("has the box 0, 0, 60, 9, which is not a box inside its 0, 0, 50, 80")
    shutil.copy("boxes.csv", photos / "boxes.csv")
    own = (photos / "boxes.csv").read_text().replace("photos/b.jpg,0,0,60,9\n", "")
    (photos / "boxes.csv").write_text(own)
    alone = json.loads(run_command("predict", RUN, "--boxes", "photos/boxes.csv", "--json").stdout)
    assert [image["scores"] for image in alone["images"]] != [] and len(alone["images"]) == 2
    logits = [[image["scores"]["cow"]["logit"] for image in one["images"][:2]] for one in (alone, told)]
    assert logits[0] == pytest.approx(logits[1], rel=1e-5)


@pytest.mark.parametrize(
    ("words", "error", "text"),
    [
        ((RUN,), IpcnnError, "no images are given\nGive files, folders"),
        ((RUN, "fotos"), DataError, "fotos  no such file or folder"),
        ((RUN, "empty"), DataError, "empty  holds no images"),
        (
            (EXPERIMENT, "photos"),
            IpcnnError,
            f"{EXPERIMENT} has 3 runs\nGive the id of one: {RUN}, ",
        ),
        (("tow", "photos"), IpcnnError, "no experiment and no run is recorded as 'tow'\nDid you mean 'two'"),
        (
            (f"{EXPERIMENT}-broken", "photos"),
            IpcnnError,
            f"run {EXPERIMENT}-broken has failed: TrainingError: the loss is not finite\nSubmit the experiment again",
        ),
        ((f"{EXPERIMENT}-late", "photos"), TrainingError, "late: it has not ended yet"),
        ((RUN, "photos", "--workers", "2"), IpcnnError, "--workers is for predictions on Ray\nGive --parquet"),
        ((RUN, "photos", "--detach"), IpcnnError, "--detach is for a cluster"),
        ((RUN, "photos", "--out", "o", "--parquet", "p"), IpcnnError, "Give one of them."),
        (
            (RUN, "photos", "--out", "photos"),
            IpcnnError,
            "photos holds other files, such as a.png\nGive another",
        ),
        ((RUN, "photos", "--out", "photos/a.png"), IpcnnError, "photos/a.png is a file"),
        ((RUN, "photos", "--boxes", "gone.csv"), DataError, "gone.csv  cannot be read"),
    ],
)
def test_wrong_requests(home, photos, words, error, text):
    Path("empty").mkdir()
    with pytest.raises(error, match=re.escape(text)):
        run_command("predict", *words)
    assert sorted(path.name for path in photos.iterdir()) == ["a.png", "b.jpg", "in"]


def test_many_images_are_for_ray(home, photos, monkeypatch):
    monkeypatch.setattr(command, "MOST_HERE", 3)
    with pytest.raises(IpcnnError, match="4 images are more than the 3 that get a page\nGive --parquet FOLDER"):
        run_command("predict", RUN, "photos")


def test_nothing_that_can_be_read(home, photos):
    (photos / "only").mkdir()
    (photos / "only/x.jpg").write_text("no image")
    done = run_command("predict", RUN, "photos/only", code=1)
    assert "1 image of 1 could not be read" in done.stderr
    told = json.loads(run_command("predict", RUN, "photos/only", "--json", code=1).stdout)
    assert told["images"] == [] and len(told["failed"]) == 1


@pytest.mark.slow
def test_few_images_start_no_ray_and_draw_nothing_for_scripts(home, photos):
    code = (
        "import sys\nfrom ipcnn_ray.cli.app import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "print({'ray', 'matplotlib', 'pyarrow.parquet', 'optuna'} & set(sys.modules), file=sys.stderr)"
    )
    words = ["predict", RUN, str(photos / "a.png"), "--json"]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["run"] == RUN
    assert done.stderr.splitlines()[-1] == "set()"


class FakeJobs:
    """The jobs of a cluster; keeps what is submitted."""

    submitted: list[tuple[str, list[str], dict[str, bytes]]]

    def __init__(self, address: str) -> None:
        assert address == "http://head:8265"

    def submit(self, experiment, folder, arguments, env):
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".csv"}
        assert (folder / "ipcnn_ray/cli/predict.py").is_file()
        self.submitted.append((experiment, list(arguments), files))
        return self.job(experiment), True

    def job(self, id):
        return job_client.ExperimentJob(id, id, 1, "succeeded", "", 0, 1, 0)

    def logs(self, id, *, follow):
        yield "predicting, 2 of 2 images\n"


def test_a_prediction_on_a_cluster_is_a_job(home, photos, monkeypatch):
    """Paths are those of its nodes; the table of boxes goes with the job; the same request has the same id."""
    monkeypatch.setattr(FakeJobs, "submitted", [], raising=False)
    monkeypatch.setattr(job_client, "JobClient", FakeJobs)
    Path("boxes.csv").write_text("image,xmin,ymin,xmax,ymax\na.png,10,5,70,45\n")
    words = ("predict", RUN, "photos", "s3://bucket/in", "--boxes", "boxes.csv", "--address", "http://head:8265")
    done = run_command(*words)
    assert "predicting, 2 of 2 images" in done.stdout
    run_command(*words, "--workers", "3")
    run_command(*words, "--parquet", "s3://bucket/out", "--detach")
    (one, arguments, files), (same, more, _), (other, to, _) = FakeJobs.submitted
    assert arguments == ["predict", RUN, str(photos), "s3://bucket/in", "--on-cluster", "--boxes", "boxes.csv"]
    assert files == {"boxes.csv": Path("boxes.csv").read_bytes()}
    assert one == same != other and one.startswith("predict.") and more[-2:] == ["--workers", "3"]
    assert to[5:7] == ["--parquet", "s3://bucket/out"]
    assert job_client.ExperimentJob(one, one, 1, "running", "", 0, None, None).predicts
    with pytest.raises(IpcnnError, match="no images are given"):
        run_command("predict", RUN, "--boxes", "boxes.csv", "--address", "http://head:8265")


def test_a_job_predicts_on_the_ray_of_its_node(home, photos, monkeypatch):
    """With boxes beside it, to a folder of the storage; a repeated job has the same one."""
    from ipcnn_ray.on_ray import batch_prediction

    calls = []

    def predict_on_ray(request, images, target, **how):
        calls.append((request.run_id, images, target, how))
        return batch_prediction.PredictionSummary(request.run_id, target, 5, {"cow": 4}, [], 1, "d")

    monkeypatch.setattr(batch_prediction, "predict_on_ray", predict_on_ray)
    Path("boxes.csv").write_text("image,xmin,ymin,xmax,ymax\na.png,10,5,70,45\n")
    words = ("predict", RUN, str(photos), "--on-cluster", "--boxes", "boxes.csv")
    done = run_command(*words)
    assert "5 images predicted by" in done.stdout and "1 Parquet file in" in done.stdout
    monkeypatch.chdir(photos.parent)
    assert json.loads(run_command(*words, "--workers", "2", "--json").stdout)["images"] == 5
    (run, images, target, how), (*_, again, twice) = calls
    assert run == RUN and how["address"] == "auto" and how["workers"] is None and twice["workers"] == 2
    assert images[0].edges == (10, 5, 70, 45) and len(images) == 4
    assert target == again and re.fullmatch(rf"{home}/runs/predictions/{RUN}-[0-9a-f]{{8}}", target)
