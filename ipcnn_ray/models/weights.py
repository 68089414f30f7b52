"""Pretrained weights from files: by name, checked, never unpickled."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import Weights


@dataclass(frozen=True)
class LoadReport:
    """What came from the file and what did not."""

    loaded: tuple[str, ...]
    """Convolutions whose weights are the file's."""
    random: tuple[str, ...]
    """Convolutions of the original network that start from random numbers."""
    digest: str
    """sha256 of the file; empty without one."""

    @property
    def partial(self) -> bool:
        """Some convolution of the original network was not loaded although others were."""
        return bool(self.loaded and self.random)


def find_file(weights: Weights, folder: Path | None) -> Path:
    """The weight file in the folder that IPCNN_WEIGHTS names, or a DataError that says how to give it."""
    if folder is None:
        raise DataError(
            [Problem(weights.file, "IPCNN_WEIGHTS is not set", "Set it to the folder that holds this weight file.")]
        )
    path = folder / weights.file
    if not path.is_file():
        there = sorted(p.name for p in folder.glob("*") if p.suffix in {".npz", ".safetensors"})
        raise DataError(
            [Problem(str(path), "no such weight file", f"The folder has {there}. Set model.weights.file to one of them.")]
        )
    return path


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, SafetensorError) as error:
        raise DataError(
            [Problem(str(path), f"cannot be read as {path.suffix}: {error}", "Fetch the file again; nothing was loaded.")]
        ) from error


def load_weights(net: InterpretableNet, weights: Weights | None, folder: Path | None) -> LoadReport:
    """Copy the named layers of a weight file into the network; all problems of the file are reported at once.

    Arrays: `<layer>_w` [out, in / groups, kernel, kernel] and `<layer>_b` [out], float. Networks here see RGB: the
    first layer of a file for BGR images has its input channels turned round.
    """
    original = net.network.convs
    if weights is None:
        return LoadReport((), original, "")
    path = find_file(weights, folder)
    arrays = _read(path)
    problems: list[Problem] = []
    ready: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    for layer in weights.layers:
        conv = net.convs[layer]
        for suffix, parameter in (("w", conv.weight), ("b", conv.bias)):
            key = f"{layer}_{suffix}"
            if key not in arrays:
                has = sorted(name.removesuffix("_w") for name in arrays if name.endswith("_w"))
                problems.append(
                    Problem(str(path), f"has no array {key!r}", f"It has the layers {has}; name only those in model.weights.layers.")
                )
                continue
            array = arrays[key]
            if tuple(array.shape) != tuple(parameter.shape):
                problems.append(
                    Problem(
                        str(path),
                        f"{key} has shape {tuple(array.shape)}",
                        f"The network's {layer} needs {tuple(parameter.shape)}: this file is of another network.",
                    )
                )
                continue
            if not np.issubdtype(array.dtype, np.floating) or not np.isfinite(array).all():
                problems.append(
                    Problem(str(path), f"{key} is {array.dtype} or not finite", "Weights are finite floating numbers.")
                )
                continue
            values = torch.from_numpy(np.ascontiguousarray(array)).to(parameter.dtype)
            if suffix == "w" and layer == original[0] and weights.channels == "bgr":
                values = values.flip(1)
            ready.append((parameter, values))
    if problems:
        raise DataError(problems)
    with torch.no_grad():
        for parameter, values in ready:
            parameter.copy_(values)
    random = tuple(layer for layer in original if layer not in weights.layers)
    return LoadReport(tuple(weights.layers), random, file_digest(path))
