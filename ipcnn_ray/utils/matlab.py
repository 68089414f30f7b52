"""Reads MATLAB files, v5 and v7.3, into plain Python values. Nothing is unpickled.

A struct is a dict. A cell array or struct array is a list in MATLAB's column-major order; a struct array of one element
is a dict. Text is a str, and numbers are an array of MATLAB's shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any


class MatFileError(ValueError):
    """A MATLAB file that cannot be read or holds something else. The text continues a sentence that begins with the
    file's name."""


def read_mat(path: Path, variable: str) -> Any:
    """Return one variable of a .mat file. Raises MatFileError if the file is damaged, neither v5 nor v7.3, or has no
    such variable."""
    values, names = _read(path, [variable])
    if variable not in values:
        raise MatFileError(f"has no variable {variable!r}; it has {', '.join(sorted(names)) or 'none'}")
    return values[variable]


def read_variables(path: Path, variables: Iterable[str]) -> dict[str, Any]:
    """Return those of the named variables that a .mat file has. Raises MatFileError if it is damaged, or neither v5
    nor v7.3."""
    return _read(path, list(variables))[0]


def as_list(value: Any) -> list[Any]:
    """Return the elements of a cell or struct array that may have a single element; empty for anything else."""
    return value if isinstance(value, list) else [value] if isinstance(value, dict) else []


def numbers(value: Any) -> list[float]:
    """Return the numbers of an array in a flat list. Raises TypeError or ValueError for other values."""
    import numpy as np

    flat: list[float] = np.asarray(value, np.float64).ravel().tolist()
    return flat


def _read(path: Path, variables: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the named variables that are in the file, and the names of all variables."""
    try:
        with path.open("rb") as stream:
            head = stream.read(8)
    except OSError as error:
        raise MatFileError(f"cannot be read: {error.strerror}") from error
    if head in (b"MATLAB 7", b"\x89HDF\r\n\x1a\n"):
        return _read_hdf5(path, variables)
    if head == b"MATLAB 5":
        return _read_v5(path, variables)
    raise MatFileError("is not a MATLAB v5 or v7.3 file")


def _read_v5(path: Path, variables: list[str]) -> tuple[dict[str, Any], list[str]]:
    import scipy.io

    try:
        content = scipy.io.loadmat(path, struct_as_record=False, variable_names=variables)
        names = (
            [] if set(variables) <= set(content) else [name for name, *_ in scipy.io.whosmat(path) if name[:2] != "__"]
        )
    except Exception as error:  # scipy has no exception of its own for damaged files
        raise MatFileError(f"is a damaged MATLAB v5 file: {error}") from error
    return {name: _from_v5(content[name]) for name in variables if name in content}, names


def _from_v5(value: Any) -> Any:
    from scipy.io.matlab import mat_struct

    if isinstance(value, mat_struct):
        return {name: _from_v5(getattr(value, name)) for name in value._fieldnames}
    if value.dtype.kind == "U":
        return str(value.item()) if value.size == 1 else "".join(value.ravel())
    if value.dtype != object:
        return value
    elements = [_from_v5(element) for element in value.ravel(order="F")]
    return elements[0] if len(elements) == 1 and isinstance(value.flat[0], mat_struct) else elements


def _read_hdf5(path: Path, variables: list[str]) -> tuple[dict[str, Any], list[str]]:
    import h5py
    import numpy as np

    def convert(node: Any) -> Any:
        if isinstance(node, h5py.Group):
            fields = dict(node.items())
            if fields and all(is_column(field) for field in fields.values()):
                columns = {name: field[()].ravel() for name, field in fields.items()}
                elements = [
                    {name: convert(file[ref]) for name, ref in zip(columns, row, strict=True)}
                    for row in zip(*columns.values(), strict=True)
                ]
                return elements[0] if len(elements) == 1 else elements
            return {name: convert(field) for name, field in fields.items()}
        kind = node.attrs.get("MATLAB_class")
        if node.attrs.get("MATLAB_empty"):
            return {b"char": "", b"cell": [], b"struct": []}.get(kind, np.empty((0, 0)))
        value = node[()]
        if node.dtype == h5py.ref_dtype:
            return [convert(file[ref]) for ref in value.ravel()]
        return "".join(map(chr, value.ravel())) if kind == b"char" else value.T

    def is_column(node: Any) -> bool:
        """Whether a node is a field of a struct array: references without a class of their own, unlike a cell array."""
        return isinstance(node, h5py.Dataset) and node.dtype == h5py.ref_dtype and "MATLAB_class" not in node.attrs

    try:
        with h5py.File(path) as file:
            names = [name for name in file if name != "#refs#"]
            return {name: convert(file[name]) for name in variables if name in names}, names
    except (OSError, KeyError, RuntimeError, ValueError) as error:
        raise MatFileError(f"is a damaged MATLAB v7.3 (HDF5) file: {error}") from error
