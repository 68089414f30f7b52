"""MatConvNet's SimpleNN networks: convolutions and average image of a .mat file, MATLAB v5 or v7.3.

Where the numbers lie (MatConvNet's manual, and the files imagenet-caffe-alex, imagenet-vgg-m, imagenet-vgg-s and
imagenet-vgg-verydeep-16): `layers{i}.weights = {filters, biases}`, before release 1.0-beta8 `layers{i}.filters` and
`.biases`; `meta.normalization.averageImage`, formerly `normalization.averageImage`; each at the top of the file or in
a struct `net`. Filters are rows x columns x in / groups x out, single precision. HDF5 (v7.3) holds every array with
its axes in reverse order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import scipy.io
from numpy.typing import NDArray

VARIABLES = ("net", "layers", "meta", "normalization", "params")


class MatConvNetError(ValueError):
    """The file is not a SimpleNN network; the text follows the file's name in a sentence."""


@dataclass(frozen=True)
class SimpleNN:
    """What a file holds of a network."""

    arrays: dict[str, NDArray[Any]]
    """`<layer>_w`, OIHW, and `<layer>_b` of every layer that has both, in the file's order."""
    average_image: NDArray[np.float64] | None
    """[rows, columns, 3] of the images that it was trained on, or [1, 1, 3]; None where the file has none."""


def read_simplenn(path: Path) -> SimpleNN:
    """Errors: MatConvNetError."""
    with path.open("rb") as stream:
        head = stream.read(8)
    if head in (b"MATLAB 7", b"\x89HDF\r\n\x1a\n"):
        try:
            with h5py.File(path) as file:
                return _network(_V73(file))
        except (OSError, KeyError, RuntimeError) as error:
            raise MatConvNetError(f"is a damaged MATLAB v7.3 (HDF5) file: {error}") from error
    if head != b"MATLAB 5":
        raise MatConvNetError("is not a MATLAB v5 or v7.3 file")
    try:
        content = scipy.io.loadmat(path, struct_as_record=False, variable_names=VARIABLES)
    except Exception as error:  # scipy has no error of its own for a damaged file
        raise MatConvNetError(f"is a damaged MATLAB v5 file: {error}") from error
    return _network(_V5(content))


class _V5:
    """Values of a v5 file as scipy gives them."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.root = content

    def field(self, value: Any, name: str) -> Any:
        """A field of a struct, a variable of the root; None where there is none."""
        if isinstance(value, np.ndarray) and value.dtype == object and value.size == 1:
            value = value.flat[0]
        return value.get(name) if isinstance(value, dict) else getattr(value, name, None)

    def cells(self, value: Any) -> list[Any]:
        """The entries of a cell array or a struct array."""
        return list(value.ravel(order="F")) if isinstance(value, np.ndarray) and value.dtype == object else []

    def text(self, value: Any) -> str:
        return "".join(str(part) for part in np.ravel(value))

    def array(self, value: Any) -> NDArray[Any]:
        found: NDArray[Any] = np.asarray(value)
        return found


class _V73:
    """Values of a v7.3 file: groups are structs, datasets of references cell arrays."""

    def __init__(self, file: h5py.File) -> None:
        self.root = file

    def field(self, value: Any, name: str) -> Any:
        return value.get(name) if isinstance(value, h5py.Group) else None

    def cells(self, value: Any) -> list[Any]:
        if not isinstance(value, h5py.Dataset) or value.dtype != h5py.ref_dtype:
            return []
        return [self.root[reference] for reference in value[()].ravel(order="F")]

    def text(self, value: Any) -> str:
        return "" if value.attrs.get("MATLAB_empty") else "".join(map(chr, value[()].ravel()))

    def array(self, value: Any) -> NDArray[Any]:
        if value.attrs.get("MATLAB_empty"):
            return np.empty((0, 0))
        found: NDArray[Any] = value[()].T
        return found


def _network(file: _V5 | _V73) -> SimpleNN:
    net: Any = file.root if file.field(file.root, "net") is None else file.field(file.root, "net")
    layers = file.cells(file.field(net, "layers"))
    if file.field(net, "params") is not None:
        raise MatConvNetError("is a DagNN network of MatConvNet; a SimpleNN one (layers{i}.weights) is needed")
    if not layers:
        raise MatConvNetError("has no cell array `layers`, at its top or in a struct `net`, as a SimpleNN network has")
    arrays: dict[str, NDArray[Any]] = {}
    for number, layer in enumerate(layers, start=1):
        pair = file.cells(file.field(layer, "weights"))
        if len(pair) < 2:
            pair = [one for one in (file.field(layer, "filters"), file.field(layer, "biases")) if one is not None]
        if len(pair) < 2:
            continue
        filters, biases = file.array(pair[0]), file.array(pair[1])
        if not filters.size or filters.ndim > 4:
            continue
        named = file.field(layer, "name")
        name = (file.text(named) if named is not None else "") or f"layers{{{number}}}"
        # MATLAB drops the last axes of length 1.
        hwio = filters.reshape(*filters.shape, *[1] * (4 - filters.ndim))
        arrays[f"{name}_w"] = np.ascontiguousarray(hwio.transpose(3, 2, 0, 1))
        arrays[f"{name}_b"] = biases.ravel()
    return SimpleNN(arrays, _average_image(file, net))


def _average_image(file: _V5 | _V73, net: Any) -> NDArray[np.float64] | None:
    meta = file.field(net, "meta")
    for holder in (meta, net):
        normalization = None if holder is None else file.field(holder, "normalization")
        image = None if normalization is None else file.field(normalization, "averageImage")
        if image is None:
            continue
        found = file.array(image).astype(np.float64)
        if found.size == 3:
            return found.reshape(1, 1, 3)
        if found.ndim == 3 and found.shape[2] == 3:
            return found
    return None
