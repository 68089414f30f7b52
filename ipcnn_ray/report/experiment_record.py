"""Recorded runs as a report needs them, whoever keeps the record."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ipcnn_ray.report.ranking import Group, Row
from ipcnn_ray.report.ranking_table import Ranking
from ipcnn_ray.spec.objectives import Objectives
from ipcnn_ray.spec.runs import group_of

DRAWN_LABEL = re.compile(r"r[0-9a-f]{8}")
"""Label of a setting that a grid or a search made, not a person."""
EARLY = "early stopping"
"""How the cause of a run that its search ended begins; one that a person stopped has another."""


@dataclass(frozen=True)
class Entry:
    """One recorded run."""

    run_id: str
    handle: str
    """The tracker's own id."""
    template: str
    """Its template in a few characters."""
    state: str
    why: str
    """Cause of a failure or stop, in a sentence."""
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Last value of each."""
    started: float | None = None
    """Seconds since 1970."""
    ended: float | None = None
    """Seconds since 1970."""
    errors: tuple[tuple[int, float], ...] = ()
    """(epoch, validation error as a share) of every evaluated epoch; read only where its curve is drawn."""
    seconds: tuple[tuple[int, float], ...] = ()
    """(epoch, its seconds); read only where the run's hours are not recorded."""

    @property
    def label(self) -> str:
        """Its name within its experiment."""
        return self.run_id.rsplit("-", 1)[-1]

    @property
    def seed(self) -> int | None:
        text = self.tags.get("ipcnn.seed") or self.params.get("seed", "")
        return int(text) if text.isdigit() else None

    @property
    def row(self) -> Row:
        """As the ranking takes it."""
        return Row(self.label, self.template, self.state, self.why, self.metrics, self.seed)

    @property
    def stopped_early(self) -> bool:
        """Ended by its search before its last epoch."""
        return self.state == "stopped" and self.why.startswith(EARLY)

    @property
    def marks(self) -> tuple[str, ...]:
        """Keys of MARKS that hold for it."""
        tests = {
            "d": self.tags.get("data.drawn") == "true",
            "w": self.tags.get("model.partial_weights") == "true",
            "s": self.tags.get("model.weights") == "none",
            "u": self.tags.get("code.dirty") == "true",
        }
        return tuple(mark for mark, holds in tests.items() if holds)

    def number(self, param: str) -> float | None:
        """A recorded parameter as a number; None where it is none."""
        try:
            return float(self.params[param])
        except (KeyError, ValueError):
            return None


MARKS = {
    "d": "drawn images, not photographs",
    "w": "partial weights: some layers that the published networks load were not loaded",
    "s": "no pretrained weights: trained from scratch",
    "u": "code with changes that are in no commit",
    "t": "another tau than the paper's 0.5 / n^2",
    "x": "stopped before its last epoch",
}
"""What a reader must know of a number, by the letter that stands behind it."""


@dataclass(frozen=True)
class Experiment:
    """One recorded experiment and its runs."""

    parent: Entry
    runs: tuple[Entry, ...]
    """In the order in which they were opened."""
    objectives: Objectives
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Its resolved spec as recorded; empty where none is."""
    spec_text: str = ""

    @cached_property
    def ranking(self) -> Ranking:
        return Ranking.of([run.row for run in self.runs], self.objectives)

    @cached_property
    def by_group(self) -> dict[str, list[Entry]]:
        """Name of a setting -> its runs."""
        found: dict[str, list[Entry]] = {}
        for run in self.runs:
            found.setdefault(group_of(run.label), []).append(run)
        return found

    @property
    def trials(self) -> list[Group]:
        """Settings that a grid or a search made, in the order in which they were opened."""
        order = list(self.by_group)
        made = [group for group in self.ranking.groups if DRAWN_LABEL.fullmatch(group.name)]
        return sorted(made, key=lambda group: order.index(group.name))

    @property
    def searched(self) -> list[str]:
        """Dotted paths of the fields that a grid or a space varies."""
        search = self.spec.get("search") or {}
        return list(search.get("grid") or search.get("space") or {})

    def logarithmic(self, path: str) -> bool:
        """Whether a searched field is drawn on a logarithmic scale."""
        space = (self.spec.get("search") or {}).get("space") or {}
        return bool((space.get(path) or {}).get("log_uniform"))

    @property
    def name(self) -> str:
        return self.parent.run_id
