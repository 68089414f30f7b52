"""Writes MATLAB files of both formats: dict = struct, list of dicts = struct array, object array = cell array."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io

CLASSES = {np.dtype(np.float32): "single", np.dtype(np.uint8): "uint8"}


def cell(values: list[Any]) -> np.ndarray:
    """A 1 x N cell array."""
    made = np.empty((1, len(values)), object)
    made[0, :] = values
    return made


def struct_array(elements: list[dict[str, Any]]) -> np.ndarray:
    """A 1 x N struct array, as savemat takes it; empty text and numbers for what an element lacks."""
    made = np.empty((1, len(elements)), dtype=[(name, object) for name in elements[0]])
    for i, element in enumerate(elements):
        for name, value in element.items():
            made[0, i][name] = value
    return made


def write_mat(path: Path, version: str, values: dict[str, Any]) -> None:
    """Write variables as MATLAB's save does, with -v7 ("v5") or with -v7.3 ("v7.3")."""
    if version == "v5":
        scipy.io.savemat(path, {name: _v5(value) for name, value in values.items()})
        return
    with h5py.File(path, "w", userblock_size=512) as file:
        refs = file.create_group("#refs#")
        for name, value in values.items():
            _v73(file, name, value, refs)
    with path.open("r+b") as stream:
        stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512))


def _v5(value: Any) -> Any:
    return struct_array(value) if isinstance(value, list) else value


def _v73(group: h5py.Group, name: str, value: Any, refs: h5py.Group) -> Any:
    """HDF5 as MATLAB writes it: axes reversed, cells as references, text as 16-bit codes, classes in attributes."""

    def reference(element: Any) -> h5py.Reference:
        return _v73(refs, f"r{len(refs)}", element, refs).ref

    def references(elements: list[Any]) -> np.ndarray:
        return np.array([[reference(element)] for element in elements], h5py.ref_dtype)

    if isinstance(value, dict | list):
        node = group.create_group(name)
        kind = "struct"
        for key in value[0] if isinstance(value, list) else ():
            node.create_dataset(key, data=references([element[key] for element in value]), dtype=h5py.ref_dtype)
        for key, inner in value.items() if isinstance(value, dict) else ():
            _v73(node, key, inner, refs)
    elif isinstance(value, str):
        node, kind = group.create_dataset(name, data=np.array([[ord(c)] for c in value], np.uint16)), "char"
    elif isinstance(value, np.ndarray) and value.dtype == object:
        node, kind = group.create_dataset(name, data=references(list(value.ravel())), dtype=h5py.ref_dtype), "cell"
    elif np.size(value) == 0:
        node, kind = group.create_dataset(name, data=np.zeros(2, np.uint64)), "double"
        node.attrs["MATLAB_empty"] = np.uint8(1)
    else:
        data = np.atleast_2d(np.asarray(value))
        node, kind = group.create_dataset(name, data=data.T), CLASSES.get(data.dtype, "double")
    node.attrs["MATLAB_class"] = np.bytes_(kind)
    return node
