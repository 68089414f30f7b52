"""`ipcnn report` and `ipcnn compare` on a small record."""

from __future__ import annotations

import json

import pytest
from fakes.commands import run_command
from fakes.tracker import PLAIN, FakeTracker, gradient, half_failed_search, repeated_templates, written
from fakes.verdict import BASELINES, recorded

from ipcnn_ray.cli import report as report_module
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker

pytestmark = pytest.mark.usefixtures("wide")


@pytest.fixture
def tracker(monkeypatch) -> FakeTracker:
    """Two experiments: templates over six seeds, and a search."""
    found = repeated_templates(6)
    search = half_failed_search(4)
    for one in ("runs", "histories", "texts"):
        getattr(found, one).update(getattr(search, one))
    monkeypatch.setattr(report_module, "open_tracker", lambda paths: found)
    return found


def run(*words: str) -> str:
    return run_command(*words).stdout


def test_the_page_is_written_and_stored(tracker, tmp_path):
    out = run("report", "templates", "--out", str(tmp_path / "deep/page.html"))
    assert out.splitlines() == ["30 of 30 runs: drawn images, not photographs.", str(tmp_path / "deep/page.html")]
    assert (tmp_path / "deep/page/convergence.png").is_file()
    stored = tracker.stored["templates-12345678"]
    assert {"report/report.html", "report/report.md", "report/report/ranking.csv"} <= set(stored)


def test_json(tracker, tmp_path):
    found = json.loads(run("report", "sweep", "--no-store", "--json", "--out", str(tmp_path / "a.html")))
    assert tracker.stored == {}
    (one,) = found["experiments"]
    assert (one["experiment"], one["runs"], found["stored"]) == ("sweep-12345678", 8, False)
    assert one["epochs_saved_by_early_stopping"] == 8
    assert str(tmp_path / "a.html") in found["files"]


def test_the_record_itself(tmp_path, monkeypatch):
    """Through MLflow: histories, the spec and times come back, and the page lies with the run."""
    real = MlflowTracker(f"sqlite:///{tmp_path}/mlflow.db", str(tmp_path / "artifacts"))
    written(half_failed_search(3), real)
    monkeypatch.setenv("IPCNN_HOME", str(tmp_path))
    run("report", "sweep", "--out", str(tmp_path / "page.html"))
    (parent,) = real.find("sweep", "sweep-12345678")
    assert "template.beta" in real.read(parent.handle, "report/report.md")
    assert real.read(parent.handle, "report/nothing.md") is None
    (plain,) = real.find("sweep", "sweep-12345678-plain")
    assert [step for step, _ in real.history(plain.handle, "val_error")] == list(range(1, 13))
    assert real.history(plain.handle, "nothing") == []
    assert plain.started <= plain.ended


@pytest.mark.parametrize("command", [("report",), ("compare", "templates")])
def test_what_is_not_recorded(tracker, command):
    with pytest.raises(IpcnnError, match=r"recorded as 'templatez'\nDid you mean 'templates'\?"):
        run(*command, "templatez")


def test_a_run_has_no_report_of_its_own(tracker):
    with pytest.raises(IpcnnError, match="sweep-12345678-l1 is one run\nReport its experiment: ipcnn report sweep-123"):
        run("report", "sweep-12345678-l1")


def test_a_place_that_cannot_be_written(tracker, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(IpcnnError, match=r"file/a\.html: .*\nName another place with --out"):
        run("report", "sweep", "--no-store", "--out", str(tmp_path / "file/a.html"))


def test_two_runs(tracker):
    out = run("compare", "sweep-12345678-plain", "sweep-12345678-l1")
    assert "B  " in out and "sweep-12345678-l1" in out
    assert [line.split() for line in out.splitlines() if line.startswith("template.")] == [
        ["template.shape", "none", "gradient"],
        ["template.norm", "-", "l1"],
        ["template.beta", "-", "2.0"],
    ]
    (line,) = [line.split() for line in out.splitlines() if line.startswith("all") and "0.1400" in line]
    assert line == ["all", "B", "-", "A", "1", "0.1400", "0.1360", "-0.0040", "-", "-", "-", "one", "seed"]
    assert "With one seed each nothing says whether a difference is more than luck." in out
    assert "Code, data and hardware are the same." in out


def test_two_experiments_are_paired_by_setting_and_seed(tracker):
    tracker.parent("later", spec={"search": {"kind": "named", "repeats": 6}})
    for seed in range(6):
        tags = {"code.commit": "0123456"}
        tracker.child(
            "later", f"plain.seed{seed}", {**PLAIN, "data.category": "cow"}, instability=0.11, seed=seed, tags=tags
        )
    tracker.child("later", "odd", gradient("l1", 4.0))
    found = json.loads(run("compare", "templates", "later", "--json"))
    (one,) = [one for one in found["metrics"] if one["measure"] == "instability"]
    assert (one["setting"], one["side"], one["difference"]["n"]) == ("plain", "later-12345678", 6)
    assert (one["p_exact"], one["verdict"]) == (2 / 2**6, "better")
    assert found["only"]["later-12345678"] == ["odd"]
    assert found["only"]["templates-12345678"] == ["l1", "l2", "uniform_l1", "uniform_l2"]
    commits = next(one["values"] for one in found["lineage"] if one["tag"] == "code.commit")
    assert commits[0].startswith("94bb8e8") and "0123456" in commits[1]


def test_one_side_is_not_enough(tracker):
    with pytest.raises(IpcnnError, match="sweep sweep is one side\nName two or more experiments or runs; recorded"):
        run("compare", "sweep", "sweep")


def test_values_that_a_search_tried_are_told_by_their_range(tracker):
    out = run("compare", "templates", "sweep")
    (line,) = [line for line in out.splitlines() if line.startswith("template.beta ")]
    betas = [float(one.params["template.beta"]) for one in tracker.runs["sweep"] if "template.beta" in one.params]
    assert len(set(betas)) == 5  # the named templates have 2.0, each of the four trials one of its own
    assert line.rstrip().endswith(f"  -, {min(betas):.4g} to {max(betas):.4g} (5 values)")


def test_the_json_of_a_report_has_verdicts_and_baselines(tmp_path, monkeypatch):
    monkeypatch.setattr(report_module, "open_tracker", lambda paths: recorded())
    (one,) = json.loads(run("report", "drawn", "--json", "--no-store", "--out", str(tmp_path / "a.html")))[
        "experiments"
    ]
    assert {verdict["setting"]: verdict["outcome"] for verdict in one["verdicts"]} == {
        "narrow": "follows parts",
        "released": "moved to the middle",
    }
    assert [(baseline["baseline"], round(baseline["value"], 4)) for baseline in one["baselines"]] == [
        ("instability_best_constant", 0.0753),
        ("instability_center", 0.0755),
        ("instability_random", 0.1389),
    ]


def test_baselines_are_rows_of_a_comparison(monkeypatch):
    found = recorded()
    found.parent("other", spec={"search": {"kind": "named", "repeats": 2}})
    for seed in range(2):
        more = {**BASELINES, "instability_center": 0.08, "following_share": 0.2, "following_share_shuffled": 0.05}
        found.child("other", f"plain.seed{seed}", PLAIN, seed=seed, more=more)
    monkeypatch.setattr(report_module, "open_tracker", lambda paths: found)
    out = run("compare", "drawn", "other")
    assert [line.split() for line in out.splitlines() if line.startswith("--")] == [
        ["--", "peak", "at", "the", "centre", "B", "-", "A", "0.0755", "0.0800", "baseline"],
        ["--", "best", "constant", "place", "B", "-", "A", "0.0753", "0.0753", "baseline"],
        ["--", "random", "cell", "B", "-", "A", "0.1389", "0.1389", "baseline"],
        ["--", "shuffled", "images", "B", "-", "A", "3", "%", "5", "%", "baseline"],
    ]
    assert not {"instability_center", "following_share_shuffled"} & {line.strip() for line in out.splitlines()}
    told = json.loads(run("compare", "drawn", "other", "--json"))
    sides = {one["side"]: one["value"] for one in told["baselines"] if one["baseline"] == "instability_center"}
    assert sides == {"drawn-12345678": pytest.approx(0.0755), "other-12345678": 0.08}
