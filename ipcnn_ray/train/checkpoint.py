"""Checkpoints of a run, one per epoch, and its result.

    checkpoints/epoch-0007/state.pt    parameters, buffers, optimizer state, random generators
    checkpoints/epoch-0007/meta.json   origin, metric history, size and SHA-256 of state.pt
    result.json                        of a run that has ended

Checkpoints are atomic: on a file system the folder is written under another name and renamed. In a bucket state.pt has
its hash in its name, and meta.json, which makes the checkpoint visible, is stored last; both go through a temporary
folder of this machine. Nothing is unpickled. Only rank 0 writes.
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
"""Version of the layout of state.pt and meta.json."""
KEEP = 2
"""Number of checkpoints that are kept."""

History = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class Origin:
    """Digests of what a checkpoint was trained from. It is restored only where all are the same."""

    digest: str
    """Of the run's spec."""
    data: str
    """Of the images and landmarks."""
    weights: str
    """Of the pretrained weight file; empty without one."""


@dataclass(frozen=True)
class Restored:
    epoch: int
    """0 if there is none."""
    state: dict[str, Any]
    history: list[dict[str, float]]
    damaged: tuple[str, ...]
    """Newer checkpoints that are damaged, with the reason."""


def save(folder: Folder, origin: Origin, history: History, state: Mapping[str, Any]) -> None:
    """Write the checkpoint of the last epoch in `history`, and delete all but the newest `KEEP`. Raises TrainingError
    if the disk is full, TrackingError if the bucket cannot be written."""
    epoch = int(history[-1]["epoch"])
    local = local_path(folder)
    try:
        if local is None:
            with tempfile.TemporaryDirectory(prefix="ipcnn-") as scratch:
                _write(Path(scratch), origin, history, state)
                _upload(Path(scratch), open_run_dir(folder), epoch)
            return
        with atomic_folder(local / "checkpoints" / f"epoch-{epoch:04}") as partial:
            _write(partial, origin, history, state)
        for old in _checkpoints(local)[:-KEEP]:
            shutil.rmtree(old)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        full = f"{local}/checkpoints" if local else tempfile.gettempdir()
        raise TrainingError(
            f"no space left in {full} for the checkpoint of epoch {epoch}: free some space and submit again; "
            "the run goes on from the epoch before"
        ) from error


def _write(directory: Path, origin: Origin, history: History, state: Mapping[str, Any]) -> None:
    with (directory / "state.pt").open("wb") as stream:
        torch.save(dict(state), stream)
        stream.flush()
        os.fsync(stream.fileno())
    meta = {
        "format": FORMAT,
        **asdict(origin),
        "epoch": int(history[-1]["epoch"]),
        "bytes": (directory / "state.pt").stat().st_size,
        "sha256": sha256_of(directory / "state.pt"),
        "history": [dict(metrics) for metrics in history],
    }
    write_atomic(directory / "meta.json", json.dumps(meta, indent=1).encode())


def _upload(directory: Path, files: Storage, epoch: int) -> None:
    """Store a checkpoint: state.pt, then meta.json, which makes it visible. Then delete older ones, meta.json first."""
    meta = (directory / "meta.json").read_bytes()
    state = _state_key(epoch, json.loads(meta)["sha256"])
    files.put_file(directory / "state.pt", state)
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
    """Return the epochs of the visible checkpoints among the keys of a bucket, sorted."""
    return sorted(int(key.split("/")[1][6:]) for key in keys if key.endswith("/meta.json"))


def newest(folder: Folder, origin: Origin) -> Restored:
    """Load the newest intact checkpoint to the CPU. Damaged ones are skipped and listed. Raises TrainingError if it
    was made from another experiment, other data or weights, or has another format."""
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
    """Yield the checkpoints as local folders, newest first; those of a bucket are downloaded one by one."""
    if (local := local_path(folder)) is not None:
        yield from reversed(_checkpoints(local))
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


def _read_meta(directory: Path) -> dict[str, Any]:
    """Return meta.json of a checkpoint whose state.pt is intact; raise ValueError, KeyError or OSError otherwise."""
    meta: dict[str, Any] = json.loads((directory / "meta.json").read_text())
    size = (directory / "state.pt").stat().st_size
    if size != meta["bytes"]:
        raise ValueError(f"state.pt has {size} of {meta['bytes']} bytes")
    if sha256_of(directory / "state.pt") != meta["sha256"]:
        raise ValueError("state.pt has changed since it was written")
    return meta


def _check_origin(location: str, meta: Mapping[str, Any], origin: Origin) -> None:
    if meta["format"] != FORMAT:
        raise TrainingError(
            f"{location} has checkpoint format {meta['format']} and this version of ipcnn reads {FORMAT}: "
            "go on with the version that wrote it, or submit with --fresh"
        )
    for key, name in (("digest", "experiment"), ("data", "data"), ("weights", "pretrained weights")):
        now = getattr(origin, key)
        if meta[key] != now:
            raise TrainingError(
                f"{location} was made with other {name}: {key} {meta[key] or 'none'}, now {now or 'none'}. "
                "Bring those back, or submit with --fresh to begin anew"
            )


def _checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoints").glob("epoch-[0-9][0-9][0-9][0-9]*"), key=lambda path: int(path.name[6:]))


def generator_states() -> dict[str, Any]:
    """Return the states of the global random generators of torch, CUDA, numpy and Python."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all(),
        "numpy": [name, torch.from_numpy(np.asarray(keys, np.int64)), *rest],
        "python": random.getstate(),
    }


def restore_generators(states: Mapping[str, Any]) -> None:
    """Set the global random generators to the result of `generator_states`."""
    torch.set_rng_state(states["torch"])
    if len(states["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(states["cuda"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    random.setstate(states["python"])


def write_result(folder: Folder, run: RunSummary) -> None:
    """Mark a run as ended: a run that has result.json is not trained again."""
    epochs = int(run.metrics.get("epoch", 0))
    result = {"run_id": run.run_id, "origin": run.origin, "state": run.state, "why": run.cause, "epochs": epochs}
    write_file(folder, RESULT_FILE, json.dumps({**result, "metrics": dict(run.metrics)}, indent=1).encode())


def read_result(folder: Folder, run: RunSummary) -> RunSummary | None:
    """Return the run with the state, cause and metrics of its result.json; None if it has not ended."""
    if (content := read_file(folder, RESULT_FILE)) is None:
        return None
    result = json.loads(content)
    state = result["state"]
    if "origin" not in result:
        state = translate_earlier_record(run.run_id, state, result["why"]).state
    return replace(run, state=state, cause=result["why"], metrics=result["metrics"])
