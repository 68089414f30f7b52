"""Reads arrays by name from files of pretrained weights. Only torch's own tensors are ever unpickled."""

from __future__ import annotations

import pickle
import re
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.utils.matlab import MatFileError, as_list, read_variables

Order = Literal["rgb", "bgr"]
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    BadZipFile,
    zlib.error,
    SafetensorError,
)
SUFFIXES = (".npz", ".safetensors", ".mat", ".pth", ".pt")
IMAGENET_RGB = (122.7, 116.7, 104.0)
"""Mean of ImageNet's training images, red, green, blue, 0..255."""
MEAN_TOLERANCE = 9.0
"""Channel means within this distance of ImageNet's are taken for them; red and blue differ by twice as much."""


@dataclass(frozen=True)
class WeightFile:
    names: tuple[str, ...]
    """Names of all its arrays."""
    arrays: Mapping[str, Tensor]
    """The requested arrays that it has."""
    order: Order | None = None
    """Channel order of the network's input as the file itself gives it; None if it does not."""
    because: str = ""
    """What in the file gives the order."""


def read_weights(path: Path, wanted: Iterable[str]) -> WeightFile:
    """Read the names of all arrays, and those arrays of `wanted` that the file has. Raises DataError if the file is
    damaged or of another kind than its ending says."""
    reader = {".npz": _npz, ".safetensors": _safetensors, ".mat": _mat}.get(path.suffix, _state_dict)
    try:
        return reader(path, set(wanted))
    except MatFileError as error:
        what, advice = str(error), "A SimpleNN network of MatConvNet is needed."
    except pickle.UnpicklingError as error:
        what = "cannot be read: " + re.split(r"[.\n]", str(error), maxsplit=1)[0]
        advice = (
            "Only tensors are read, never code: save the state dict alone, torch.save(network.state_dict(), file), "
            "or write it as .safetensors."
        )
    except DAMAGED as error:
        what = f"cannot be read: {error}"
        advice = f"A whole {path.suffix} file of plain numbers is needed; fetch or write it again."
    raise DataError([Issue(str(path), what, advice)])


def _npz(path: Path, wanted: set[str]) -> WeightFile:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file if name in wanted}
        meta = str(file["meta"]) if "meta" in file and file["meta"].dtype.kind == "U" else ""
        orders: list[Order] = [order for order in ("rgb", "bgr") if re.search(rf"\b{order}\b", meta, re.IGNORECASE)]
        names = tuple(name for name in file if name != "meta")
    if len(orders) != 1:  # a text that names both decides nothing
        return WeightFile(names, arrays)
    sentence = next(part for part in re.split(r"[.;]\s", meta) if re.search(rf"\b{orders[0]}\b", part, re.IGNORECASE))
    because = f"its `meta` says {shorten(sentence.strip(), 60, placeholder=' ...')!r}"
    return WeightFile(names, arrays, orders[0], because)


def _safetensors(path: Path, wanted: set[str]) -> WeightFile:
    with safe_open(path, framework="pt") as file:
        names = tuple(file.keys())
        return WeightFile(names, {name: file.get_tensor(name) for name in names if name in wanted})


def _mat(path: Path, wanted: set[str]) -> WeightFile:
    network = read_simplenn(path)
    arrays = {name: torch.from_numpy(array) for name, array in network.arrays.items() if name in wanted}
    names = tuple(network.arrays)
    if network.average_image is None:
        return WeightFile(names, arrays)
    means = network.average_image.mean((0, 1)).tolist()
    orders: dict[Order, tuple[float, ...]] = {"rgb": IMAGENET_RGB, "bgr": IMAGENET_RGB[::-1]}
    for order, expected in orders.items():
        if all(abs(mean - other) < MEAN_TOLERANCE for mean, other in zip(means, expected, strict=True)):
            shown = ", ".join(f"{mean:.1f}" for mean in means)
            because = f"its averageImage has channel means {shown}, as ImageNet's in that order"
            return WeightFile(names, arrays, order, because)
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


@dataclass(frozen=True)
class SimpleNN:
    arrays: dict[str, NDArray[Any]]
    """`<layer>_w`, OIHW, and `<layer>_b` of every layer that has both, in the file's order."""
    average_image: NDArray[np.float64] | None
    """Mean training image, [rows, columns, 3] or [1, 1, 3]; None if the file has none."""


def read_simplenn(path: Path) -> SimpleNN:
    """Read a SimpleNN network from a .mat file, v5 or v7.3; its parts are at the top level or in a struct `net`.
    Raises MatFileError if the file is damaged or holds no such network."""
    content = read_variables(path, ("net", "layers", "meta", "normalization", "params"))
    net = content["net"] if isinstance(content.get("net"), dict) else content
    layers = as_list(net.get("layers"))
    if "params" in net:
        raise MatFileError("is a DagNN network of MatConvNet; a SimpleNN one (layers{i}.weights) is needed")
    if not layers:
        raise MatFileError("has no cell array `layers`, at its top or in a struct `net`, as a SimpleNN network has")
    arrays: dict[str, NDArray[Any]] = {}
    for number, layer in enumerate(layers, start=1):
        fields = layer if isinstance(layer, dict) else {}
        pair = as_list(fields.get("weights"))
        if len(pair) < 2:
            pair = [fields[name] for name in ("filters", "biases") if name in fields]
        if len(pair) < 2 or not pair[0].size or pair[0].ndim > 4:
            continue
        filters, biases = pair[:2]
        name = fields.get("name") or f"layers{{{number}}}"
        # MATLAB drops trailing axes of length 1.
        hwio = filters.reshape(*filters.shape, *[1] * (4 - filters.ndim))
        arrays[f"{name}_w"] = np.ascontiguousarray(hwio.transpose(3, 2, 0, 1))
        arrays[f"{name}_b"] = biases.ravel()
    return SimpleNN(arrays, _average_image(net))


def _average_image(net: dict[str, Any]) -> NDArray[np.float64] | None:
    for holder in (net.get("meta"), net):
        normalization = holder.get("normalization") if isinstance(holder, dict) else None
        if not isinstance(normalization, dict) or "averageImage" not in normalization:
            continue
        image = np.asarray(normalization["averageImage"], np.float64)
        if image.size == 3:
            return image.reshape(1, 1, 3)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    return None
