"""Protocols of an experiment tracker and of one open run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self, cast

from ipcnn_ray.tracking.run_summary import ORIGIN, Origin, RunSummary, State, translate_earlier_record

SPEC_ARTIFACT = "spec.yaml"
"""Artifact of an experiment's parent run: its resolved spec."""


@dataclass(frozen=True, kw_only=True)
class RecordedRun(RunSummary):
    """A run as a tracker has recorded it. The run of an experiment itself has its run id as label."""

    handle: str
    """The tracker's own id of the run."""
    parent: str = ""
    """Handle of the experiment's run; empty for the experiment's own run."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    started: float | None = None
    """Time when it was opened, seconds since 1970; None if not recorded."""
    ended: float | None = None
    """Time when it last ended, seconds since 1970; None while it is queued or running."""

    @classmethod
    def from_tags(
        cls, run_id: str, state: State, cause: str, tags: Mapping[str, str], params: Mapping[str, str], **facts: Any
    ) -> Self:
        """A run with the identity that its tags have; `facts` are the other fields.

        The template of a run that an earlier version recorded is empty.
        """
        label, group, origin = tags.get("ipcnn.label", run_id), tags.get("ipcnn.group", ""), tags.get(ORIGIN, "named")
        if ORIGIN not in tags:
            earlier = translate_earlier_record(run_id, state, cause)
            state = earlier.state
            if facts.get("parent"):
                label, group, origin = earlier.label, earlier.group, earlier.origin
        seed = tags.get("ipcnn.seed") or params.get("seed", "")
        return cls(
            run_id,
            label,
            group=group,
            seed=int(seed) if seed.isdigit() else None,
            template=tags.get("ipcnn.template", ""),
            origin=cast(Origin, origin),
            state=state,
            cause=cause,
            tags=tags,
            params=params,
            **facts,
        )


class RunRecord(Protocol):
    """An open run. Every method is idempotent: a resumed run may repeat its calls."""

    handle: str

    def log_params(self, values: Mapping[str, str]) -> None:
        """Log parameters. A key can be repeated with the same value; another value raises TrackingError.
        Keys `compute.*` become tags `ipcnn.compute.*`, because a resumed run may use other resources."""
        ...

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set or overwrite tags. `ipcnn.title` is the run's display name."""
        ...

    def set_description(self, text: str) -> None:
        """Set the run's description, in Markdown."""
        ...

    def log_metrics(self, history: Sequence[Mapping[str, float]], when: int | None = None) -> None:
        """Log all epochs so far. Values that are already recorded are skipped.

        Args:
            history: One mapping per epoch; its key `epoch` is the step, from 1 (0: of a network that is not trained).
                Values that are not finite are left out and listed in the tag `ipcnn.not_finite`.
            when: Time of the new values, milliseconds since 1970; default: now.
        """
        ...

    def log_text(self, content: str, path: str) -> None:
        """Store a text artifact at `path` of the run."""
        ...

    def log_file(self, local: Path, folder: str) -> None:
        """Store a file as an artifact in `folder` of the run."""
        ...

    def log_model(self, module: object, example: object, readme: str) -> None:
        """Store the trained model. A run has one model: a second call does nothing.

        Args:
            module: The torch module, in evaluation mode on the CPU. It is stored without its code, for any batch size.
            example: Float batch of at least 2 images.
            readme: Markdown file of the model, and its description; `{uri}` in it is replaced by the model's URI.
        """
        ...

    def set_state(self, state: State, cause: str = "", when: int | None = None) -> None:
        """Set the state.

        Args:
            cause: Why the run failed or was stopped, in one sentence.
            when: End of the run, milliseconds since 1970; default: now.
        """
        ...


class Tracker(Protocol):
    """The record of all runs."""

    uri: str

    def prepare(self, experiment: str, description: str = "") -> None:
        """Create the store and the experiment if they are missing, and set the experiment's description (Markdown).
        Call it before workers start: processes that create one SQLite store together collide."""
        ...

    def open_parent(self, experiment: str, run_id: str, *, fresh: bool = False) -> RunRecord:
        """Open or create the parent run. `fresh` creates a new one; the older run and its trials stay recorded, but
        are marked as superseded and no longer found."""
        ...

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> RunRecord:
        """Open or create the run of one trial below the parent run with this handle."""
        ...

    def attach(self, handle: str) -> RunRecord:
        """Return an existing run. Any process may call it."""
        ...

    def flush(self, timeout: float = 0.0) -> int:
        """Write buffered records, for at most `timeout` seconds; return how many are left. No run may be training."""
        ...

    def delete(self, handle: str) -> None:
        """Mark a run as deleted, with its trials, its models and what it superseded. It is found no more. Repeated
        after an interruption, it marks the rest: the run itself is the last."""
        ...

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        """Return the runs of an experiment, or the one with this id, newest first, without superseded ones. An unknown
        experiment has none."""
        ...

    def experiments(self) -> list[str]:
        """Return the names of all experiments, newest first. Creates nothing."""
        ...

    def history(self, handle: str, metric: str) -> list[tuple[int, float]]:
        """Return all values of a metric of a run as (step, value), ordered by step."""
        ...

    def read(self, handle: str, path: str) -> str | None:
        """Return the text artifact at `path` of a run; None if there is none or this machine cannot access it."""
        ...
