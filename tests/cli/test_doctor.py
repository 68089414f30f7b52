"""`ipcnn doctor`: what it makes of the facts, and the facts. tests/on_ray/test_ray_session.py has those of a Ray."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from fakes.commands import run_command

from ipcnn_ray import __version__
from ipcnn_ray.cli.doctor import CheckResult, check_results
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray import cluster_probe
from ipcnn_ray.on_ray.cluster_probe import (
    clock_skew,
    damage_of,
    data_facts,
    free_bytes,
    probe_record,
    probe_storage,
    weights_facts,
)
from ipcnn_ray.tracking.storage import open_storage
from ipcnn_ray.utils.paths import Paths

FINE = {"seconds": 0.2, "error": ""}
NODE = {
    "address": "10.0.0.1",
    "head": True,
    "cores": 8.0,
    "gpus": 1.0,
    "error": "",
    "python": "3.12.3",
    "ray": "2.60.0",
    "packages": {"torch": "2.15.0", "mlflow": "3.17.2"},
    "cuda": ["NVIDIA A10G"],
    "disk": {"/tmp": 100 << 30},
    "storage": {**FINE, "conditional": True},
    "skew": 0.0,
    "data": {
        "folder": "/data",
        "there": True,
        "empty": False,
        "datasets": {
            "voc_part": {
                "folder": "voc/VOCdevkit/VOC2010/JPEGImages",
                "there": True,
                "missing": [],
                "counts": {"photographs": 9, "negatives": 5, "part masks": 0},
                "categories": ["cow"],
            },
            "cub200": {"folder": "CUB_200_2011", "there": False, "missing": [], "counts": {}, "categories": []},
        },
    },
    "weights": {"folder": "/weights", "there": True, "files": ["a.npz"], "broken": {}},
}
CHECKS = set(["versions", "authentication", "nodes", "GPUs", "clocks", "storage", "MLflow", "data", "weights", "disk"])
VOC = "nodes.1.data.datasets.voc_part."
FACTS: dict[str, Any] = {
    "access": "closed",
    "version": __version__,
    "ray": "2.60.0",
    "python": "3.12.3",
    "storage": "s3://bucket/x",
    "tracking_uri": "http://me:hidden@mlflow:5000",
    "record": FINE,
    "client_skew": 0.0,
    "nodes": [NODE, {**NODE, "address": "10.0.0.2", "head": False}],
}


def judged(check: str, changes: dict[str, Any]) -> list[CheckResult]:
    """The lines of one check after facts were changed; a dotted path may lead into a node."""
    facts = json.loads(json.dumps(FACTS))  # a copy of which no two parts are one
    for path, value in changes.items():
        place: Any = facts
        *above, last = path.split(".")
        for part in above:
            place = place[int(part)] if part.isdigit() else place[part]
        place[last] = value
    return [line for line in check_results(facts) if line.check == check]


def test_all_is_well():
    lines = check_results(FACTS)
    assert {line.state for line in lines} == {"ok"}
    assert {line.check for line in lines} == CHECKS
    assert "hidden" not in str(lines)


@pytest.mark.parametrize(
    ("check", "state", "changes", "fact", "advice"),
    [
        ("versions", "wrong", {"nodes.1.ray": "2.59.0"}, "the nodes differ: Ray 2.59.0 on Python 3.12", "same image"),
        ("versions", "wrong", {"version": "9"}, f"ipcnn 9 there, {__version__} here", "same version"),
        ("versions", "wrong", {"nodes.1.packages.torch": ""}, "10.0.0.2 lacks torch", "image of the Dockerfile"),
        ("authentication", "wrong", {"access": "open"}, "lets everybody in", "RAY_AUTH_MODE=token"),
        ("nodes", "wrong", {"nodes.1.error": "no answer within 120 s"}, "10.0.0.2: no answer", "restart it"),
        ("GPUs", "wrong", {"nodes.1.cuda": []}, "10.0.0.2: Ray offers 1, torch can use 0", "nvidia-smi"),
        ("clocks", "wrong", {"nodes.1.skew": -61.0}, "10.0.0.2 is 61.0 s behind", "NTP"),
        ("clocks", "wrong", {"client_skew": 30.0}, "this machine is 30.0 s behind", "NTP"),
        ("storage", "wrong", {"nodes.1.storage.error": "no bucket\nMake it."}, "from 10.0.0.2: no bucket", "Make it."),
        (
            "storage",
            "note",
            {"nodes.1.storage.conditional": False},
            "s3://bucket/x: the server does not know conditional requests (If-None-Match, If-Match)",
            "start one at a time",
        ),
        ("storage", "note", {"storage": "/runs"}, "/runs is a folder of each of 2 nodes", "s3://BUCKET/PREFIX"),
        ("MLflow", "wrong", {"record.error": "MLflow is away\nStart it."}, "MLflow is away", "Start it."),
        ("MLflow", "wrong", {"tracking_uri": "sqlite:///a.db"}, "is a file of one of 2 nodes", "Start a server"),
        ("data", "note", {"nodes.0.data.folder": None, "nodes.1.data.folder": None}, "only drawn", "set IPCNN_DATA"),
        ("data", "wrong", {"nodes.1.data.there": False}, "10.0.0.2: IPCNN_DATA = /data is not there", "Mount it"),
        (
            "data",
            "note",
            {VOC + "there": False},
            "10.0.0.2: /data has 0 photographs and 0 categories",
            "JPEGImages or CUB",
        ),
        ("data", "note", {VOC + "missing": ["voc/neg"]}, "10.0.0.2: voc_part: 9 photographs, 5", "data fetch voc_part"),
        ("data", "note", {"nodes.1.data.empty": True}, "10.0.0.2: only drawn animals: IPCNN_DATA = /data is", "mount"),
        ("weights", "wrong", {"nodes.1.weights.there": False}, "10.0.0.2: IPCNN_WEIGHTS = /weights is not", "Mount it"),
        (
            "weights",
            "note",
            {"nodes.1.weights.files": []},
            "10.0.0.2: none: IPCNN_WEIGHTS = /weights holds no",
            "mount",
        ),
        ("weights", "wrong", {"nodes.1.weights.broken": {"a.npz": "cut"}}, "10.0.0.2: a.npz: cut", "Fetch"),
        ("disk", "wrong", {"nodes.1.disk": {"/tmp": 1 << 30}}, "10.0.0.2: 1.0 GiB free at /tmp", "Make room"),
        ("disk", "note", {"nodes.1.disk": {"/tmp": 5 << 30}}, "10.0.0.2: 5.0 GiB free at /tmp", "Make room"),
    ],
)
def test_what_is_not_well_is_told_with_what_to_do(check, state, changes, fact, advice):
    lines = judged(check, changes)
    told = [line for line in lines if line.state == state and fact in line.fact]
    assert told, lines
    assert advice in told[0].advice
    others = [line for name in CHECKS - {check} for line in judged(name, changes) if line.state != "ok"]
    assert others == []


def test_a_head_alone_waits_for_workers():
    lines = check_results({**FACTS, "nodes": [{**NODE, "cores": 0.0, "gpus": 0.0}]})
    (line,) = [line for line in lines if line.check == "nodes"]
    assert line.state == "note"
    assert "no place for a run now" in line.fact


def test_a_slow_answer_is_no_difference_of_clocks(monkeypatch):
    now = iter([100.0, 110.0] * 3 + [100.0, 110.0] * 3 + [100.0, 110.0] * 3)
    monkeypatch.setattr("ipcnn_ray.on_ray.cluster_probe.time.time", lambda: next(now))
    assert clock_skew(lambda: 105.0) == 0
    assert clock_skew(lambda: 130.0) == 20
    assert clock_skew(lambda: 70.0) == -30


def test_weight_files_that_are_not_whole(tmp_path):
    np.savez(tmp_path / "whole.npz", a=np.ones(1000))
    cut = (tmp_path / "whole.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(cut[:-200])
    head = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    content = struct.pack("<Q", len(head)) + head + b"\0" * 8
    (tmp_path / "whole.safetensors").write_bytes(content)
    (tmp_path / "cut.safetensors").write_bytes(content[:-1])
    (tmp_path / "short.safetensors").write_bytes(content[:6])
    (tmp_path / "notes.txt").write_text("")
    assert damage_of(tmp_path / "whole.npz") == damage_of(tmp_path / "whole.safetensors") == ""
    facts = weights_facts(Paths.from_environment({"IPCNN_WEIGHTS": str(tmp_path)}))
    assert set(facts["broken"]) == {"cut.npz", "cut.safetensors", "short.safetensors"}
    assert len(facts["files"]) == 5
    assert weights_facts(Paths.from_environment({})) == {"folder": None}
    nowhere = Paths.from_environment({"IPCNN_WEIGHTS": str(tmp_path / "nowhere")})
    assert weights_facts(nowhere)["there"] is False


FILES = {
    "voc_part": ("voc/VOCdevkit/VOC2010/JPEGImages/1.jpg", "voc/neg/00001.JPEG", "voc/landmarks/cow/truth_part01.mat"),
    "cub200": ("CUB_200_2011/images/001.Albatross/1.jpg",),
    "ilsvrc_animal_part": (
        "detanimalpart/n02118333_obj/img/img/00001.jpg",
        "detanimalpart/landmarks/n02118333/truth_part01.mat",
    ),
}


@pytest.fixture(params=["folder", "bucket"])
def put(request, tmp_path):
    """Makes empty files in IPCNN_DATA; returns the facts about it."""
    if request.param == "bucket":
        request.getfixturevalue("fake_s3")
    url = "s3://bucket/data" if request.param == "bucket" else str(tmp_path / "data")

    def files(*names: str) -> dict[str, Any]:
        for name in names:
            open_storage(url).put_bytes(b"x", name)
        return data_facts(Paths.from_environment({"IPCNN_HOME": str(tmp_path), "IPCNN_DATA": url}))

    return files


def test_photographs_are_counted(put):
    assert not put()["there"]
    voc = put(*FILES["voc_part"])["datasets"]["voc_part"]
    assert voc["there"] and voc["missing"] == [] and voc["categories"] == ["cow"]
    assert voc["counts"] == {"photographs": 1, "negatives": 1, "part masks": 0}


@pytest.mark.parametrize("kind", FILES)
def test_a_folder_of_one_dataset_is_fine(put, kind):
    """A folder in which nothing of any dataset is may hold one's own photographs."""
    facts = put(*FILES[kind])
    results = data_results(facts)
    assert {result.state for result in results} <= {"ok", "note"}
    assert results[0].fact.startswith(f"{kind}: 1 photographs")
    assert ("; without voc/neg" in results[0].fact) == (kind != "voc_part")
    others = [other for other in facts["datasets"] if other != kind]
    assert results[-1].fact == f"nothing of {', '.join(others)}"
    facts = put("voc/neg/00001.JPEG")
    assert [result.state for result in data_results(facts)] == ["ok", "ok"]


def test_negatives_alone_are_no_dataset(put):
    (result,) = data_results(put("voc/neg/00001.JPEG"))
    assert result.state == "note"
    assert result.advice == (
        "They need voc/VOCdevkit/VOC2010/JPEGImages or detanimalpart or CUB_200_2011, see README; your own photographs "
        "(data.kind: table, folder) lie anywhere in it."
    )


def test_folders_of_the_image_that_nobody_mounted_are_a_note(tmp_path):
    """In the image, IPCNN_DATA and IPCNN_WEIGHTS name empty folders until something is mounted there."""
    env = {
        "IPCNN_HOME": str(tmp_path),
        "IPCNN_DATA": str(tmp_path / "data"),
        "IPCNN_WEIGHTS": str(tmp_path / "weights"),
    }
    paths = Paths.from_environment(env)

    def results() -> list[tuple[str, str]]:
        facts = {"data": data_facts(paths), "weights": weights_facts(paths)}
        changes = {f"nodes.{i}.{kind}": fact for i in range(2) for kind, fact in facts.items()}
        found = [line for check in facts for line in judged(check, changes)]
        return [(line.state, line.fact.rpartition(" = ")[2].removeprefix(f"{tmp_path}/")) for line in found]

    assert results() == [("wrong", "data is not there"), ("wrong", "weights is not there")]
    for folder in ("data", "weights"):
        (tmp_path / folder).mkdir()
    assert results() == [("note", "data is empty"), ("note", "weights holds no weight files")]
    (tmp_path / "data" / "mine.csv").touch()
    assert [state for state, _ in results()] == ["note", "note"]
    assert "0 photographs" in results()[0][1]


def data_results(facts: dict[str, Any]) -> list[CheckResult]:
    return judged("data", {"nodes.0.data": facts, "nodes.1.data": facts})


def test_weight_files_in_a_bucket_are_listed(fake_s3):
    open_storage("s3://bucket/weights").put_bytes(b"x", "alexnet.npz")
    facts = weights_facts(Paths.from_environment({"IPCNN_WEIGHTS": "s3://bucket/weights"}))
    assert facts["files"] == ["alexnet.npz"]


@pytest.mark.real_data
def test_real_photographs_are_counted(real_data):
    facts = data_facts(Paths.from_environment({"IPCNN_DATA": str(real_data)}))["datasets"]["voc_part"]
    assert facts["counts"]["photographs"] > 100 and "cow" in facts["categories"]


def test_free_space_of_a_folder_that_is_not_made_yet(tmp_path):
    free = free_bytes(tmp_path / "a" / "b")
    assert free is not None and free > 0


def test_the_storage_is_left_as_it_was(tmp_path):
    assert probe_storage(str(tmp_path))["error"] == ""
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_storage_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    probe = probe_storage(str(tmp_path / "file" / "runs"))
    assert probe["error"]
    assert "was not stored" in probe["error"] and "IPCNN_STORAGE" in probe["error"]


def test_the_record_is_written_read_and_tidied_up(tmp_path):
    from ipcnn_ray.tracking.mlflow_tracker import CHECKS, MlflowTracker

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in range(2):
        assert probe_record(uri, str(tmp_path / "artifacts"), "doctor-1")["error"] == ""
    assert MlflowTracker(uri).find(CHECKS) == []


def test_a_record_that_is_away():
    probe = probe_record("http://127.0.0.1:9", None, "doctor-1")
    assert "MLflow at http://127.0.0.1:9" in probe["error"] and "MLFLOW_TRACKING_URI" in probe["error"]


def test_addresses_that_are_none():
    with pytest.raises(IpcnnError, match=r"is not the address of a cluster's dashboard\nGive http://HOST:8265"):
        cluster_probe.probe_cluster("10.0.0.1:6379")
    with pytest.raises(IpcnnError, match=r"no Ray cluster answers at http://127\.0\.0\.1:9\nCheck that it is up"):
        cluster_probe.probe_cluster("http://127.0.0.1:9")


def test_exit_codes_and_json(wide, monkeypatch):
    facts = dict(FACTS)
    monkeypatch.setattr(cluster_probe, "probe_embedded", lambda paths: facts)
    run_command("doctor")
    facts["access"] = "open"
    told = json.loads(run_command("doctor", "--json", code=1).stdout)
    assert told["ok"] is False
    (line,) = [line for line in told["checks"] if line["state"] == "wrong"]
    assert line["check"] == "authentication" and line["advice"]
    lines = run_command("doctor", code=1).stdout.splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith("wrong"))
    assert lines[at + 1].startswith(" ") and "RAY_AUTH_MODE=token" in lines[at + 1]


def test_the_address_comes_from_the_environment_too(monkeypatch):
    monkeypatch.setattr(
        cluster_probe, "probe_cluster", lambda address: {**FACTS, "access": {"http://a": "closed"}[address]}
    )
    monkeypatch.setenv("IPCNN_ADDRESS", "http://a")
    run_command("doctor")
