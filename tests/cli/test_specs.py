"""`ipcnn validate`, `plan`, `schema` and `init`: what they print, where, and their exit codes."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from typer.main import get_command

from ipcnn_ray.cli.app import app
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.on_ray import gpu_share
from ipcnn_ray.spec.loader import load

ROOT = Path(__file__).resolve().parents[2]
TYPO = """\
name: typo
data: {kind: drawn_animals}
template: {shape: uniform}
train: {epochs: 4}
# the highest layers of VGG-16




model:
  network: vgg16
  interpretable_layers:
    - conv5_3
    - conv5_4
"""
SWEEP = """\
name: sweep
data: {kind: drawn_animals, objects: 40, negatives: 20}
model: {network: compact}
template: {shape: uniform}
train: {epochs: 6, batch_size: 16}
compute: {workers: 2}
search:
  kind: space
  trials: 1000
  runs: [{name: plain, set: {template.shape: none}}]
  space:
    template.norm: {choice: [l1, l2]}
    template.beta: {log_uniform: [1, 8]}
    train.momentum: {uniform: [0.5, 0.9], when: {template.norm: l2}}
  early_stopping: {grace_epochs: 2}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    (tmp_path / "specs").mkdir()
    (tmp_path / "specs/typo.yaml").write_text(TYPO)
    (tmp_path / "specs/sweep.yaml").write_text(SWEEP)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_error_is_told_as_in_the_house_style(ipcnn):
    assert ipcnn("validate", "specs/typo.yaml") == (
        2,
        "",
        "error  specs/typo.yaml:14  model.interpretable_layers.1 = 'conv5_4'\n"
        "       vgg16 has no such layer; it has conv1_1 ... conv5_3, conv6. Did you mean\n"
        "       'conv5_3'?\n",
    )


def test_every_file_is_checked(ipcnn):
    code, out, err = ipcnn("validate", "specs/typo.yaml", "specs/sweep.yaml", "specs/none.yaml")
    assert code == 2
    assert out.startswith("ok     specs/sweep.yaml  sweep-") and out.endswith("  1001 runs\n")
    assert [line[:30] for line in err.splitlines() if line.startswith("error")] == [
        "error  specs/typo.yaml:14  mod",
        "error  specs/none.yaml  there ",
    ]


def test_debug_shows_the_traceback_wherever_it_stands(ipcnn):
    for arguments in (("--debug", "validate", "specs/typo.yaml"), ("validate", "specs/typo.yaml", "--debug")):
        code, _, err = ipcnn(*arguments)
        assert code == 2
        assert "Traceback (most recent call last)" in err and "\nerror  specs/typo.yaml:14" in err
    assert "Traceback" not in ipcnn("validate", "specs/typo.yaml")[2]


def test_resolved_is_a_spec_of_the_same_experiment(ipcnn, folder):
    _, out, _ = ipcnn("validate", "specs/sweep.yaml", "--resolved", "--set", "train.epochs=3")
    (folder / "resolved.yaml").write_text(out)
    words = ipcnn("validate", "specs/sweep.yaml", "--set", "train.epochs=3")[1].split()
    assert ipcnn("validate", "resolved.yaml")[1].split()[2] == words[2]
    assert "final_learning_rate: 0.01" in out


def test_validate_for_scripts(ipcnn):
    code, out, err = ipcnn("validate", "specs/typo.yaml", "specs/sweep.yaml", "--json")
    told = json.loads(out)
    assert (code, err, told["valid"]) == (2, "", False)
    assert told["specs"][0]["runs"] == 1001
    assert told["problems"] == [
        {
            "where": "specs/typo.yaml:14",
            "what": "model.interpretable_layers.1 = 'conv5_4'",
            "advice": "vgg16 has no such layer; it has conv1_1 ... conv5_3, conv6. Did you mean 'conv5_3'?",
        }
    ]
    assert ipcnn("validate", "specs/sweep.yaml", "--json")[0] == 0


def test_plan(ipcnn):
    # 30 of 40 objects, twice, and 15 of 20 negatives: 75 items, 4 full batches of 16
    code, out, err = ipcnn("plan", "specs/sweep.yaml")
    assert (code, err) == (0, "")
    first, *lines = [line.rstrip() for line in out.splitlines()]
    assert first.startswith("sweep-")
    assert lines == [
        "run         template      epochs  batch  steps  images",
        "plain       plain              6     16     24     384",
        "1000 drawn  each at most       6     16     24     384",
        "drawn from      template.norm: l1, l2",
        "                template.beta: 1 to 8, logarithmic",
        "                train.momentum: 0.5 to 0.9, when template.norm is l2",
        "in all          1001 runs of 2 workers, 24 024 steps, 384 384 images",
        "early stopping  may end a run after epoch 2",
    ]


def test_plan_of_a_run_that_is_only_measured_and_of_augmented_images(ipcnn):
    train, augment = "train={epochs: 0, batch_size: 16}", "data.augment={crop: [0.6, 1.0]}"
    spec = str(ROOT / "specs/voc/alexnet_templates.yaml")
    told = json.loads(ipcnn("plan", spec, "--json", "--set", train)[1])
    assert {(run["epochs"], run["steps"], run["images"]) for run in told["runs"]} == {(0, 0, 0)}
    note = "augmented       frozen layers run in every epoch: outputs for augmented images are not cached"
    assert note in ipcnn("plan", spec, "--set", augment)[1]
    assert "augmented" not in ipcnn("plan", spec)[1]
    assert "augmented" not in ipcnn("plan", spec, "--set", "data.augment={}")[1]


def test_plan_lists_the_seeds(ipcnn):
    out = ipcnn("plan", str(ROOT / "specs/templates_repeated.yaml"))[1]
    assert "seeds           0 to 7, every run with each of them" in out and "40 runs" in out


def test_plan_says_how_many_runs_share_a_gpu(ipcnn, tmp_path, monkeypatch):
    """Of this machine if it has any; torch is asked where a driver is."""
    one_worker = ("plan", "specs/sweep.yaml", "--set", "compute.workers=1")
    monkeypatch.setenv("PATH", "/nowhere")
    assert "GPUs            up to 4 runs at a time on each, as cores and memory allow" in ipcnn(*one_worker)[1]
    for setting in ("compute.workers=2", "compute.gpus_per_worker=0.25", "compute.concurrent_runs=1"):
        assert "GPUs" not in ipcnn(*one_worker, "--set", setting)[1]
    driver = tmp_path / "bin" / "nvidia-smi"
    driver.parent.mkdir()
    driver.touch(0o755)
    monkeypatch.setenv("PATH", str(driver.parent))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(gpu_share, "own_gpus", lambda: {"GPU": 1.0, gpu_share.GPU_MEMORY: 80.0 * gpu_share.GIB})
    assert re.search(
        r"^GPUs            2 runs on each \(80 GiB\): a run takes up to \d\.\d GiB, estimated$",
        ipcnn(*one_worker)[1],
        re.MULTILINE,
    )
    monkeypatch.setattr(gpu_share, "own_gpus", lambda: {"GPU": 2.0})
    assert "one run on each: two take 2 cores, each GPU has 1" in ipcnn(*one_worker)[1]


def test_plan_before_the_data_is_there(ipcnn):
    code, out, _ = ipcnn("plan", str(ROOT / "specs/voc/alexnet_templates.yaml"))
    assert code == 0
    assert out.count("after preparation") == 6
    assert all(len(line) <= 80 for line in out.splitlines())
    told = json.loads(ipcnn("plan", str(ROOT / "specs/voc/alexnet_templates.yaml"), "--json")[1])
    assert told["steps"] is None and len(told["runs"]) == 5


@pytest.mark.real_data
def test_plan_counts_real_items(ipcnn, monkeypatch, real_data):
    monkeypatch.setenv("IPCNN_DATA", str(real_data))
    spec = str(ROOT / "specs/voc/alexnet_templates.yaml")
    told = json.loads(ipcnn("plan", spec, "--json", "--set", "train.batch_size=100", "--set", "train.epochs=1")[1])
    # 3,000 positives and 1,000 negatives, nine tenths of each (released split); small objects are left out first
    assert {run["items"] // 100 for run in told["runs"]} == {36}


def test_plan_for_scripts(ipcnn):
    told = json.loads(ipcnn("plan", "specs/sweep.yaml", "--json")[1])
    assert (told["drawn"], told["steps"], told["images"], told["workers"]) == (1000, 24024, 384384, 2)
    assert told["runs"][0]["label"] == "plain"


def test_plan_of_a_wrong_override(ipcnn):
    code, _, err = ipcnn("plan", "specs/sweep.yaml", "--set", "train.epochs=1e2")
    assert code == 2
    assert err == ("error  --set train.epochs=1e2  train.epochs = 100.0\n       must be a whole number: write 100\n")


def test_schema(ipcnn, folder):
    code, out, _ = ipcnn("schema")
    assert code == 0 and json.loads(out)["title"] == "ExperimentSpec"
    assert ipcnn("schema", "schema.json") == (0, "", "")
    assert (folder / "schema.json").read_text() == out


def test_schema_that_cannot_be_written(ipcnn):
    assert ipcnn("schema", "none/schema.json") == (
        2,
        "",
        "error  none/schema.json  cannot be written: No such file or directory\n"
        "       name a file in a folder that exists\n",
    )


def test_help_and_wrong_usage(ipcnn):
    assert ipcnn("--help")[0] == 0
    assert ipcnn("--version")[1].count(".") == 2
    assert ipcnn("nope")[0] == 2
    assert ipcnn("validate")[0] == 2
    assert ipcnn("plan", "specs/sweep.yaml", "--epochs", "3")[0] == 2


@pytest.mark.parametrize(("problem", "code"), [(TrainingError("loss is nan"), 1), (KeyboardInterrupt(), 130)])
def test_how_a_command_ends(ipcnn, monkeypatch, problem, code):
    def fails(*_: object) -> None:
        raise problem

    monkeypatch.setattr("ipcnn_ray.spec.loader.load", fails)
    assert ipcnn("validate", "specs/sweep.yaml")[0] == code


def test_settings_enter_through_the_spec_only():
    """A new option here is a new field of the spec, unless it says where or how to print."""
    allowed = {"--set", "--json", "--resolved", "--help"}
    commands = get_command(app).commands
    for name in ("validate", "plan", "schema"):
        options = {option for parameter in commands[name].params for option in parameter.opts if option[:2] == "--"}
        assert options <= allowed


def test_init_writes_a_valid_spec_and_overwrites_nothing(ipcnn, folder):
    assert ipcnn("init")[1] == "wrote experiment.yaml\n"
    assert ipcnn("init", "My first sweep.yaml")[0] == 0
    assert load(folder / "My first sweep.yaml").spec.name == "my_first_sweep"
    written = (folder / "experiment.yaml").read_text()
    for file in ("experiment.yaml", "."):
        code, _, err = ipcnn("init", file)
        assert code == 2
        assert err == "error  experiment.yaml  is there already\n       Name another file: ipcnn init FILE\n"
    assert (folder / "experiment.yaml").read_text() == written
    assert "cannot be written: No such file or directory" in ipcnn("init", "nowhere/a.yaml")[2]


def test_init_for_ones_own_photographs(ipcnn, folder, monkeypatch):
    for name in ("wren/a.jpg", "robin/a.jpg", "negatives/a.jpg"):
        (folder / "birds" / name).parent.mkdir(parents=True)
        (folder / "birds" / name).touch()
    assert "IPCNN_DATA  is not set" in ipcnn("init", "birds.yaml", "--data", "birds")[2]
    monkeypatch.setenv("IPCNN_DATA", str(folder))
    code, out, err = ipcnn("init", "birds.yaml", "--data", "birds")
    assert (code, out) == (0, "wrote birds.yaml\n") and "ipcnn data check birds.yaml" in err
    data = load(folder / "birds.yaml").spec.data
    assert (data.kind, data.path, data.category) == ("folder", "birds", ("robin", "wren"))
    assert ipcnn("validate", "birds.yaml")[0] == 0
