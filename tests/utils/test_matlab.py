from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.matlab import cell, write_mat

from ipcnn_ray.utils.matlab import MatFileError, read_mat, read_variables

EMPTY = np.empty((0, 0))
TRUTH = [
    {
        "pHW_center": np.array([[60.0], [61.0]]),
        "obj": {"filename": "2008_000000.jpg", "bndbox": {"xmin": "11", "xmax": "60"}, "ID": 1.0},
    },
    {"pHW_center": EMPTY, "obj": EMPTY},
]
versions = pytest.mark.parametrize("version", ["v5", "v7.3"])


def plain(value: Any) -> Any:
    """The value with lists for arrays."""
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    return value if isinstance(value, str) else value.tolist()


@versions
def test_a_struct_array(tmp_path, version):
    write_mat(tmp_path / "x.mat", version, {"truth": TRUTH})
    first, second = read_mat(tmp_path / "x.mat", "truth")
    assert plain(first) == {
        "pHW_center": [[60.0], [61.0]],  # 2 x 1, as in MATLAB
        "obj": {"filename": "2008_000000.jpg", "bndbox": {"xmin": "11", "xmax": "60"}, "ID": [[1.0]]},
    }
    assert second["pHW_center"].size == second["obj"].size == 0


@versions
def test_a_struct_array_of_one_element_is_a_dict(tmp_path, version):
    write_mat(tmp_path / "x.mat", version, {"truth": TRUTH[:1]})
    assert read_mat(tmp_path / "x.mat", "truth")["obj"]["filename"] == "2008_000000.jpg"


@versions
def test_cells_text_and_shapes(tmp_path, version):
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    inner = {"mask": mask, "row": mask[:1], "word": "x", "cell": cell([mask, {"y": "z"}])}
    write_mat(tmp_path / "x.mat", version, {"a": inner, "b": cell([{"type": "relu"}]), "c": mask})
    values = read_variables(tmp_path / "x.mat", ("a", "b", "none"))
    expected = {"mask": mask.tolist(), "row": [[0, 1, 2]], "word": "x", "cell": [mask.tolist(), {"y": "z"}]}
    assert plain(values) == {"a": expected, "b": [{"type": "relu"}]}
    assert values["a"]["mask"].dtype == np.uint8


def test_empty_text_of_v5(tmp_path):
    write_mat(tmp_path / "x.mat", "v5", {"a": {"none": ""}})
    assert read_mat(tmp_path / "x.mat", "a") == {"none": ""}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a MATLAB v5 or v7.3 file"),
        (b"hello", "is not a MATLAB v5 or v7.3 file"),
        (pickle.dumps({"truth": 1}), "is not a MATLAB v5 or v7.3 file"),
        (b"\0\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0\6\0\0\0truth\0", "is not a MATLAB v5 or v7.3 file"),  # v4
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\x0f\0\0\0\xff\0\0\0xx", "is a damaged MATLAB v5 file: "),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n", "is a damaged MATLAB v7.3 (HDF5) file: "),
    ],
)
def test_another_file(tmp_path, content, says):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(MatFileError) as caught:
        read_mat(tmp_path / "x.mat", "truth")
    assert str(caught.value).startswith(says)


def test_no_file(tmp_path):
    with pytest.raises(MatFileError, match=r"^cannot be read: No such file or directory$"):
        read_mat(tmp_path / "x.mat", "truth")


@versions
def test_a_cut_off_file_is_damaged(tmp_path, version):
    path = tmp_path / "x.mat"
    write_mat(path, version, {"truth": TRUTH * 4})
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(MatFileError, match=rf"^is a damaged MATLAB {version}"):
        read_mat(path, "truth")


@versions
def test_a_missing_variable(tmp_path, version):
    write_mat(tmp_path / "x.mat", version, {"truth": TRUTH, "a": np.ones(2)})
    with pytest.raises(MatFileError, match=r"^has no variable 'anno'; it has a, truth$"):
        read_mat(tmp_path / "x.mat", "anno")


@pytest.mark.real_data
def test_real_files_of_both_versions(real_data: Path):
    folder = real_data / "voc/landmarks/cow"
    if not (folder / "truth_part05.mat").is_file():
        pytest.skip("IPCNN_DATA has no truth_part05.mat of cow, the v7.3 file")
    head, leg = (read_mat(folder / f"truth_part{n:02}.mat", "truth") for n in (1, 5))
    assert len(head) == len(leg) == 194
    assert head[0]["obj"]["filename"] == "2008_000009.jpg"
    shown = [element for element in leg if element["pHW_center"].size]
    assert len(shown) == 95
    assert all(e["pHW_center"].shape == (2, 1) and isinstance(e["obj"]["filename"], str) for e in shown)
    assert sum(isinstance(element["obj"], dict) for element in leg) == 95
