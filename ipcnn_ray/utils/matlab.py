"""MATLAB files, v5 and v7.3, as plain Python values.

A struct is a dict, a struct array or cell array a list (in MATLAB's column-major order; a struct array of one element
is a dict), text a str, numbers an array of MATLAB's shape.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io


class MatFileError(ValueError):
    """A file that is not a MATLAB file this reader knows; the text follows the file's name in a sentence."""


def read_mat(path: Path, variable: str) -> Any:
    """One variable of a .mat file. Raises MatFileError when the file is damaged, neither v5 nor v7.3, or has no such
    variable."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise MatFileError(f"cannot be read: {error.strerror}") from error
    if head in (b"MATLAB 7", b"\x89HDF\r\n\x1a\n"):
        return _read_hdf5(path, variable)
    if head == b"MATLAB 5":
        return _read_v5(path, variable)
    raise MatFileError("is not a MATLAB v5 or v7.3 file")


def _missing(variable: str, there: list[str]) -> MatFileError:
    return MatFileError(f"has no variable {variable!r}; it has {', '.join(sorted(there)) or 'none'}")


def _read_v5(path: Path, variable: str) -> Any:
    try:
        content = scipy.io.loadmat(path, struct_as_record=False)
    except Exception as error:  # scipy has no error of its own for a damaged file
        raise MatFileError(f"is a damaged MATLAB v5 file: {error}") from error
    if variable not in content:
        raise _missing(variable, [name for name in content if not name.startswith("__")])
    return _from_v5(content[variable])


def _from_v5(value: Any) -> Any:
    if isinstance(value, scipy.io.matlab.mat_struct):
        return {name: _from_v5(getattr(value, name)) for name in value._fieldnames}
    if value.dtype.kind == "U":
        return str(value.item()) if value.size == 1 else "".join(value.ravel())
    if value.dtype != object:
        return value
    elements = [_from_v5(element) for element in value.ravel(order="F")]
    if len(elements) == 1 and isinstance(value.flat[0], scipy.io.matlab.mat_struct):
        return elements[0]
    return elements


def _read_hdf5(path: Path, variable: str) -> Any:
    try:
        with h5py.File(path) as file:
            if variable not in file:
                raise _missing(variable, [name for name in file if name != "#refs#"])
            return _from_hdf5(file, file[variable])
    except (OSError, KeyError, RuntimeError) as error:
        raise MatFileError(f"is a damaged MATLAB v7.3 (HDF5) file: {error}") from error


def _from_hdf5(file: h5py.File, node: Any) -> Any:
    if isinstance(node, h5py.Group):
        fields = dict(node.items())
        if fields and all(_is_column(field) for field in fields.values()):
            columns = {name: field[()].ravel() for name, field in fields.items()}
            return [
                {name: _from_hdf5(file, file[ref]) for name, ref in zip(columns, row, strict=True)}
                for row in zip(*columns.values(), strict=True)
            ]
        return {name: _from_hdf5(file, field) for name, field in fields.items()}
    text = node.attrs.get("MATLAB_class") == b"char"
    if node.attrs.get("MATLAB_empty"):
        return "" if text else np.empty((0, 0))
    value = node[()]
    if node.dtype == h5py.ref_dtype:
        return [_from_hdf5(file, file[ref]) for ref in value.ravel()]
    return "".join(map(chr, value.ravel())) if text else value.T


def _is_column(node: Any) -> bool:
    """A field of a struct array: references, without a MATLAB class of its own (a cell array has one)."""
    return isinstance(node, h5py.Dataset) and node.dtype == h5py.ref_dtype and "MATLAB_class" not in node.attrs
