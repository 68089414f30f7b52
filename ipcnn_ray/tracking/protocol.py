"""The record of runs, as the rest of the package sees it. One vendor stands behind it, in one file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

State = Literal["queued", "running", "succeeded", "failed", "stopped"]


@dataclass(frozen=True)
class RecordedRun:
    """One run as it stands in the record."""

    run_id: str
    """Our id: <name>-<digest>-<trial>; of an experiment: <name>-<digest>."""
    handle: str
    """The tracker's own id of the run."""
    state: State
    why: str
    """Cause of a failure or stop, in a sentence; empty otherwise."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last value of each metric."""


class RunRecord(Protocol):
    """One open run. Every method is idempotent, so a resumed run may repeat what it already said."""

    handle: str

    def params(self, values: Mapping[str, str]) -> None:
        """Written once; a key that is already there with the same value is left alone."""
        ...

    def tags(self, values: Mapping[str, str]) -> None: ...

    def metrics(self, history: Sequence[Mapping[str, float]]) -> None:
        """The whole history so far, one mapping per epoch with its 1-based `epoch`: epochs that the record
        already has are skipped, so each is there once."""
        ...

    def text(self, content: str, path: str) -> None:
        """A small text artifact at `path` under the run."""
        ...

    def file(self, local: Path, folder: str) -> None:
        """A file as an artifact in `folder` under the run."""
        ...

    def model(self, module: object, example: object, readme: str) -> None:
        """The trained torch module, loadable on its own, with signature; `example` a float batch of >= 2 images."""
        ...

    def state(self, state: State, why: str = "") -> None: ...


class Tracker(Protocol):
    """Where runs are recorded."""

    uri: str

    def prepare(self, experiment: str) -> None:
        """Create the store and the experiment; call once, before workers start (a fresh SQLite store is racy)."""
        ...

    def open_parent(self, experiment: str, run_id: str, *, fresh: bool = False) -> RunRecord:
        """The run of an experiment: the one recorded under `run_id`, or a new one."""
        ...

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> RunRecord:
        """The run of one trial under the parent with handle `parent`."""
        ...

    def attach(self, handle: str) -> RunRecord:
        """An existing run, from any process."""
        ...

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        """Recorded runs of an experiment, newest first; with `run_id`, only that run."""
        ...
