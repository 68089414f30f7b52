"""Reads MATLAB files, v5 and v7.3, into plain Python values. Nothing is unpickled.

A struct is a dict. A cell array or struct array is a list in MATLAB's column-major order; a struct array of one element
is a dict. Text is a str, and numbers are an array of MATLAB's shape.
"""

from __future__ import annotations

import io
import itertools
import math
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

MOST_BYTES = 2 << 30
"""Size of the largest variable that is read; the layers of a whole VGG-16 have 553 MB."""
INT8, INT32, UINT32, MATRIX, COMPRESSED = 1, 5, 6, 14, 15
NUMBERS = frozenset({1, 2, 3, 4, 5, 6, 7, 9, 12, 13, 16, 17, 18})
"""Types of the elements of a v5 file: an array, a compressed one, and those of numbers and text."""
CELL, STRUCT, PLAIN = 1, 2, (4, *range(6, 16))
"""Classes of arrays: cells, structs, and text and numbers."""
COMPLEX = 0x800
"""Flag of an array of complex numbers."""
MOST_LEVELS = 100
"""Depth of cells and structs."""
ByteOrder = Literal["little", "big"]


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
        content = _checked_v5(path)
        variables_there = scipy.io.loadmat(content, struct_as_record=False, variable_names=variables)
        content.seek(0)
        names = [] if set(variables) <= set(variables_there) else [name for name, *_ in scipy.io.whosmat(content)]
        found = {name: _from_v5(variables_there[name]) for name in variables if name in variables_there}
        return found, [name for name in names if name[:2] != "__"]
    except Exception as error:  # scipy has no exception of its own for damaged files
        raise MatFileError(f"is a damaged MATLAB v5 file: {error}") from error


def _checked_v5(path: Path) -> io.BytesIO:
    """Return the content of a v5 file, decompressed, if its elements lie inside each other as they should.

    scipy trusts the sizes in a file: wrong ones end the process, or take any amount of memory.
    """
    data = memoryview(path.read_bytes())
    order: ByteOrder = "little" if data[126:128].tobytes() == b"IM" else "big"
    parts, at = [data[:128]], 128
    while at + 8 <= len(data):
        kind, size = (int.from_bytes(data[at + k : at + k + 4], order) for k in (0, 4))
        element = data[at : at + 8 + size]
        at += 8 + size
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            element = memoryview(unpacker.decompress(element[8:], MOST_BYTES))
            if unpacker.unconsumed_tail:
                raise ValueError(f"it has a variable of more than {MOST_BYTES >> 30} GB")
        kind, array = next(_elements(element, order))
        if kind != MATRIX:
            raise ValueError(f"it has an element of type {kind} in place of a variable")
        if _class_of(array, order) in (CELL, STRUCT, *PLAIN):
            _check_array(array, order, 0)
            parts.append(element)
    return io.BytesIO(b"".join(parts))


def _elements(data: memoryview, order: ByteOrder) -> Iterator[tuple[int, memoryview]]:
    """Yield type and content of the elements that follow each other. Raises ValueError for one that is too large."""
    at = 0
    while at + 8 <= len(data):
        kind, size = (int.from_bytes(data[at + k : at + k + 4], order) for k in (0, 4))
        start, after = at + 8, at + 8 + size + -size % 8
        if kind >> 16:  # up to four bytes are in the place of the size
            kind, size, start, after = kind & 0xFFFF, kind >> 16, at + 4, at + 8
        if start + size > len(data) or (start < at + 8 and size > 4):
            raise ValueError("an element is larger than what it is in")
        yield kind, data[start : start + size]
        at = after


def _class_of(array: memoryview, order: ByteOrder) -> int:
    return int.from_bytes(array[8:12], order) & 0xFF


def _check_array(array: memoryview, order: ByteOrder, level: int) -> None:
    """Check that an array and those inside it consist of what scipy will read. Raises ValueError."""
    if not array:  # of an empty cell
        return
    if level > MOST_LEVELS:
        raise ValueError(f"its cells and structs have more than {MOST_LEVELS} levels")
    head: list[tuple[int, memoryview]] = []
    rest: list[tuple[int, memoryview]] = []
    for kind, content in _elements(array, order):
        (rest if len(head) == 3 else head).append((kind, content))
    if [kind for kind, _ in head] != [UINT32, INT32, INT8] or len(head[0][1]) != 8:
        raise ValueError("an array does not begin with its class, dimensions and name")
    sides = [int.from_bytes(head[1][1][k : k + 4], order, signed=True) for k in range(0, len(head[1][1]), 4)]
    count, of = math.prod(sides), _class_of(array, order)
    if min(sides, default=0) < 0 or count > len(array):
        raise ValueError(f"an array of {len(array)} bytes cannot have the dimensions {sides}")
    if of == STRUCT and [kind for kind, _ in rest[:2]] == [INT32, INT8]:
        width = int.from_bytes(rest[0][1], order)
        count *= len(rest[1][1]) // width if width else 0
        rest = rest[2:]
    if of in (CELL, STRUCT):
        types, expected = frozenset({MATRIX}), count
    elif of in PLAIN:
        types, expected = NUMBERS, 2 if int.from_bytes(array[8:12], order) & COMPLEX else 1
    else:
        raise ValueError(f"it holds something of class {of}, not numbers, text, cells and structs")
    if len(rest) != expected or not types.issuperset(kind for kind, _ in rest):
        raise ValueError(f"an array of {sides} of class {of} has {len(rest)} parts, or parts of a wrong type")
    for kind, content in rest:
        if kind == MATRIX:
            _check_array(content, order, level + 1)


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

    most = path.stat().st_size // 8
    """Number of elements: each takes a reference of 8 bytes, unless some are there many times over."""
    count = itertools.count()

    def convert(node: Any) -> Any:
        if next(count) > most:
            raise ValueError("its cells and structs contain each other, or the same ones over and over")
        if node.file.filename != str(path):
            raise ValueError(f"it names {node.name!r} of another file, {node.file.filename}")
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
        if not isinstance(node, h5py.Dataset) or node.external or node.is_virtual or node.nbytes > MOST_BYTES:
            raise ValueError(f"{node.name!r} is no array of this file, or a larger one than {MOST_BYTES >> 30} GB")
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
    except Exception as error:  # h5py has no exception of its own for damaged files
        raise MatFileError(f"is a damaged MATLAB v7.3 (HDF5) file: {error}") from error
