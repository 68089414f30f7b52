"""Arrays by name from a file of pretrained weights, of any kind. Nothing is ever unpickled but torch's own tensors."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import h5py
import numpy as np
import scipy.io
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ipcnn_ray.errors import DataError, Issue

Order = Literal["rgb", "bgr"]
SUFFIXES = (".npz", ".safetensors", ".mat", ".pth", ".pt")
IMAGENET_RGB = (122.7, 116.7, 104.0)
"""Mean of ImageNet's training images, red, green, blue."""
NEAR = 9.0
"""Means this close to ImageNet's are taken for them; red and blue differ by twice as much."""


@dataclass(frozen=True)
class WeightFile:
    """What a file holds."""

    names: tuple[str, ...]
    """Names of all its arrays."""
    arrays: Mapping[str, Tensor]
    """Those of its arrays that were asked for."""
    order: Order | None = None
    """The channel order that the file itself gives away; None where it does not."""
    because: str = ""
    """How it does."""


def read_weights(path: Path, wanted: Iterable[str]) -> WeightFile:
    """The file's names, and those of the arrays `wanted` that it has. Errors: DataError for a file that is damaged."""
    reader = {".npz": _npz, ".safetensors": _safetensors, ".mat": _mat}.get(path.suffix, _state_dict)
    try:
        return reader(path, set(wanted))
    except MatConvNetError as error:
        raise _unreadable(path, str(error), "A SimpleNN network of MatConvNet is needed.") from error
    except pickle.UnpicklingError as error:
        advice = (
            "Only tensors are read, never code: save the state dict alone, torch.save(network.state_dict(), file), "
            "or write it as .safetensors."
        )
        raise _unreadable(path, f"cannot be read: {_first_line(error)}", advice) from error
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        SafetensorError,
    ) as error:
        advice = f"A whole {path.suffix} file of plain numbers is needed; fetch or write it again."
        raise _unreadable(path, f"cannot be read: {error}", advice) from error


def _unreadable(path: Path, what: str, advice: str) -> DataError:
    return DataError([Issue(str(path), what, advice)])


def _first_line(error: Exception) -> str:
    return re.split(r"[.\n]", str(error), maxsplit=1)[0]


def _npz(path: Path, wanted: set[str]) -> WeightFile:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file if name in wanted}
        said = str(file["meta"]) if "meta" in file and file["meta"].dtype.kind == "U" else ""
        orders: list[Order] = [order for order in ("rgb", "bgr") if re.search(rf"\b{order}\b", said, re.IGNORECASE)]
        names = tuple(name for name in file if name != "meta")
    if len(orders) != 1:  # a text that names both orders decides nothing
        return WeightFile(names, arrays)
    sentence = next(part for part in re.split(r"[.;]\s", said) if re.search(rf"\b{orders[0]}\b", part, re.IGNORECASE))
    return WeightFile(
        names, arrays, orders[0], f"its `meta` says {shorten(sentence.strip(), 60, placeholder=' ...')!r}"
    )


def _safetensors(path: Path, wanted: set[str]) -> WeightFile:
    with safe_open(path, framework="pt") as file:
        names = tuple(file.keys())
        return WeightFile(names, {name: file.get_tensor(name) for name in names if name in wanted})


def _mat(path: Path, wanted: set[str]) -> WeightFile:
    found = read_simplenn(path)
    arrays = {name: torch.from_numpy(array) for name, array in found.arrays.items() if name in wanted}
    names = tuple(found.arrays)
    if found.average_image is None:
        return WeightFile(names, arrays)
    means = found.average_image.mean((0, 1)).tolist()
    words = ", ".join(f"{mean:.1f}" for mean in means)
    for order, expected in (("rgb", IMAGENET_RGB), ("bgr", IMAGENET_RGB[::-1])):
        if all(abs(mean - one) < NEAR for mean, one in zip(means, expected, strict=True)):
            because = f"its averageImage has channel means {words}, as ImageNet's in that order"
            return WeightFile(names, arrays, "rgb" if order == "rgb" else "bgr", because)
    return WeightFile(names, arrays)


def _state_dict(path: Path, wanted: set[str]) -> WeightFile:
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict")
    tensors: dict[str, Any] = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    return WeightFile(tuple(tensors), {name: tensor for name, tensor in tensors.items() if name in wanted})


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
