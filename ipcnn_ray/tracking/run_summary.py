"""RunSummary: which run of an experiment it is, and what has become of it."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import KW_ONLY, dataclass, field
from typing import Any, Literal, NamedTuple

State = Literal["queued", "running", "succeeded", "failed", "stopped", "pruned"]
"""`stopped`: interrupted by a user, and goes on when it is submitted again. `pruned`: ended by early stopping."""
ENDED: tuple[State, ...] = ("succeeded", "failed", "stopped", "pruned")
Origin = Literal["named", "sampled"]
"""`named` in the spec, or `sampled`: a combination of the grid or a trial of the search."""
ORIGIN = "ipcnn.origin"
"""Tag with the origin of a run; see `translate_earlier_record`."""


@dataclass(frozen=True)
class RunSummary:
    """One run of an experiment: its identity, state and last metrics."""

    run_id: str
    """<name>-<digest>-<label>"""
    label: str
    """Name within the experiment: that of a named run, or `r` and a digest; with repeats followed by `.seed<seed>`."""
    _: KW_ONLY
    group: str = ""
    """What the repeats of a setting share: the label without the seed. Default: the label."""
    seed: int | None = None
    """None where the record does not have it."""
    template: str = ""
    """Short description of its template, such as `L1 β2`."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Fields in which its spec differs from the experiment's, by dotted path; not recorded by trackers."""
    origin: Origin = "named"
    state: State = "queued"
    cause: str = ""
    """Why it failed, was stopped or was pruned, in a sentence; empty otherwise."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last value of each metric."""

    def __post_init__(self) -> None:
        if not self.group:
            object.__setattr__(self, "group", self.label)

    @property
    def identity_tags(self) -> dict[str, str]:
        """Tags from which a tracker reads the identity back."""
        tags = {"ipcnn.label": self.label, "ipcnn.group": self.group, ORIGIN: self.origin}
        return tags | {"ipcnn.template": self.template, "ipcnn.seed": "" if self.seed is None else str(self.seed)}


class EarlierRecord(NamedTuple):
    """What `translate_earlier_record` reads out of a record of an earlier version."""

    label: str
    group: str
    origin: Origin
    state: State


def translate_earlier_record(
    run_id: str, state: State, cause: str, named: Collection[str] | None = None
) -> EarlierRecord:
    """Identity and state of a run whose record or result.json has no origin: an earlier version wrote it.

    Earlier versions recorded pruned runs as stopped, with the cause `early stopping at epoch 4 of 12`, and the label
    only as the end of the run id. This is the only code that interprets a cause, a label or a run id.

    named: groups that the experiment's spec names. Without it, a label that looks like a digest counts as sampled.
    """
    label = run_id.rsplit("-", 1)[-1]
    group = label.partition(".")[0]
    sampled = bool(re.fullmatch("r[0-9a-f]{8}", group)) if named is None else group not in named
    pruned = state == "stopped" and cause.startswith("early stopping at epoch ")
    return EarlierRecord(label, group, "sampled" if sampled else "named", "pruned" if pruned else state)
