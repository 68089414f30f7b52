"""Arrays by name from a file of pretrained weights, of any kind. Nothing is ever unpickled but torch's own tensors."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.models.matconvnet import MatConvNetError, read_simplenn

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
    return DataError([Problem(str(path), what, advice)])


def _first_line(error: Exception) -> str:
    return re.split(r"[.\n]", str(error), maxsplit=1)[0]


def _npz(path: Path, wanted: set[str]) -> WeightFile:
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file if name in wanted}
        said = str(file["meta"]) if "meta" in file and file["meta"].dtype.kind == "U" else ""
        orders: list[Order] = [order for order in ("rgb", "bgr") if re.search(rf"\b{order}\b", said, re.IGNORECASE)]
        names = tuple(name for name in file if name != "meta")
    # A text that names both orders decides nothing.
    return WeightFile(names, arrays, *((orders[0], f"its `meta` says {said!r}") if len(orders) == 1 else ()))


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
