"""`ipcnn data`: listing, fetching, preparing and checking datasets."""

from __future__ import annotations

import json

import pytest
from fakes.own_photographs import OwnPhotographs
from PIL import Image

SPEC = """\
name: looked_at
data: {kind: drawn_animals, category: [cow, bird], objects: 10}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 1, batch_size: 8}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path):
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


def test_list_says_what_is_there(folder, ipcnn, monkeypatch):
    code, out, _ = ipcnn("data", "list")
    assert code == 0 and "IPCNN_DATA is not set" in out
    monkeypatch.setenv("IPCNN_DATA", str(folder))
    (folder / "CUB_200_2011").mkdir()
    code, out, _ = ipcnn("data", "list", "--json")
    datasets = {dataset["kind"]: dataset for dataset in json.loads(out)["datasets"]}
    assert code == 0
    assert datasets["drawn_animals"]["there"] and not datasets["cub200"]["there"]
    assert datasets["cub200"]["missing"] == ["voc/neg"]


def test_prepare_and_check_draw_a_sheet(folder, ipcnn):
    spec, sheet = folder / "spec.yaml", folder / "sheet.png"
    code, out, _ = ipcnn("data", "prepare", spec)
    assert code == 0 and "20 crops of 64 x 64 pixels" in out
    code, out, _ = ipcnn("data", "check", spec, "--sheet", sheet)
    assert code == 0
    assert "cow             10 objects" in out and "bird            10 objects" in out
    page = Image.open(sheet)
    assert page.size == (8 * 128, 20 + 4 * (128 + 14)) and len(page.getcolors(1 << 24)) > 1000
    code, out, _ = ipcnn("data", "check", spec, "--json")
    counts = json.loads(out)
    assert code == 0
    assert counts["objects_of"] == {"cow": 10, "bird": 10} and counts["negatives"] == 0
    assert Image.open(counts["contact_sheet"]).size == page.size


def test_check_of_ones_own_photographs(tmp_path, ipcnn, monkeypatch):
    own = OwnPhotographs(tmp_path)
    monkeypatch.setenv("IPCNN_DATA", str(own.root))
    common = "category: [wren, robin], train_share: 0.5"
    spec, sheet = own.root / "own.yaml", own.root / "sheet.png"
    for data, landmarks in (
        ("kind: folder, path: mine, ", "landmarks       none: what needs them is not measured"),
        ("kind: table, file: mine/table.csv, landmarks: [head], min_side: 20, ", "head"),
    ):
        spec.write_text(SPEC.replace("kind: drawn_animals, category: [cow, bird], objects: 10", data + common))
        code, out, err = ipcnn("data", "check", spec, "--sheet", sheet)
        assert code == 0, err
        assert "wren            5 objects" in out and landmarks in out
        assert "left out        3: negatives beyond data.negatives = 0" in out
        with Image.open(sheet) as page:
            assert page.width == 8 * 128
    assert ipcnn("validate", spec, "--set", "eval.measures=[purity]", "--set", "data.landmarks=[]")[0] == 2
    code, _, err = ipcnn("data", "check", spec, "--set", "data.file=mine/coco.csv")
    assert code == 2 and "coco.csv  no such file" in err


@pytest.mark.parametrize(
    ("variable", "arguments", "messages"),
    [
        (
            "",
            ("fetch", "cub20"),
            (
                "error  cub20  there is no such dataset to fetch",
                "There are voc_part, ilsvrc_animal_part, cub200. Did you mean 'cub200'?",
            ),
        ),
        ("", ("fetch", "cub200"), ("IPCNN_DATA  is not set",)),
        (
            "s3://bucket/data",
            ("fetch", "voc_part"),
            ("IPCNN_DATA  is s3://bucket/data, not a folder", "copy the folder to the bucket"),
        ),
        ("s3://bucket/data", ("list",), ("IPCNN_DATA  is s3://bucket/data, not a folder",)),
        (
            ".",
            ("check", "spec.yaml", "--set", "data={kind: cub200}"),
            ("IPCNN_DATA must name the folder that holds CUB_200_2011/.",),
        ),
    ],
)
def test_what_cannot_be_done(folder, ipcnn, monkeypatch, variable, arguments, messages):
    monkeypatch.chdir(folder)
    if variable:
        monkeypatch.setenv("IPCNN_DATA", variable)
    code, _, err = ipcnn("data", *arguments)
    assert code == 2
    assert all(message in err for message in messages)
