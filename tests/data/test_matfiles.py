from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io

from ipcnn_ray.utils.matlab import MatFileError, read_mat


def same(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b if isinstance(a, str) else np.array_equal(a, b)


def test_v5_and_v73_give_the_same(folder, truth_as_hdf5, tmp_path):
    for number in (1, 2, 4):
        truth_as_hdf5(tmp_path / "hdf5.mat", folder.truth(number))
        five, seven = read_mat(folder.part_file(number), "truth"), read_mat(tmp_path / "hdf5.mat", "truth")
        assert len(five) == len(seven) == 8
        assert all(map(same, five, seven))


def test_values_by_hand(folder, truth_as_hdf5, tmp_path):
    truth_as_hdf5(tmp_path / "hdf5.mat", folder.truth(2))
    for path in (folder.part_file(2), tmp_path / "hdf5.mat"):
        first, second = read_mat(path, "truth")[:2]
        assert first["pHW_center"].tolist() == [[60.0], [60.0]]  # 2 x 1, as MATLAB has it
        assert first["obj"]["filename"] == "2008_000000.jpg"
        assert first["obj"]["bndbox"] == {"xmin": "11", "xmax": "60", "ymin": "21", "ymax": "60"}
        assert first["obj"]["ID"].tolist() == [[1.0]]
        assert second["pHW_center"].size == 0
        assert second["obj"].size == 0


def test_shapes_of_v5(tmp_path):
    mask = np.arange(6, dtype=np.uint8).reshape(2, 3)
    scipy.io.savemat(tmp_path / "x.mat", {"a": {"mask": mask, "row": mask[:1], "word": "x", "none": ""}})
    found = read_mat(tmp_path / "x.mat", "a")
    assert found["mask"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["row"].shape == (1, 3)
    assert (found["word"], found["none"]) == ("x", "")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is not a MATLAB v5 or v7.3 file"),
        (b"hello", "is not a MATLAB v5 or v7.3 file"),
        (b"\0\0\0\0\1\0\0\0\1\0\0\0\0\0\0\0\6\0\0\0truth\0", "is not a MATLAB v5 or v7.3 file"),  # v4
        (b"MATLAB 5.0 MAT-file".ljust(124) + b"\0\1IM" + b"\x0f\0\0\0\xff\0\0\0xx", "is a damaged MATLAB v5 file: "),
        (b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n", "is a damaged MATLAB v7.3 (HDF5) file: "),
    ],
)
def test_other_files_are_named(tmp_path, content, says):
    (tmp_path / "x.mat").write_bytes(content)
    with pytest.raises(MatFileError) as caught:
        read_mat(tmp_path / "x.mat", "truth")
    assert str(caught.value).startswith(says)


def test_cut_off_files_are_damaged(folder, truth_as_hdf5, tmp_path):
    truth_as_hdf5(tmp_path / "hdf5.mat", folder.truth(1))
    for path in (folder.part_file(1), tmp_path / "hdf5.mat"):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(MatFileError, match=r"^is a damaged MATLAB v"):
            read_mat(path, "truth")


def test_a_missing_variable_is_named_with_those_there(folder, truth_as_hdf5, tmp_path):
    truth_as_hdf5(tmp_path / "hdf5.mat", folder.truth(1))
    for path in (folder.part_file(1), tmp_path / "hdf5.mat"):
        with pytest.raises(MatFileError, match=r"^has no variable 'anno'; it has truth$"):
            read_mat(path, "anno")


@pytest.mark.real_data
def test_real_files_of_both_versions(real_data: Path):
    folder = real_data / "voc/landmarks/cow"
    if not (folder / "truth_part05.mat").is_file():
        pytest.skip("IPCNN_DATA has no truth_part05.mat of cow, the v7.3 file")
    head, leg = (read_mat(folder / f"truth_part{n:02}.mat", "truth") for n in (1, 5))
    assert len(head) == len(leg) == 194
    assert head[0]["obj"]["filename"] == "2008_000009.jpg"
    shown = [one for one in leg if one["pHW_center"].size]
    assert len(shown) == 95
    assert all(one["pHW_center"].shape == (2, 1) and isinstance(one["obj"]["filename"], str) for one in shown)
    assert sum(isinstance(one["obj"], dict) for one in leg) == 95
