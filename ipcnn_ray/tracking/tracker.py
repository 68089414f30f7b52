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
    parent: str
    """Handle of the experiment's run that this one belongs to; empty for the experiment's own run."""
    state: State
    why: str
    """Cause of a failure or stop, in a sentence; empty otherwise."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last value of each metric."""
    started: float | None = None
    """When it was opened, seconds since 1970; None where the record does not say."""
    ended: float | None = None
    """When it last ended, seconds since 1970; None while it has not."""


class RunRecord(Protocol):
    """One open run. Every method is idempotent, so a resumed run may repeat what it already said."""

    handle: str

    def params(self, values: Mapping[str, str]) -> None:
        """Written once; a key that is already there with the same value is left alone, with another it is an error.
        Keys of `compute.` become tags `ipcnn.compute.*`: a resumed run may use other resources."""
        ...

    def tags(self, values: Mapping[str, str]) -> None:
        """Set, or set anew. `ipcnn.title` is what the record calls the run in its lists."""
        ...

    def note(self, text: str) -> None:
        """What the run is and what came of it, in Markdown: the first thing that a person sees of it."""
        ...

    def metrics(self, history: Sequence[Mapping[str, float]], when: int | None = None) -> None:
        """The whole history so far, one mapping per epoch with its 1-based `epoch`, which is the step: what the record
        already has is skipped, so each number is there once. A number that is not finite is left out, and named in
        the tag `ipcnn.not_finite`. when: milliseconds since 1970 at which the new numbers were measured; now, if not
        given."""
        ...

    def text(self, content: str, path: str) -> None:
        """A small text artifact at `path` under the run."""
        ...

    def file(self, local: Path, folder: str) -> None:
        """A file as an artifact in `folder` under the run."""
        ...

    def model(self, module: object, example: object, readme: str) -> None:
        """The trained torch module, in evaluation mode on the CPU, loadable on its own, for batches of any size;
        `example` is a float batch of at least 2 images. `readme`, in Markdown: a file of the model and its description;
        `{uri}` in it becomes the model's address. A run has one model: a second one is left out."""
        ...

    def state(self, state: State, why: str = "", when: int | None = None) -> None:
        """`why` in a sentence, for a failure or a stop; `when` as with metrics."""
        ...


class Tracker(Protocol):
    """Where runs are recorded."""

    uri: str

    def prepare(self, experiment: str, note: str = "") -> None:
        """Create the store and the experiment, described by `note` in Markdown; call it before workers start, since
        a fresh SQLite store is racy."""
        ...

    def open_parent(self, experiment: str, run_id: str, *, fresh: bool = False) -> RunRecord:
        """The run of an experiment: the one recorded under `run_id`, or a new one. `fresh` takes a new one, and the
        older one and its trials are superseded: they stay in the record but are found no more."""
        ...

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> RunRecord:
        """The run of one trial under the parent with handle `parent`."""
        ...

    def attach(self, handle: str) -> RunRecord:
        """An existing run, from any process."""
        ...

    def deliver(self, patience: float = 0.0) -> int:
        """Record what waits because the store was away when it was said; gives the number of statements that are left
        after `patience` seconds. While no run is trained."""
        ...

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        """Recorded runs of an experiment, newest first, without superseded ones; with `run_id`, only that run.
        An experiment that is not recorded has none."""
        ...

    def experiments(self) -> list[str]:
        """Names of the recorded experiments, newest first; creates nothing."""
        ...

    def history(self, handle: str, metric: str) -> list[tuple[int, float]]:
        """Every value of one metric of a run as (step, value), by step; none where it was never written."""
        ...

    def read(self, handle: str, path: str) -> str | None:
        """The text artifact at `path` under a run; None where there is none, or none that this machine can see."""
        ...
