"""A table of one's own photographs, with boxes and landmarks: CSV, or the JSON of COCO keypoints."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from ipcnn_ray.data.datasets.own_photographs import OwnPhotographs, RelativePath, path_issues, raise_issues
from ipcnn_ray.data.photographs import AnnotatedObject, Annotations
from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.spec.section import ErrorMessage, FieldIssue, NotNegative, value_issue
from ipcnn_ray.utils.text import did_you_mean, shortened_list

if TYPE_CHECKING:
    from ipcnn_ray.data.datasets.table_rows import TableRow

LandmarkName = Annotated[
    str,
    Field(pattern=r"^\w[\w.\- ]{0,39}$"),
    ErrorMessage("must be a name of letters, digits, _, -, dots and blanks, at most 40 characters"),
]
MOST_BYTES = 1 << 30
"""Size of the largest table that is read."""
SHOWN = 12
"""Names that a message lists."""


class ImageTable(OwnPhotographs):
    """Photographs that a CSV table or a COCO keypoints file lists, with their boxes and landmarks.

    CSV, a header and a row for each object: `image` and `category`; `xmin`, `ymin`, `xmax`, `ymax` (all or none of the
    four; without a box the whole image); `NAME_x` and `NAME_y` of any landmark, empty where it is not seen; `split`
    (train or val). A row without a category is a negative. Positions are pixels from the upper left corner of the
    image, as a viewer shows it: the box of a whole image is 0, 0, width, height. COCO: landmarks are the keypoints with
    visibility 2, and an image without annotations is a negative.
    """

    kind: Literal["table"]
    """One's own photographs, listed by a table."""
    file: RelativePath
    """The table below IPCNN_DATA: .csv or .tsv, or .json of COCO keypoints."""
    images: RelativePath | None = None
    """Folder below IPCNN_DATA that the names of images in the table begin in. Default: the folder of the table."""
    landmarks: tuple[LandmarkName, ...] = ()
    """The landmarks that location instability is taken over. Default: none, and what needs landmarks is not
    measured."""
    min_side: NotNegative = 50
    """Objects whose box covers fewer than min_side^2 square pixels are left out."""

    title: ClassVar = "One's own photographs: a CSV table or COCO keypoints anywhere in IPCNN_DATA"

    def issues(self) -> Iterator[FieldIssue]:
        yield from path_issues(self, "file", "images")
        if not self.file.lower().endswith((".csv", ".tsv", ".json")):
            yield self.issue("file", "must end in .csv, .tsv, or .json (COCO keypoints)")
        for index, name in enumerate(self.landmarks):
            if name.startswith("share"):
                advice = "its number of filters would have the name of a metric, following_share; rename the landmark"
                yield value_issue(("data", "landmarks", index), name, advice)

    def source(self, root: Path) -> Path:
        return root / self.file

    def annotations(self, folder: Path) -> list[Annotations]:
        from ipcnn_ray.data.datasets.coco_keypoints import read_coco
        from ipcnn_ray.data.datasets.table_rows import read_csv

        path = self.source(folder)
        if not path.is_file():
            raise DataError([Issue(str(path), "no such file", "data.file names a file below IPCNN_DATA.")])
        if (size := path.stat().st_size) > MOST_BYTES:
            what = f"has {size / 1e9:.1f} GB; a table has at most {MOST_BYTES / 1e9:.1f} GB"
            raise DataError([Issue(str(path), what, "Split it, or name the table in data.file.")])
        table = Annotations(files=[path])
        table.stamp(path)
        read = read_coco if self.file.lower().endswith(".json") else read_csv
        content = read(path, self.landmarks, table)
        if unused := [name for name in content.landmarks if name not in self.landmarks]:
            table.left_out[f"landmarks that data.landmarks does not list ({shortened_list(unused, 3)})"] += len(unused)
        annotations_L = self._of_categories(content.rows, folder, table) if content.rows else []
        raise_issues(table, path)
        return annotations_L

    def _of_categories(self, rows: Sequence[TableRow], root: Path, table: Annotations) -> list[Annotations]:
        """Sort the rows into categories and negatives, and check them against their images. `table` takes the issues,
        and is the first of the returned."""
        from ipcnn_ray.data.datasets.table_rows import RowReader

        path = self.source(root)
        folder = root / self.images if self.images else path.parent
        if not any(os.path.isfile(folder / row.image) for row in rows):
            what = f"has no image in {folder}, such as {rows[0].image}"
            table.add_issue(path, what, "Name the folder that the names of images begin in as data.images.")
            return []
        images = folder.relative_to(root).as_posix()
        reader = RowReader(root, images, self.landmarks, table, self.mend_photograph)
        by_category: dict[str, list[AnnotatedObject]] = {category: [] for category in self.categories}
        others: Counter[str] = Counter()
        known = dict.fromkeys(row.category for row in rows if row.category)
        for row in rows:
            if row.category is not None and row.category not in by_category:
                others[row.category] += 1
            elif row.category is not None or self.negatives:
                if item := reader.item(row):
                    (table.negatives if row.category is None else by_category[row.category]).append(item)
            else:
                table.left_out[self.unused_negatives] += 1
        if others:
            reason = f"of categories that data.category does not list ({shortened_list(list(others), 3)})"
            table.left_out[reason] += sum(others.values())
        for category in self.categories:
            if category not in known and not table.issues:
                what = f"has no object of category {category!r}"
                advice = f"It has: {shortened_list(list(known), SHOWN) or 'no category'}."
                table.add_issue(path, what, f"{advice}{did_you_mean(category, list(known))}")
        first, *following = (Annotations(objects=items) for items in by_category.values())
        table.objects = first.objects
        annotations_L = [table, *following]
        for of_category in annotations_L:
            of_category.lacks = _lacks(of_category.objects, list(by_category.values()), self.landmarks)
        return annotations_L


def _lacks(
    objects: Sequence[AnnotatedObject], objects_L: Sequence[Sequence[AnnotatedObject]], landmarks: Sequence[str]
) -> tuple[str, ...]:
    """Return the landmarks that no object of a category shows, though objects of another category do."""

    def shown(items: Sequence[AnnotatedObject], k: int) -> bool:
        return any(not math.isnan(item.landmarks_K2[k][0]) for item in items)

    return tuple(
        name
        for k, name in enumerate(landmarks)
        if not shown(objects, k) and any(shown(items, k) for items in objects_L)
    )
