"""Checkpoints of a run, one per epoch, and its result.

    checkpoints/epoch-0007/model.pt      parameters and buffers of the network
    checkpoints/epoch-0007/training.pt   what only resuming needs: optimizer state, random generators
    checkpoints/epoch-0007/meta.json     origin, metric history, size and SHA-256 of the other files
    result.json                          of a run that has ended

Checkpoints are atomic: on a file system the folder is written under another name and renamed. In a bucket the other
files have their hash in their names, and meta.json, which makes the checkpoint visible, is stored last; all go through
a temporary folder of this machine. Nothing is unpickled. Only rank 0 writes.

Checkpoints of format 1, which earlier versions wrote, have one file `state.pt`. They are read as well.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import random
import shutil
import tempfile
from collections.abc import Collection, Generator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ipcnn_ray.errors import TrainingError
from ipcnn_ray.tracking.run_summary import RunSummary, translate_earlier_record
from ipcnn_ray.tracking.storage import Storage, join_path
from ipcnn_ray.train.run_dir import RESULT_FILE, WEIGHTS_FILE, Folder, local_path, open_run_dir, read_json, write_file
from ipcnn_ray.utils.files import atomic_folder, sha256_of, write_atomic

FORMAT = 2
"""Version of the layout of a checkpoint."""
MODEL, TRAINING = "model.pt", "training.pt"
KEEP = 2
"""Number of checkpoints that are kept."""
DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, EOFError, pickle.UnpicklingError)
"""Errors of reading a meta.json, or by torch of a file that holds more than tensors, numbers and texts."""

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
    model = {"model": state["model"]}
    for name, part in ((MODEL, model), (TRAINING, {key: state[key] for key in state if key not in model})):
        with (directory / name).open("wb") as stream:
            torch.save(part, stream)
            stream.flush()
            os.fsync(stream.fileno())
    meta = {
        "format": FORMAT,
        **asdict(origin),
        "epoch": int(history[-1]["epoch"]),
        "files": {name: [(file := directory / name).stat().st_size, sha256_of(file)] for name in (MODEL, TRAINING)},
        "history": [dict(metrics) for metrics in history],
    }
    write_atomic(directory / "meta.json", json.dumps(meta, indent=1).encode())


def _upload(directory: Path, files: Storage, epoch: int) -> None:
    """Store a checkpoint: meta.json last, which makes it visible. Then delete older ones, meta.json first."""
    meta = (directory / "meta.json").read_bytes()
    parts = _keys(epoch, json.loads(meta))
    for name, key in parts.items():
        files.put_file(directory / name, key)
    files.put_bytes(meta, f"{_prefix(epoch)}/meta.json")
    keys, kept = files.list("checkpoints"), {*parts.values(), f"{_prefix(epoch)}/meta.json"}
    stays = tuple(f"{_prefix(stored)}/" for stored in _stored(keys)[-KEEP:] if stored != epoch)
    gone = [key for key in keys if key not in kept and not key.startswith(stays)]
    for key in sorted(gone, key=lambda key: not key.endswith("meta.json")):
        files.delete(key)


def _prefix(epoch: int) -> str:
    return f"checkpoints/epoch-{epoch:04}"


def _parts(meta: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Return size and SHA-256 of the files of a checkpoint, by name. Raises one of `DAMAGE`."""
    if meta.get("format", FORMAT) > 1:
        files = {name: meta["files"][name] for name in (MODEL, TRAINING)}  # no other names: they become paths
    else:
        files = {"state.pt": (meta["bytes"], meta["sha256"])}
    return {name: (int(size), str(total)) for name, (size, total) in files.items()}


def _keys(epoch: int, meta: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys in a bucket of the files of a checkpoint, by name."""
    totals = {name: total[:16] for name, (_, total) in _parts(meta).items()}
    return {name: f"{_prefix(epoch)}/{name.removesuffix('.pt')}-{total}.pt" for name, total in totals.items()}


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
                meta = _read_meta(copy, location := f"{folder}/checkpoints/{copy.name}")
                _check_origin(location, meta, origin)
                state: dict[str, Any] = {}
                for name in _parts(meta):
                    state |= torch.load(copy / name, map_location="cpu", weights_only=True)
            except DAMAGE as error:
                damaged.append(f"{copy.name} ({str(error).partition('. ')[0]})")
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
            with suppress(ValueError, KeyError, TypeError, AttributeError):  # `_read_meta` reports a damaged meta.json
                for name, key in _keys(epoch, json.loads((copy / "meta.json").read_text())).items():
                    if key in keys:
                        files.get_file(key, copy / name)
            yield copy


def _read_meta(directory: Path, location: str) -> dict[str, Any]:
    """Return meta.json of a checkpoint whose files are intact; raise one of `DAMAGE` otherwise. Raises TrainingError if
    it has another format. location: of the checkpoint, for people."""
    meta: dict[str, Any] = json.loads((directory / "meta.json").read_text())
    if not 1 <= meta["format"] <= FORMAT:
        raise TrainingError(
            f"{location} has checkpoint format {meta['format']} and this version of ipcnn reads 1 to {FORMAT}: "
            "go on with the version that wrote it, or submit with --fresh"
        )
    for name, (whole, total) in _parts(meta).items():
        size = (directory / name).stat().st_size
        if size != whole:
            raise ValueError(f"{name} has {size} of {whole} bytes")
        if sha256_of(directory / name) != total:
            raise ValueError(f"{name} has changed since it was written")
    return meta


def _check_origin(location: str, meta: Mapping[str, Any], origin: Origin) -> None:
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


def drop_training_state(folder: Folder) -> None:
    """Delete what nothing needs of the checkpoints of a run that has ended. Repeated, it does nothing more.

    The newest meta.json stays, with the history, and the network if the run has no final weights, as a pruned one. The
    network of an earlier version, in a file with the optimizer's state, stays with it then.
    """
    files, local = open_run_dir(folder), local_path(folder)
    keys = files.list("checkpoints")
    stored = _stored(keys)
    if not stored:
        return
    kept = {f"{_prefix(stored[-1])}/meta.json"}
    if not files.exists(WEIGHTS_FILE):
        kept |= {key for key in keys if key.startswith(f"{_prefix(stored[-1])}/") and f"/{TRAINING[:-3]}" not in key}
    for key in keys:
        if key not in kept:
            files.delete(key)
    for old in _checkpoints(local)[:-1] if local else ():
        shutil.rmtree(old)


def drop_training_states(root: str, labels: Collection[str]) -> None:
    """Call `drop_training_state` for those of the ended runs of an experiment that still have such a state."""
    files = (key.split("/") for key in open_run_dir(root).list() if "/checkpoints/" in key)
    with_state = {label for label, *_, name in files if name.startswith(("training", "state"))}
    for label in sorted(with_state.intersection(labels)):
        drop_training_state(join_path(root, label))


def read_result(folder: Folder, run: RunSummary) -> RunSummary | None:
    """Return the run with the state, cause and metrics of its result.json; None if it has not ended."""
    if (result := read_json(folder, RESULT_FILE, "state", "why", "metrics")) is None:
        return None
    state = result["state"]
    if "origin" not in result:
        state = translate_earlier_record(run.run_id, state, result["why"]).state
    return replace(run, state=state, cause=result["why"], metrics=result["metrics"])
