"""A dataset of another package: what can be wrong with it. Its commands and training: tests/extensions."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import pytest
from fakes.datasets import photograph
from pydantic import Field
from snapshots import message_of

from ipcnn_ray.data.crop_store import Contents, StorePlan
from ipcnn_ray.data.datasets.dataset import Listing
from ipcnn_ray.data.photographs import AnnotatedObject, Annotations, PhotographDataset
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.spec.data import DataSection, Negatives
from ipcnn_ray.spec.extensions import DATASETS
from ipcnn_ray.spec.section import RegisteredKinds
from ipcnn_ray.utils import registry
from ipcnn_ray.utils.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
EXTENSION = ROOT / "tests/extensions/package"


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT, *paths))), "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_commands_load_no_numpy_for_a_dataset():
    code = "import sys\nfrom ipcnn_ray.cli.app import main\ntry: main(['schema'])\nfinally: print(sorted(sys.modules))"
    done = python(code, EXTENSION)
    schema, _, modules = done.stdout.rstrip().rpartition("\n")
    assert '"squares"' in schema and "'ipcnn_squares.squares'" in modules, done.stderr
    assert not any(f"'{name}'" in modules for name in ("numpy", "PIL", "torch"))


@pytest.mark.slow
def test_a_command_with_a_package_that_does_not_import(tmp_path):
    (tmp_path / "beetles-1.0.dist-info").mkdir()
    (tmp_path / "beetles_of_ours.py").write_text("import nothing_of_the_kind\n")
    (tmp_path / "beetles-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: beetles\nVersion: 1.0\n")
    entry = "[ipcnn.datasets]\nbeetles = beetles_of_ours:Beetles\n"
    (tmp_path / "beetles-1.0.dist-info/entry_points.txt").write_text(entry)
    done = python("from ipcnn_ray.cli.app import main; main(['data', 'list'])", tmp_path)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "the entry point ipcnn.datasets 'beetles' of beetles 1.0 cannot be imported: ModuleNotFo" in done.stderr


class Moths(PhotographDataset):
    """A right one, whose reader returns what a test gives it."""

    kind: Literal["moths"]
    category: str | tuple[str, ...] = "moth"
    landmarks: Annotated[tuple[str, ...], Field(min_length=1)] = ("head", "wing")
    negatives: Negatives = 0
    title: ClassVar = "Moths"
    folder: ClassVar = "moths"
    photographs: ClassVar = "moths"
    folders: ClassVar = ("moths",)
    counts: ClassVar = {"photographs": "moths/*.jpg"}
    annotated: ClassVar = "moths/*"
    returned: ClassVar[list[Annotations]] = []

    def annotations(self, folder: Path) -> list[Annotations]:
        return self.returned


class SectionOnly(DataSection):
    kind: Literal["moths"]
    category: str = "moth"
    landmarks: tuple[str, ...] = ("head",)
    negatives: Negatives = 0


class Unread(SectionOnly, PhotographDataset):
    title: ClassVar = "Moths"
    folder: ClassVar = "moths"
    photographs: ClassVar = "moths"


class Planned(Moths):
    """Plans its own store."""

    contents: ClassVar[dict] = {}

    def store_plan(self, root, image_size, progress) -> StorePlan:
        good = {
            "labels_N": np.array([0, 0]),
            "categories": ("moth",),
            "landmarks_NK2": np.zeros((2, 2, 2), np.float32),
            "train_items": np.array([[0, 0]]),
            "val_items": np.array([[1, 0]]),
            "names": ("a", "b"),
            "landmark_names": self.landmarks,
        }
        return StorePlan("moths", Contents(**{**good, **self.contents}), lambda images: images.fill(0))


def undeclared() -> None:
    class Nameless(PhotographDataset):
        kind: Literal["moths"]
        category: str = "moth"

        def annotations(self, folder: Path) -> list[Annotations]:
            return []


ENTRIES = {
    "a kind of ours": ("cub200", "Moths"),
    "another name than its kind": ("butterflies", "Moths"),
    "no module": ("moths", None),
    "no such class": ("moths", "Mouths"),
    "something else": ("moths", "EntryPoint"),
    "a class without a reader": ("moths", "Unread"),
}


def moth(**changed) -> AnnotatedObject:
    given = {"image": "0.jpg", "box": (11, 21, 60, 60), "landmarks_K2": [(0.5, 0.5)] * 2, "name": "moth 1"}
    return AnnotatedObject(**{**given, **changed})


READERS = {
    "too few categories": [],
    "landmarks of the wrong shape": [Annotations([moth(landmarks_K2=[(0.5, 0.5)])])],
    "ragged landmarks": [Annotations([moth(landmarks_K2=[(0.5, 0.5), (0.5,)])])],
    "sizes of the wrong shape": [Annotations([moth(sizes_K2=[0.1, 0.2])])],
    "masks of the wrong shape": [Annotations([moth(masks=[None, np.zeros((3, 3), np.float32)])])],
    "one mask too few": [Annotations([moth(masks=[None])])],
    "a landmark that is never seen": [Annotations([moth(landmarks_K2=[(0.5, 0.5), (np.nan, np.nan)]), moth()])],
    "a photograph that is not there": [Annotations([moth(), moth(image="9.jpg")])],
}
PLANS = {
    "landmarks of another number": {"landmarks_NK2": np.zeros((2, 1, 2), np.float32)},
    "too few names": {"names": ("a",)},
    "items without mirror": {"train_items": np.array([0])},
    "a label of no category": {"labels_N": np.array([0, 3])},
    "nothing to validate on": {"val_items": np.array([[0, 0]])[:0]},
}


def test_everything_that_can_be_wrong_with_one(monkeypatch, snapshot, folder):
    photograph(folder.root / "moths/0.jpg", 0)
    shorten = {str(folder.root): "DATA", __name__: "TEST"}
    texts = {}
    for case, (name, attribute) in ENTRIES.items():
        value = f"{__name__}:{attribute}" if attribute else "nowhere:Moths"
        monkeypatch.setattr(registry, "entry_points", lambda group, n=name, v=value: [EntryPoint(n, v, group)])
        kinds = RegisteredKinds("kind", Registry("ipcnn.datasets", DATASETS.built_in), DataSection)
        texts[f"entry point with {case}"] = message_of(kinds.sections, shorten)
    with pytest.raises(TypeError, match="the dataset Nameless must declare landmarks, negatives, title, folder, phot"):
        undeclared()
    for case, returned in READERS.items():
        monkeypatch.setattr(Moths, "returned", returned)
        texts[f"reader with {case}"] = message_of(lambda: prepare(Moths(kind="moths"), 32, folder.paths), shorten)
    for case, changed in PLANS.items():
        monkeypatch.setattr(Planned, "contents", changed)
        texts[f"plan with {case}"] = message_of(lambda: prepare(Planned(kind="moths"), 32, folder.paths), shorten)
    monkeypatch.setattr(Planned, "contents", {})
    assert prepare(Planned(kind="moths"), 32, folder.paths).tags == {"data.kind": "moths", "data.drawn": "false"}
    assert Moths.facts(Listing(folder.root)) == {
        "folder": "moths", "there": True, "missing": [], "counts": {"photographs": 1}, "categories": ["0.jpg"]
    }  # fmt: skip
    section = SectionOnly(kind="moths")
    texts["only a section"] = message_of(lambda: prepare(section, 32, folder.paths), shorten)
    snapshot.check("data/dataset_extension.yaml", texts)
