"""What a run leaves in its folder: a checkpoint per epoch, and its result.

    checkpoints/epoch-0007/state.pt    parameters, buffers, momentum, random generators
    checkpoints/epoch-0007/meta.json   what it belongs to, the metric history, size and sum of state.pt
    weights.safetensors, result.json   of a run that has ended

Files and checkpoints appear whole or not at all: written beside, synced, renamed, their folder synced. Nothing is
unpickled. Only rank 0 writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.train.request import RunResult

FORMAT = 1
"""Changes with the layout of state.pt or meta.json."""
KEEP = 2

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Origin:
    """What a checkpoint belongs to: its numbers mean nothing elsewhere."""

    digest: str
    """Of the run's spec."""
    data: str
    """Of the images and landmarks."""
    weights: str
    """Of the pretrained weight file; empty without one."""


@dataclass(frozen=True)
class Restored:
    """The newest whole checkpoint."""

    epoch: int
    """0: there is none."""
    state: dict[str, Any]
    history: list[dict[str, float]]
    damaged: tuple[str, ...]
    """Newer checkpoints that are torn, and how."""


def save(folder: Path, origin: Origin, history: History, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of the last epoch in `history`, and forget all but the newest two.

    Raises TrainingError when the disk is full.
    """
    home = folder / "checkpoints"
    epoch = int(history[-1]["epoch"])
    final, beside = home / f"epoch-{epoch:04}", home / f".epoch-{epoch:04}"
    try:
        for left in home.glob(".epoch-*"):
            shutil.rmtree(left)  # of a process that was killed while it wrote
        beside.mkdir(parents=True)
        with (beside / "state.pt").open("wb") as stream:
            torch.save(dict(state), stream)
            stream.flush()
            os.fsync(stream.fileno())
        meta = {
            "format": FORMAT,
            **asdict(origin),
            "epoch": epoch,
            "bytes": (beside / "state.pt").stat().st_size,
            "sha256": _sum(beside / "state.pt"),
            "history": [dict(one) for one in history],
        }
        write_whole(beside / "meta.json", json.dumps(meta, indent=1).encode())
        shutil.rmtree(final, ignore_errors=True)  # there only if it was damaged
        os.replace(beside, final)
        _sync(home)
        for old in _checkpoints(folder)[:-KEEP]:
            shutil.rmtree(old)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TrainingError(
            f"no space left in {home} for the checkpoint of epoch {epoch}: free some space and submit again; "
            "the run goes on from the epoch before"
        ) from error
    return final


def newest(folder: Path, origin: Origin) -> Restored:
    """The checkpoint to go on from, on the CPU. Torn ones are passed over and named.

    Raises TrainingError for one that another experiment, other data, other weights or another layout made.
    """
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            meta = _read_meta(path)
            _check_origin(path, meta, origin)
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{path.name} ({error})")
            continue
        return Restored(meta["epoch"], state, meta["history"], tuple(damaged))
    return Restored(0, {}, [], tuple(damaged))


def _read_meta(path: Path) -> dict[str, Any]:
    """meta.json of a checkpoint whose state.pt is as it was written; else ValueError, KeyError or OSError."""
    meta: dict[str, Any] = json.loads((path / "meta.json").read_text())
    size = (path / "state.pt").stat().st_size
    if size != meta["bytes"]:
        raise ValueError(f"state.pt has {size} of {meta['bytes']} bytes")
    if _sum(path / "state.pt") != meta["sha256"]:
        raise ValueError("state.pt has changed since it was written")
    return meta


def _check_origin(path: Path, meta: Mapping[str, Any], origin: Origin) -> None:
    if meta["format"] != FORMAT:
        raise TrainingError(
            f"{path} has checkpoint format {meta['format']} and this version of ipcnn reads {FORMAT}: "
            "go on with the version that wrote it, or submit with --fresh"
        )
    for key, what in (("digest", "experiment"), ("data", "data"), ("weights", "pretrained weights")):
        now = getattr(origin, key)
        if meta[key] != now:
            raise TrainingError(
                f"{path} was made with other {what}: {key} {meta[key] or 'none'}, now {now or 'none'}. "
                "Bring those back, or submit with --fresh to begin anew"
            )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("epoch-[0-9][0-9][0-9][0-9]*"), key=lambda path: int(path.name[6:]))


def _sum(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, data: bytes) -> None:
    """Replace a file: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}")
    with beside.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(beside, path)
    _sync(path.parent)


def generator_states() -> dict[str, Any]:
    """Where the global random generators of torch, CUDA, numpy and Python stand."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Put the global random generators where `generator_states` found them."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])


def write_result(folder: Path, result: RunResult) -> None:
    """Say that the run has ended; from now on it is not trained again."""
    write_whole(folder / "result.json", json.dumps(asdict(result), indent=1).encode())


def read_result(folder: Path) -> RunResult | None:
    """The result of a run that has ended, or None."""
    path = folder / "result.json"
    return RunResult(**json.loads(path.read_text())) if path.is_file() else None
