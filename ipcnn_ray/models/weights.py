"""Pretrained layers from a file of arrays. Nothing is ever unpickled."""

from __future__ import annotations

import difflib
import hashlib
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ipcnn_ray.errors import DataError, Problem
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.model import Weights
from ipcnn_ray.spec.networks import Network


@dataclass(frozen=True)
class LoadReport:
    """What came from the file."""

    loaded: tuple[str, ...]
    """Layers that hold the file's weights, lowest first."""
    random: tuple[str, ...]
    """Convolutions that keep their random weights, lowest first."""
    digest: str
    """SHA-256 of the file."""
    original: tuple[str, ...]
    """Convolutions of the original network, without the appended one."""

    @property
    def partial(self) -> bool:
        """Whether some convolution of the original network was not loaded."""
        return not set(self.original) <= set(self.loaded)


def load_weights(net: InterpretableNet, network: Network, weights: Weights, folder: Path | None) -> LoadReport:
    """Copies `<layer>_w` (OIHW) and `<layer>_b` of the listed layers into `net`.

    network: the row of the table that `net` was built from. folder: where the file lies (IPCNN_WEIGHTS).
    Weights trained on BGR images get their input channels turned round in the first layer, since networks see RGB.

    Errors: DataError with every layer that is missing, has another shape or holds no finite numbers; then no
    parameter was changed.
    """
    path = _locate(weights, folder)
    names = [f"{layer}_{part}" for layer in weights.layers for part in "wb"]
    arrays, there = _read(path, names)
    problems = _problems(net, weights, path, arrays, there)
    if problems:
        raise DataError(problems)
    with torch.no_grad():
        for layer in weights.layers:
            conv = net.conv(layer)
            weight = arrays[f"{layer}_w"]
            if layer == net.convs[0] and weights.channels == "bgr":
                weight = weight.flip(1)
            conv.weight.copy_(weight)
            cast(Tensor, conv.bias).copy_(arrays[f"{layer}_b"])
    return LoadReport(
        loaded=tuple(name for name in net.convs if name in weights.layers),
        random=tuple(name for name in net.convs if name not in weights.layers),
        digest=_sha256(path),
        original=network.convs,
    )


def _locate(weights: Weights, folder: Path | None) -> Path:
    if folder is None:
        raise DataError(
            [
                Problem(
                    "IPCNN_WEIGHTS",
                    f"model.weights.file = {weights.file!r}, and IPCNN_WEIGHTS is not set",
                    "Set IPCNN_WEIGHTS to the folder that holds the file, on every machine that trains.",
                )
            ]
        )
    path = folder / weights.file
    if not path.is_file():
        here = (
            sorted(p.name for p in folder.glob("*") if p.suffix in {".npz", ".safetensors"}) if folder.is_dir() else []
        )
        raise DataError(
            [
                Problem(
                    str(path),
                    f"model.weights.file = {weights.file!r}: no such file",
                    f"IPCNN_WEIGHTS = {folder} holds {', '.join(here) or 'no .npz or .safetensors file'}.",
                )
            ]
        )
    return path


def _read(path: Path, names: list[str]) -> tuple[Mapping[str, Tensor], list[str]]:
    """Those of the arrays that the file has, and the names of all that it has."""
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as file:
                return {name: torch.from_numpy(file[name]) for name in names if name in file}, list(file)
        with safe_open(path, framework="pt") as file:
            there = list(file.keys())
            return {name: file.get_tensor(name) for name in names if name in there}, there
    except (
        OSError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
        SafetensorError,
    ) as error:
        raise DataError(
            [
                Problem(
                    str(path),
                    f"cannot be read: {error}",
                    f"A whole {path.suffix} file of plain numbers is needed; fetch or write it again.",
                )
            ]
        ) from error


def _problems(
    net: InterpretableNet, weights: Weights, path: Path, arrays: Mapping[str, Tensor], there: list[str]
) -> list[Problem]:
    usable = [name for name in net.convs if f"{name}_w" in there and f"{name}_b" in there]
    problems: list[Problem] = []

    def problem(what: str, advice: str) -> None:
        problems.append(Problem(str(path), what, advice))

    for layer in weights.layers:
        if layer not in net.convs:
            close = difflib.get_close_matches(layer, net.convs, n=1)
            advice = f"It has {', '.join(net.convs)}." + (f" Did you mean {close[0]!r}?" if close else "")
            problem(f"model.weights.layers has {layer!r}: the network has no such convolution", advice)
            continue
        conv = net.conv(layer)
        for name, wanted in ((f"{layer}_w", conv.weight), (f"{layer}_b", cast(Tensor, conv.bias))):
            array = arrays.get(name)
            if array is None:
                problem(
                    f"model.weights.layers has {layer!r}: the file has no array {name}",
                    f"Complete in the file: {', '.join(usable) or 'no layer of this network'}. Leave {layer!r} out of "
                    "model.weights.layers (the run is then tagged as using partial weights), or name another file.",
                )
            elif array.shape != wanted.shape:
                problem(
                    f"{name} has shape {tuple(array.shape)}",
                    f"The network's is {tuple(wanted.shape)} (out, in / groups, rows, columns): another network's file?"
                    if name.endswith("_w")
                    else f"The network's is {tuple(wanted.shape)}: another network's file?",
                )
            elif not array.is_floating_point() or not torch.isfinite(array).all():
                kind = str(array.dtype).removeprefix("torch.")
                problem(f"{name} ({kind}) is not all finite floating-point numbers", "Write it as finite float32.")
    return problems


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
