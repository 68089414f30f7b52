from __future__ import annotations

import pickle
import re
import struct
import zlib
from pathlib import Path
from typing import Any

import h5py
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


def element(kind: int, content: bytes) -> bytes:
    return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def array(kind: int, sides: tuple[int, ...], content: bytes, name: bytes = b"truth") -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack(f"<{len(sides)}i", *sides))
    return element(14, head + element(1, name) + content)


def nested(levels: int) -> bytes:
    inner = array(6, (1, 1), element(9, struct.pack("<d", 1)), b"")
    for level in range(levels):
        inner = array(1, (1, 1), inner, b"truth" if level == levels - 1 else b"")
    return inner


def oversized() -> bytes:
    """A matrix inside a cell that claims four gigabytes: scipy alone ends the process."""
    inner = bytearray(array(6, (1, 1), element(9, struct.pack("<d", 1)), b""))
    inner[4:8] = struct.pack("<I", 2**32 - 2**16)
    return array(1, (1, 1), bytes(inner))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (nested(20), ""),
        (nested(500), "more than 100 levels"),
        (oversized(), "larger than what it is in"),
        (array(6 | 0x800, (1, 1), element(9, b"12345678")), "has 1 parts, or parts of a wrong type"),
        (array(6, (1, 1), element(14, b"")), "parts of a wrong type"),
        (array(1, (1, 2), nested(0)), "has 1 parts"),
        (element(14, element(5, struct.pack("<II", 6, 0))), "does not begin with its class"),
        (array(6, (2**30, 2**30), element(9, b"12345678")), "cannot have the dimensions [1073741824, 1073741824]"),
        (array(1, (2**16, 2**15), b""), "cannot have the dimensions [65536, 32768]"),
        (array(6, (-1, -1), element(9, b"12345678")), "cannot have the dimensions [-1, -1]"),
    ],
    ids=["sound", "levels", "size", "complex", "type", "count", "head", "numbers", "cells", "negative"],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_v5_file_that_lies_about_its_sizes(tmp_path, content, says, compressed):
    content = element(15, zlib.compress(content))[: 8 + len(zlib.compress(content))] if compressed else content
    (tmp_path / "x.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM" + content)
    if not says:
        value = read_mat(tmp_path / "x.mat", "truth")
        for _ in range(20):
            (value,) = value
        assert value.tolist() == [[1.0]]
        return
    with pytest.raises(MatFileError, match=re.escape(says)):
        read_mat(tmp_path / "x.mat", "truth")


def outside(file: h5py.File, folder: Path) -> None:
    file.create_dataset("truth", (8,), "u1", external=[(str(folder / "secret"), 0, 8)])


def linked(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["x"] = [1.0]
    file["truth"] = h5py.ExternalLink(str(folder / "other.h5"), "/x")


def huge(file: h5py.File, folder: Path) -> None:
    file.create_dataset("truth", (10**6, 10**6), "f4", chunks=(1000, 1000))


def itself(file: h5py.File, folder: Path) -> None:
    group = file.create_group("truth")
    group["a"] = group


def laughs(file: h5py.File, folder: Path) -> None:
    node = file.create_dataset("#refs#/0", data=[1.0])
    for k in range(1, 12):
        node = file.create_dataset(f"#refs#/{k}", data=np.array([node.ref] * 10, h5py.ref_dtype), dtype=h5py.ref_dtype)
        node.attrs["MATLAB_class"] = np.bytes_("cell")
    file["truth"] = node


def a_type(file: h5py.File, folder: Path) -> None:
    file["truth"] = np.dtype("f8")


@pytest.mark.parametrize("make", [outside, linked, huge, itself, laughs, a_type])
@pytest.mark.timeout(60)
def test_a_v73_file_of_other_files_or_without_end(tmp_path, make):
    (tmp_path / "secret").write_bytes(b"secret!!")
    with h5py.File(tmp_path / "x.mat", "w", userblock_size=512) as file:
        make(file, tmp_path)
    with (tmp_path / "x.mat").open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file".ljust(512))
    with pytest.raises(MatFileError, match=r"^is a damaged MATLAB v7.3"):
        read_mat(tmp_path / "x.mat", "truth")
