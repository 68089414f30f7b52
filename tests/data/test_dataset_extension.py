"""A dataset of another package: the same checks, messages, schema, plan, commands and stores as our own."""

from __future__ import annotations

import json
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
from ipcnn_ray.data.photographs import AnnotatedObject, Annotations, PhotographDataset
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.spec.data import DataSection, Negatives
from ipcnn_ray.spec.extensions import DATASETS
from ipcnn_ray.spec.section import RegisteredKinds
from ipcnn_ray.utils import registry
from ipcnn_ray.utils.registry import Registry

ROOT = Path(__file__).resolve().parents[2]
MODULE = '''
"""Beetles: boxes and heads from a table."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.photographs import AGAIN, UNSEEN, AnnotatedObject, Annotations
from ipcnn_ray.data.photographs import PhotographDataset
from ipcnn_ray.spec.data import Negatives, OneOrMore
from ipcnn_ray.spec.section import NotNegative, OpenShare


class Beetles(PhotographDataset):
    """Beetles from above."""

    kind: Literal["beetles"]
    """Photographs of beetles."""
    category: OneOrMore[Literal["ground", "stag"]] = "ground"
    """The family."""
    landmarks: Annotated[tuple[Literal["head", "wing"], ...], Field(min_length=1)] = ("head", "wing")
    """The landmarks."""
    negatives: Negatives = 4
    """Number of negatives."""
    min_side: NotNegative = 10
    """Root of the smallest area of a box, pixels."""
    train_share: OpenShare = 0.5
    """Share of beetles that are trained on."""

    title: ClassVar = "Beetles: a few photographs"
    folder: ClassVar = "beetles"
    photographs: ClassVar = "beetles/images"
    folders: ClassVar = ("beetles", "voc/neg")
    counts: ClassVar = {"photographs": "beetles/images/*.jpg", "negatives": "voc/neg/*.JPEG"}
    annotated: ClassVar = "beetles/*/heads.csv"

    def issues(self):
        if self.category == "stag" and "wing" in self.landmarks:
            yield self.issue("landmarks", "a stag hides its wings; take [head]", "category")

    def annotations(self, folder: Path) -> list[Annotations]:
        return [self._table(folder / category / "heads.csv") for category in self.categories]

    def _table(self, path: Path) -> Annotations:
        annotations = Annotations()
        if not path.is_file():
            annotations.add_issue(path, "no such file", AGAIN)
            return annotations
        annotations.stamp(path)
        annotations.files.append(path)
        for line in path.read_text().splitlines():
            name, row, col = line.split(",")
            place = {"head": (float(row), float(col)), "wing": (0.5, 0.5)}
            marks = [place[name] for name in self.landmarks]
            annotations.objects.append(AnnotatedObject(f"{name}.jpg", (11, 21, 60, 60), marks, name))
        return annotations
'''
SPEC = """\
name: t
data: {kind: beetles}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 1, batch_size: 4}
"""
SCRIPT = """
import contextlib, io, json, sys
from ipcnn_ray.cli.app import main

def run(*words):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(words)
        except SystemExit as ended:
            code = ended.code or 0
    return [code, out.getvalue(), err.getvalue()]

spec = sys.argv[1]
results = {
    "schema": run("schema"),
    "heavy": sorted({"numpy", "PIL", "torch"} & set(sys.modules)),
    "typo": run("validate", spec, "--set", "data.kind=beetle"),
    "own": run("validate", spec, "--set", "data.category=stag"),
    "field": run("validate", spec, "--set", "data.min_size=3"),
    "masks": run("validate", spec, "--set", "template={shape: tailored, landmark: head, fitted_to: part_masks}"),
    "plan": run("plan", spec, "--json"),
    "list": run("data", "list", "--json"),
    "fetch": run("data", "fetch", "beetles"),
    "prepare": run("data", "prepare", spec),
    "check": run("data", "check", spec, "--json"),
    "missing": run("data", "check", spec, "--set", "data.category=[ground, stag]"),
}
from ipcnn_ray.on_ray.cluster_probe import data_facts
from ipcnn_ray.utils.paths import Paths
results["doctor"] = data_facts(Paths.from_environment())["datasets"]["beetles"]
print(json.dumps(results))
"""


@pytest.fixture
def package(tmp_path) -> Path:
    folder = tmp_path / "package"
    (folder / "beetles-1.0.dist-info").mkdir(parents=True)
    (folder / "beetles_of_ours.py").write_text(MODULE)
    (folder / "beetles-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: beetles\nVersion: 1.0\n")
    entry = "[ipcnn.datasets]\nbeetles = beetles_of_ours:Beetles\n"
    (folder / "beetles-1.0.dist-info/entry_points.txt").write_text(entry)
    return folder


@pytest.mark.slow
def test_a_dataset_of_another_package_is_one_of_ours(package, tmp_path):
    data = tmp_path / "data"
    for i in range(6):
        photograph(data / f"beetles/images/{i}.jpg", i)
    for i in range(1, 5):
        photograph(data / f"voc/neg/{i:05}.JPEG", 100 + i)
    (data / "beetles/ground").mkdir()
    (data / "beetles/ground/heads.csv").write_text("".join(f"{i},0.25,0.{i}\n" for i in range(6)))
    (tmp_path / "s.yaml").write_text(SPEC)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("IPCNN_")}
    environment |= {
        "PYTHONPATH": f"{ROOT}:{package}",
        "IPCNN_HOME": str(tmp_path / "home"),
        "IPCNN_DATA": str(data),
        "COLUMNS": "200",
    }
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "s.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    commands = {name: result for name, result in results.items() if isinstance(result, list) and len(result) == 3}
    out = {name: printed for name, (_, printed, _) in commands.items()}
    err = {name: " ".join(printed.split()) for name, (_, _, printed) in commands.items()}

    schema = json.loads(out["schema"])
    share = schema["$defs"]["Beetles"]["properties"]["train_share"]
    assert share["description"] == "Share of beetles that are trained on."
    assert "beetles" in schema["properties"]["data"]["discriminator"]["mapping"]
    assert results["heavy"] == [], "commands load no numpy for a dataset"
    assert (
        "must be one of drawn_animals, voc_part, ilsvrc_animal_part, cub200, beetles. Did you mean 'beetles'?"
        in err["typo"]
    )
    assert "data.landmarks = ['head', 'wing'] a stag hides its wings; take [head]" in err["own"]
    assert "Did you mean 'min_side'?" in err["field"]
    assert "beetles has no part masks; use another data.kind, or take another template.fitted_to" in err["masks"]
    # 3 positives to one of 4 negatives; of 6 beetles and 4 negatives 3 and 2 are in training.
    assert json.loads(out["plan"])["runs"][0]["items"] == 6 + 2
    listed = {entry["kind"]: entry for entry in json.loads(out["list"])["datasets"]}
    assert listed["beetles"] == {
        "kind": "beetles", "there": True, "title": "Beetles: a few photographs", "missing": []
    }  # fmt: skip
    assert "there is no such dataset to fetch" in err["fetch"]
    assert "10 crops of 64 x 64 pixels" in out["prepare"]
    checked = json.loads(out["check"])
    assert checked["tags"] == {"data.kind": "beetles", "data.drawn": "false"}
    assert checked["objects_of"] == {"ground": 6} and checked["landmarks"]["head"]["seen"] == 6
    assert "beetles/stag/heads.csv no such file Fetch the file again." in err["missing"]
    assert results["doctor"]["counts"] == {"photographs": 6, "negatives": 4}
    assert results["doctor"]["categories"] == ["ground"] and results["doctor"]["there"]


@pytest.mark.slow
def test_a_command_with_a_package_that_does_not_import(package, tmp_path):
    (package / "beetles_of_ours.py").write_text("import nothing_of_the_kind\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{package}", "COLUMNS": "200"}
    command = [sys.executable, "-m", "ipcnn_ray.cli.app", "data", "list"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
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
    "something else": ("moths", "Path"),
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
    section = SectionOnly(kind="moths")
    texts["only a section"] = message_of(lambda: prepare(section, 32, folder.paths), shorten)
    snapshot.check("data/dataset_extension.yaml", texts)
