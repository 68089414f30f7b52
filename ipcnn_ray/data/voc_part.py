"""Pascal VOC Part: objects with landmarks, and the fixed negatives.

Layout under IPCNN_DATA: voc/VOCdevkit/VOC2010/{JPEGImages,Annotations_Part}, voc/landmarks/<category>/truth_partNN.mat,
voc/neg/NNNNN.JPEG.
"""

from __future__ import annotations

from pathlib import Path

from ipcnn_ray.data.photographs import Folder, Source, gather, named
from ipcnn_ray.data.voc_annotations import from_landmark_files, from_part_masks
from ipcnn_ray.spec.data import VocPart

VERSION = "1"
"""Of the crops that are made from the same files: a change here makes every store anew."""


def read(data: VocPart, root: Path | None) -> Source:
    """The objects of all categories, and the negatives; DataError with everything that is wrong."""
    voc = named(root, "voc", data.kind)
    annotated = from_landmark_files if data.annotation == "landmark_files" else from_part_masks
    return gather(
        [annotated(data, voc, category) for category in data.categories],
        Folder(voc, voc / "VOCdevkit/VOC2010/JPEGImages", voc / "neg"),
        categories=data.categories,
        landmarks=data.landmarks,
        min_side=data.min_side,
        negatives=data.negatives,
    )
