"""What a run leaves in its folder: a checkpoint per epoch, and its result.

    checkpoints/epoch-0007/state.pt    parameters, buffers, momentum, random generators
    checkpoints/epoch-0007/meta.json   what it belongs to, the metric history, size and sum of state.pt
    weights.safetensors, result.json   of a run that has ended

Files and checkpoints appear whole or not at all: written beside, synced, renamed, their folder synced. In a bucket
state.pt is named by its sum, and meta.json, which makes the checkpoint visible, is stored last; a checkpoint is
written to this machine's temporary folder, stored from there, and read back through it. Nothing is unpickled. Only
rank 0 writes.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.tracking.run_summary import RunSummary, translate_earlier_record
from ipcnn_ray.tracking.storage import Storage
from ipcnn_ray.train.run_dir import RESULT_FILE, Folder, local_path, open_run_dir, read_file, write_file
from ipcnn_ray.utils.files import atomic_folder, sha256_of, write_atomic

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


def save(folder: Folder, origin: Origin, history: History, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of the last epoch in `history`, and forget all but the newest two.

    Raises TrainingError when the disk is full, TrackingError when a bucket does not take it.
    """
    epoch = int(history[-1]["epoch"])
    here = local_path(folder)
    try:
        if here is None:
            with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
                _write(Path(scratch), origin, history, state)
                _publish(Path(scratch), open_run_dir(folder), epoch)
            return
        with atomic_folder(here / "checkpoints" / f"epoch-{epoch:04}") as partial:
            _write(partial, origin, history, state)
        for old in _checkpoints(here)[:-KEEP]:
            shutil.rmtree(old)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        full = f"{here}/checkpoints" if here else tempfile.gettempdir()
        raise TrainingError(
            f"no space left in {full} for the checkpoint of epoch {epoch}: free some space and submit again; "
            "the run goes on from the epoch before"
        ) from error


def _write(home: Path, origin: Origin, history: History, state: Mapping[str, Any]) -> None:
    """state.pt, and meta.json about it."""
    with (home / "state.pt").open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())
    meta = {
        "format": FORMAT,
        **asdict(origin),
        "epoch": int(history[-1]["epoch"]),
        "bytes": (home / "state.pt").stat().st_size,
        "sha256": sha256_of(home / "state.pt"),
        "history": [dict(one) for one in history],
    }
    write_atomic(home / "meta.json", json.dumps(meta, indent=1).encode())


def _publish(home: Path, files: Storage, epoch: int) -> None:
    """Store a written checkpoint: first what takes long, then what makes it visible. Older ones go after that, each
    first out of sight."""
    meta = (home / "meta.json").read_bytes()
    state = _state_key(epoch, json.loads(meta)["sha256"])
    files.put_file(home / "state.pt", state)
    files.put_bytes(meta, f"{_prefix(epoch)}/meta.json")
    keys = files.list("checkpoints")
    stays = tuple(f"{_prefix(kept)}/" for kept in _stored(keys)[-KEEP:])
    gone = [key for key in keys if not key.startswith(stays) or (key.startswith(_prefix(epoch)) and key != state)]
    for key in sorted(gone, key=lambda key: not key.endswith("meta.json")):
        if key != f"{_prefix(epoch)}/meta.json":
            files.delete(key)


def _prefix(epoch: int) -> str:
    return f"checkpoints/epoch-{epoch:04}"


def _state_key(epoch: int, total: str) -> str:
    return f"{_prefix(epoch)}/state-{total[:16]}.pt"


def _stored(keys: Sequence[str]) -> list[int]:
    """Epochs of the visible checkpoints among the keys of a bucket, in order."""
    return sorted(int(key.split("/")[1][6:]) for key in keys if key.endswith("/meta.json"))


def newest(folder: Folder, origin: Origin) -> Restored:
    """The checkpoint to go on from, on the CPU. Torn ones are passed over and named.

    Raises TrainingError for one that another experiment, other data, other weights or another layout made.
    """
    damaged: list[str] = []
    with closing(_copies(folder)) as copies:
        for copy in copies:
            try:
                meta = _read_meta(copy)
                _check_origin(f"{folder}/checkpoints/{copy.name}", meta, origin)
                state = torch.load(copy / "state.pt", map_location="cpu", weights_only=True)
            except (OSError, ValueError, KeyError) as error:
                damaged.append(f"{copy.name} ({error})")
                continue
            return Restored(meta["epoch"], state, meta["history"], tuple(damaged))
    return Restored(0, {}, [], tuple(damaged))


def _copies(folder: Folder) -> Generator[Path, None, None]:
    """The checkpoints as folders of this machine, newest first; of a bucket each is copied when it is asked for."""
    if (here := local_path(folder)) is not None:
        yield from reversed(_checkpoints(here))
        return
    files = open_run_dir(folder)
    keys = files.list("checkpoints")
    for epoch in reversed(_stored(keys)):
        with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
            copy = Path(scratch) / f"epoch-{epoch:04}"
            files.get_file(f"{_prefix(epoch)}/meta.json", copy / "meta.json")
            state = _state_key(epoch, str(json.loads((copy / "meta.json").read_text()).get("sha256", "")))
            if state in keys:
                files.get_file(state, copy / "state.pt")
            yield copy


def _read_meta(home: Path) -> dict[str, Any]:
    """meta.json of a checkpoint whose state.pt is as it was written; else ValueError, KeyError or OSError."""
    meta: dict[str, Any] = json.loads((home / "meta.json").read_text())
    size = (home / "state.pt").stat().st_size
    if size != meta["bytes"]:
        raise ValueError(f"state.pt has {size} of {meta['bytes']} bytes")
    if sha256_of(home / "state.pt") != meta["sha256"]:
        raise ValueError("state.pt has changed since it was written")
    return meta


def _check_origin(where: str, meta: Mapping[str, Any], origin: Origin) -> None:
    if meta["format"] != FORMAT:
        raise TrainingError(
            f"{where} has checkpoint format {meta['format']} and this version of ipcnn reads {FORMAT}: "
            "go on with the version that wrote it, or submit with --fresh"
        )
    for key, what in (("digest", "experiment"), ("data", "data"), ("weights", "pretrained weights")):
        now = getattr(origin, key)
        if meta[key] != now:
            raise TrainingError(
                f"{where} was made with other {what}: {key} {meta[key] or 'none'}, now {now or 'none'}. "
                "Bring those back, or submit with --fresh to begin anew"
            )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("epoch-[0-9][0-9][0-9][0-9]*"), key=lambda home: int(home.name[6:]))


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


def write_result(folder: Folder, run: RunSummary) -> None:
    """Write result.json; a run that has it is not trained again."""
    epochs = int(run.metrics.get("epoch", 0))
    result = {"run_id": run.run_id, "origin": run.origin, "state": run.state, "why": run.cause, "epochs": epochs}
    write_file(folder, RESULT_FILE, json.dumps({**result, "metrics": dict(run.metrics)}, indent=1).encode())


def read_result(folder: Folder, run: RunSummary) -> RunSummary | None:
    """The run with the state, cause and metrics of its result.json; None where there is none."""
    if (content := read_file(folder, RESULT_FILE)) is None:
        return None
    result = json.loads(content)
    state = result["state"]
    if "origin" not in result:
        state = translate_earlier_record(run.run_id, state, result["why"]).state
    return replace(run, state=state, cause=result["why"], metrics=result["metrics"])
