"""A small folder as IPCNN_DATA names it: eight cows on four photographs, six negatives, both annotations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from fakes.matlab import struct_array
from PIL import Image

from ipcnn_ray.data.datasets.voc_part import VocPart
from ipcnn_ray.utils.paths import Paths

WIDTH, HEIGHT = 140, 100
FIELDS = ("xmin", "xmax", "ymin", "ymax")


@dataclass
class Folder:
    """What a test changes before it is prepared."""

    root: Path
    boxes: list[tuple[str, tuple[int, int, int, int]]] = field(default_factory=list)
    """(photograph, (xmin, ymin, xmax, ymax)) of each object."""
    centers: dict[int, list[tuple[float, ...] | None]] = field(default_factory=dict)
    """Part number -> pHW_center of each object, None where it is not seen."""

    @property
    def voc(self) -> Path:
        return self.root / "voc"

    @property
    def jpegs(self) -> Path:
        return self.voc / "VOCdevkit/VOC2010/JPEGImages"

    @property
    def negatives(self) -> Path:
        return self.voc / "neg"

    @property
    def landmarks(self) -> Path:
        return self.voc / "landmarks/cow"

    @property
    def masks(self) -> Path:
        return self.voc / "VOCdevkit/VOC2010/Annotations_Part"

    def truth(self, number: int) -> list[dict[str, Any]]:
        """The elements of a landmark file."""
        elements = []
        for (image, box), center in zip(self.boxes, self.centers[number], strict=True):
            if center is None:
                elements.append(
                    {"pHW_center": np.empty((0, 0)), "pHW_scale": np.empty((0, 0)), "obj": np.empty((0, 0))}
                )
                continue
            sides = dict(zip(("xmin", "ymin", "xmax", "ymax"), map(str, box), strict=True))
            obj = {"folder": "./", "filename": image, "name": "cow", "bndbox": {f: sides[f] for f in FIELDS}, "ID": 1.0}
            elements.append(
                {"pHW_center": np.array(center)[:, None], "pHW_scale": np.array([[20.0], [20.0]]), "obj": obj}
            )
        return elements

    def write_truths(self) -> None:
        self.landmarks.mkdir(parents=True, exist_ok=True)
        for number in self.centers:
            self.write_truth(number, self.truth(number))

    def write_truth(self, number: int, elements: list[dict[str, Any]]) -> None:
        """A landmark file of these elements, which may be none."""
        empty = np.empty((1, 0), dtype=[(name, object) for name in ("pHW_center", "pHW_scale", "obj")])
        scipy.io.savemat(self.part_file(number), {"truth": struct_array(elements) if elements else empty})

    def part_file(self, number: int) -> Path:
        return self.landmarks / f"truth_part{number:02}.mat"

    def spec(self, **changed: Any) -> VocPart:
        given = {"kind": "voc_part", "category": "cow", "negatives": 6, "min_side": 20, "train_share": 0.75}
        return VocPart.model_validate(given | changed)

    @property
    def paths(self) -> Paths:
        return Paths.from_environment(
            {
                "IPCNN_HOME": str(self.root / "home"),
                "IPCNN_CACHE": str(self.root / "cache"),
                "IPCNN_DATA": str(self.root),
            }
        )


def photograph(path: Path, seed: int, *, grey: bool = False) -> None:
    """Smooth colours, so that JPEG keeps them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5) if grey else (4, 5, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A good folder with the landmark files."""
    made = Folder(tmp_path)
    for i in range(4):
        photograph(made.jpegs / f"2008_00000{i}.jpg", i)
        made.boxes += [(f"2008_00000{i}.jpg", (11, 21, 60, 60)), (f"2008_00000{i}.jpg", (71, 31, 130, 90))]
    for i in range(1, 7):
        photograph(made.negatives / f"{i:05}.JPEG", 100 + i, grey=i == 2)
    made.centers = {
        1: [(56.0, 28.0 * i) for i in range(1, 8)] + [(112.0, 112.0)],
        2: [(60.0, 60.0), None, (70.0, 70.0), None, (80.0, 80.0), None, None, (90.0, 90.0)],
        3: [(112.0, 112.0)] * 8,
        4: [None] * 6 + [(200.0, 30.0), (210.0, 40.0)],
    }
    made.write_truths()
    return made


def masked(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A mask of (width, height) that is set inside a 1-based box."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[box[1] - 1 : box[3], box[0] - 1 : box[2]] = 1
    return mask


def write_anno(folder: Folder, image: str, objects: list[dict[str, Any]]) -> None:
    """An Annotations_Part file: `objects` with class, bbox and parts {name: box of its mask}."""
    size = (WIDTH, HEIGHT)
    listed = []
    for one in objects:
        parts = [{"part_name": name, "mask": masked(size, box)} for name, box in one["parts"].items()]
        listed.append(
            {
                "class": one["class"],
                "class_ind": 10.0,
                "bbox": np.array([one["bbox"]], np.float64),
                "mask": masked(size, one["bbox"]),
                "parts": struct_array(parts) if parts else np.empty((0, 0)),
            }
        )
    folder.masks.mkdir(parents=True, exist_ok=True)
    content = {"anno": {"imname": image, "objects": struct_array(listed)}}
    scipy.io.savemat(folder.masks / f"{image}.mat", content, do_compression=True)


@pytest.fixture
def annotate() -> Callable[..., None]:
    return write_anno


@pytest.fixture
def photo() -> Callable[..., None]:
    return photograph
