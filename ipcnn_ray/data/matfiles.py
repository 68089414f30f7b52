"""MATLAB files, v5 and v7.3, as plain Python values: structs are dicts, struct arrays lists of dicts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io


class MatFileError(ValueError):
    """A file that is not a MATLAB file this reader knows."""


def read_mat(path: Path, variable: str) -> Any:
    """One variable of a .mat file. Numbers are arrays (row-major, MATLAB's shape, single ones squeezed), text is str.

    Raises MatFileError when the file is neither v5 nor v7.3, or has no such variable.
    """
    with path.open("rb") as stream:
        head = stream.read(128)
    if head.startswith(b"MATLAB 7.3") or head.startswith(b"\x89HDF"):
        try:
            with h5py.File(path) as file:
                if variable not in file:
                    raise MatFileError(f"has no variable {variable!r}; it has {sorted(set(file) - {'#refs#'})}")
                return _from_hdf5(file, file[variable])
        except OSError as error:
            raise MatFileError(f"is a damaged v7.3 (HDF5) file: {error}") from error
    if not head.startswith(b"MATLAB 5.0"):
        raise MatFileError("is no MATLAB v5 or v7.3 file")
    try:
        content = scipy.io.loadmat(path, struct_as_record=False, squeeze_me=True)
    except Exception as error:  # scipy raises many kinds on damaged files
        raise MatFileError(f"is a damaged v5 file: {error}") from error
    if variable not in content:
        raise MatFileError(f"has no variable {variable!r}; it has {sorted(k for k in content if not k.startswith('__'))}")
    return _from_v5(content[variable])


def _from_v5(value: Any) -> Any:
    if isinstance(value, scipy.io.matlab.mat_struct):
        return {name: _from_v5(getattr(value, name)) for name in value._fieldnames}
    if isinstance(value, np.ndarray) and value.dtype == object:
        return [_from_v5(item) for item in value.ravel()]
    return value


def _from_hdf5(file: h5py.File, node: Any) -> Any:
    if isinstance(node, h5py.Group):
        fields = {name: node[name] for name in node}
        if fields and all(isinstance(f, h5py.Dataset) and f.dtype == h5py.ref_dtype for f in fields.values()):
            columns = {name: f[()].ravel() for name, f in fields.items()}
            length = len(next(iter(columns.values())))
            return [{name: _from_hdf5(file, file[refs[i]]) for name, refs in columns.items()} for i in range(length)]
        return {name: _from_hdf5(file, field) for name, field in fields.items()}
    if node.attrs.get("MATLAB_empty"):
        return np.empty(0)
    value = node[()]
    if node.dtype == h5py.ref_dtype:
        return [_from_hdf5(file, file[ref]) for ref in value.ravel()]
    if node.attrs.get("MATLAB_class") == b"char":
        return "".join(chr(code) for code in value.T.ravel())
    return np.squeeze(value.T)
