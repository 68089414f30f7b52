from __future__ import annotations

import json

import pytest
from PIL import Image

from ipcnn_ray.cli.app import main

SPEC = """\
name: looked_at
data: {kind: drawn_animals, category: [cow, bird], objects: 10}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 1, batch_size: 8}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    for name in ("IPCNN_CACHE", "IPCNN_DATA", "IPCNN_STORAGE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("IPCNN_HOME", str(tmp_path / "home"))
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


def run(*arguments) -> int:
    try:
        main(list(map(str, arguments)))
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def test_list_says_what_is_there(home, capsys, monkeypatch):
    assert run("data", "list") == 0
    assert "IPCNN_DATA is not set" in capsys.readouterr().out
    monkeypatch.setenv("IPCNN_DATA", str(home))
    (home / "CUB_200_2011").mkdir()
    assert run("data", "list", "--json") == 0
    found = {one["kind"]: one for one in json.loads(capsys.readouterr().out)["datasets"]}
    assert found["drawn_animals"]["there"] and not found["cub200"]["there"]
    assert found["cub200"]["missing"] == ["voc/neg"]


def test_prepare_and_check_draw_a_sheet(home, capsys):
    assert run("data", "prepare", home / "spec.yaml") == 0
    assert "20 crops of 64 x 64 pixels" in capsys.readouterr().out
    assert run("data", "check", home / "spec.yaml", "--sheet", home / "sheet.png") == 0
    told = capsys.readouterr().out
    assert "cow             10 objects" in told and "bird            10 objects" in told
    page = Image.open(home / "sheet.png")
    assert page.size == (8 * 128, 20 + 4 * (128 + 14)) and len(page.getcolors(1 << 24)) > 1000
    assert run("data", "check", home / "spec.yaml", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["objects_of"] == {"cow": 10, "bird": 10} and found["negatives"] == 0
    assert Image.open(found["contact_sheet"]).size == page.size


def test_what_cannot_be_fetched(home, capsys):
    assert run("data", "fetch", "cub20") == 2
    assert "error  cub20  there is no such dataset to fetch" in (told := capsys.readouterr().err)
    assert "There are voc_part, ilsvrc_animal_part, cub200. Did you mean 'cub200'?" in told
    assert run("data", "fetch", "cub200") == 2
    assert "IPCNN_DATA  is not set" in capsys.readouterr().err


def test_check_of_a_folder_that_is_not_there(home, capsys, monkeypatch):
    monkeypatch.setenv("IPCNN_DATA", str(home))
    assert run("data", "check", home / "spec.yaml", "--set", "data={kind: cub200}") == 2
    assert "IPCNN_DATA must name the folder that holds CUB_200_2011/." in capsys.readouterr().err


def test_a_bucket_is_no_folder_to_fetch_into(home, capsys, monkeypatch):
    monkeypatch.setenv("IPCNN_DATA", "s3://bucket/data")
    assert run("data", "fetch", "voc_part") == 2
    told = capsys.readouterr().err
    assert "IPCNN_DATA  is s3://bucket/data, not a folder" in told and "copy the folder to the bucket" in told
    assert run("data", "list") == 2
