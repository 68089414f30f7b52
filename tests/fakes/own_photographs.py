"""One's own photographs in a folder as IPCNN_DATA names it: class folders, a CSV table and a COCO file of the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fakes.datasets import HEIGHT, SIZE, WIDTH, photograph
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.datasets.image_folder import ImageFolder
from ipcnn_ray.data.datasets.image_table import ImageTable
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.utils.paths import Paths

COLUMNS = ("image", "category", "xmin", "ymin", "xmax", "ymax", "head_x", "head_y", "tail_x", "tail_y")
KEYPOINTS = ["head", "tail"]


class OwnPhotographs:
    """Five wrens and four robins, a pair of which is in one photograph, and three negatives; `mine/`."""

    def __init__(self, root: Path) -> None:
        self.root, self.folder = root, root / "mine"
        names = [f"wren/{i}.jpg" for i in range(5)] + [f"robin/{i}.jpg" for i in range(3)]
        for seed, name in enumerate([*names, *(f"negatives/{i}.jpg" for i in range(3))]):
            photograph(self.folder / name, seed)
        self.rows: list[dict[str, Any]] = [self.row(name, i) for i, name in enumerate(names)]
        self.rows.append({**self.row("robin/2.jpg", 9), "xmin": 0, "xmax": 50, "head_x": 40, "tail_x": 2})
        self.rows += [{"image": f"negatives/{i}.jpg"} for i in range(3)]
        self.coco: dict[str, Any] = self.as_coco()
        self.write()

    def row(self, image: str, i: int) -> dict[str, Any]:
        """A box of 60 x 60 pixels, the head in its upper left quarter, and in every other the tail."""
        box = {"xmin": 40, "ymin": 20, "xmax": 100, "ymax": 80}
        tail = {"tail_x": 90, "tail_y": 70} if i % 2 else {}
        return {"image": image, "category": image.split("/")[0], **box, "head_x": 50 + i, "head_y": 30, **tail}

    def as_coco(self) -> dict[str, Any]:
        """The rows in COCO's format; ids begin at 1."""
        images = {name: number for number, name in enumerate(dict.fromkeys(row["image"] for row in self.rows), 1)}
        annotations = []
        for number, row in enumerate((row for row in self.rows if "category" in row), 1):
            xmin, ymin, xmax, ymax = (row[side] for side in COLUMNS[2:6])
            points = [
                [row[f"{name}_x"], row[f"{name}_y"], 2] if row.get(f"{name}_x") is not None else [0, 0, 0]
                for name in KEYPOINTS
            ]
            annotations.append(
                {
                    "id": number,
                    "image_id": images[row["image"]],
                    "category_id": ["wren", "robin"].index(row["category"]) + 1,
                    "bbox": [xmin, ymin, xmax - xmin, ymax - ymin],
                    "keypoints": [value for point in points for value in point],
                    "num_keypoints": 2,
                    "iscrowd": 0,
                }
            )
        listed = [{"id": n, "file_name": name, "width": WIDTH, "height": HEIGHT} for name, n in images.items()]
        categories = [{"id": n, "name": name, "keypoints": KEYPOINTS} for n, name in ((1, "wren"), (2, "robin"))]
        return {"images": listed, "annotations": annotations, "categories": categories}

    def write(self) -> None:
        """Write the table and the COCO file as they are now."""
        columns = dict.fromkeys([*COLUMNS, *(column for row in self.rows for column in row)])
        lines = [",".join(columns), *(",".join(str(row.get(column, "")) for column in columns) for row in self.rows)]
        (self.folder / "table.csv").write_text("\n".join(lines) + "\n")
        (self.folder / "coco.json").write_text(json.dumps(self.coco))

    @property
    def paths(self) -> Paths:
        return Paths.from_environment({"IPCNN_HOME": str(self.root / "home"), "IPCNN_DATA": str(self.root)})

    def table(self, file: str = "mine/table.csv", **changed: Any) -> ImageTable:
        given = {"kind": "table", "file": file, "category": ["wren", "robin"], "landmarks": KEYPOINTS}
        return ImageTable.model_validate({**given, "min_side": 20, "train_share": 0.5, **changed})

    def classes(self, **changed: Any) -> ImageFolder:
        given = {"kind": "folder", "path": "mine", "category": ["wren", "robin"], "train_share": 0.5}
        return ImageFolder.model_validate({**given, **changed})

    def store(self, section: ImageTable | ImageFolder) -> CropStore:
        return prepare(section, SIZE, self.paths)
