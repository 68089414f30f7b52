"""Small folders as IPCNN_DATA names them, one for each dataset of photographs; tests damage them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from PIL import Image

from fakes.matlab import struct_array
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.datasets.cub200 import Cub200
from ipcnn_ray.data.datasets.ilsvrc_animal_part import IlsvrcAnimalPart
from ipcnn_ray.data.datasets.voc_part import VocPart
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.utils.paths import Paths

SIZE = 32
"""Side of the crops, pixels."""
WIDTH, HEIGHT = 140, 100
FIELDS = ("xmin", "xmax", "ymin", "ymax")


def photograph(path: Path, seed: int, *, grey: bool = False) -> None:
    """Smooth colours, so that JPEG keeps them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 5) if grey else (4, 5, 3), np.uint8))
    path.parent.mkdir(parents=True, exist_ok=True)
    small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(path, "JPEG", quality=95)


def masked(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A mask of (width, height) that is set inside a 1-based box."""
    mask = np.zeros(size[::-1], np.uint8)
    mask[box[1] - 1 : box[3], box[0] - 1 : box[2]] = 1
    return mask


@dataclass
class VocFolder:
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

    def annotate(self, image: str, objects: list[dict[str, Any]]) -> None:
        """An Annotations_Part file: `objects` with class, bbox and parts {name: box of its mask}."""
        size = (WIDTH, HEIGHT)
        listed = []
        for entry in objects:
            parts = [{"part_name": name, "mask": masked(size, box)} for name, box in entry["parts"].items()]
            listed.append(
                {
                    "class": entry["class"],
                    "class_ind": 10.0,
                    "bbox": np.array([entry["bbox"]], np.float64),
                    "mask": masked(size, entry["bbox"]),
                    "parts": struct_array(parts) if parts else np.empty((0, 0)),
                }
            )
        self.masks.mkdir(parents=True, exist_ok=True)
        content = {"anno": {"imname": image, "objects": struct_array(listed)}}
        scipy.io.savemat(self.masks / f"{image}.mat", content, do_compression=True)

    def spec(self, **changed: Any) -> VocPart:
        given = {"kind": "voc_part", "category": "cow", "negatives": 6, "min_side": 20, "train_share": 0.75}
        return VocPart.model_validate(given | changed)

    def store(self, **changed: Any) -> CropStore:
        return prepare(self.spec(**changed), SIZE, self.paths)

    @property
    def paths(self) -> Paths:
        return Paths.from_environment(
            {
                "IPCNN_HOME": str(self.root / "home"),
                "IPCNN_CACHE": str(self.root / "cache"),
                "IPCNN_DATA": str(self.root),
            }
        )


def voc_folder(root: Path) -> VocFolder:
    """A good folder with the landmark files."""
    made = VocFolder(root)
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


NAMES = ("back", "beak", "belly", "breast", "crown", "forehead", "left eye", "left leg", "left wing", "nape",
         "right eye", "right leg", "right wing", "tail", "throat")  # fmt: skip
ONE, TWO = "001.Black_footed_Albatross", "002.Laysan_Albatross"


class CubFolder:
    """Eight birds of two species, four negatives."""

    def __init__(self, root: Path):
        self.root, self.cub = root, root / "CUB_200_2011"
        self.images = [f"{(ONE, TWO)[i // 4]}/bird_{i}.jpg" for i in range(8)]
        for i, name in enumerate(self.images):
            photograph(self.cub / "images" / name, i)
        for i in range(1, 5):
            photograph(root / f"voc/neg/{i:05}.JPEG", 100 + i)
        self.write("images.txt", self.images)
        self.write("classes.txt", [ONE, TWO])
        self.write("image_class_labels.txt", [1 + i // 4 for i in range(8)])
        self.write("train_test_split.txt", [1, 0, 1, 0, 1, 0, 1, 0])
        self.write("bounding_boxes.txt", ["11.0 21.0 49.0 39.0"] * 7 + ["100.0 50.0 60.0 80.0"])
        (self.cub / "parts").mkdir()
        self.write("parts/parts.txt", NAMES)
        self.locations = {(i, part): f"{20 + part}.0 40.0 1" for i in range(1, 9) for part in range(1, 16)}
        self.locations |= {(8, part): "120.0 75.0 1" for part in range(1, 16)}
        self.locations[1, 14], self.locations[2, 14] = "0.0 0.0 0", "100.0 40.0 1"
        self.write_locations()

    def write(self, name, rows):
        (self.cub / name).write_text("".join(f"{i} {row}\n" for i, row in enumerate(rows, start=1)))

    def write_locations(self):
        lines = [f"{image} {part} {where}\n" for (image, part), where in self.locations.items()]
        (self.cub / "parts/part_locs.txt").write_text("".join(lines))

    def store(self, **changed):
        paths = Paths.from_environment({"IPCNN_HOME": str(self.root / "home"), "IPCNN_DATA": str(self.root)})
        given = {"kind": "cub200", "min_side": 20, "negatives": 0 if isinstance(changed.get("category"), list) else 4}
        return prepare(Cub200.model_validate(given | changed), SIZE, paths)


FOX, FISH = "n02118333", "n01443537"
BOX = (11, 21, 60, 60)


def bndbox(box, kind=float):
    return dict(zip(("xmin", "ymin", "xmax", "ymax"), map(kind, box), strict=True))


def element(center, box=BOX):
    if center is None:
        return {"obj": np.empty((0, 0)), "pHW_center": np.empty((0, 0))}
    return {"obj": {"filename": "x", "bndbox": bndbox(box, str)}, "pHW_center": np.array(center, float)}


class IlsvrcFolder:
    """Six foxes and six goldfish, four negatives."""

    def __init__(self, root: Path) -> None:
        self.data, self.root = root, root / "detanimalpart"
        for category, first in ((FOX, 0), (FISH, 50)):
            for i in range(1, 7):
                photograph(self.root / f"{category}_obj/img/img/{i:05}.jpg", first + i)
            boxes = struct_array([{"obj": {"bndbox": bndbox(BOX)}}] * 6)
            scipy.io.savemat(self.root / f"{category}_obj/img/data.mat", {"samples": boxes})
            (self.root / "landmarks" / category).mkdir(parents=True)
            heads = [[[112.5], [20.0 * i]] for i in range(1, 6)] + [None]
            self.write_truth(category, 1, [element(center) for center in heads])
        limbs = [element([[200.0], [10.0]])] * 5 + [element([[100.0, 200.0], [10.0, 20.0]])]
        self.write_truth(FOX, 2, limbs)
        for i in range(1, 5):
            photograph(root / f"voc/neg/{i:05}.JPEG", 100 + i)

    def write_truth(self, category: str, number: int, elements: list[dict[str, Any]]) -> None:
        path = self.root / f"landmarks/{category}/truth_part{number:02}.mat"
        scipy.io.savemat(path, {"truth": struct_array(elements)})

    def store(self, **changed: Any) -> CropStore:
        paths = Paths.from_environment({"IPCNN_HOME": str(self.data / "home"), "IPCNN_DATA": str(self.data)})
        given = {"kind": "ilsvrc_animal_part", "category": FOX, "min_side": 20, "train_share": 0.5}
        given["negatives"] = 0 if isinstance(changed.get("category"), list) else 4
        return prepare(IlsvrcAnimalPart.model_validate(given | changed), SIZE, paths)
