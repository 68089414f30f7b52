"""ReportedRun and Experiment: recorded runs as reports use them, independent of the tracker."""

from __future__ import annotations

from ast import literal_eval
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.report.ranking_table import Ranking
from ipcnn_ray.spec.objectives import Objectives
from ipcnn_ray.spec.template import Template
from ipcnn_ray.tracking.tracker import RecordedRun, Tracker
from ipcnn_ray.utils.text import did_you_mean


@dataclass(frozen=True, kw_only=True)
class ReportedRun(RecordedRun):
    """A recorded run with the metric histories that a report draws."""

    errors: tuple[tuple[int, float], ...] = ()
    """(epoch, validation error as a share) of every evaluated epoch; read only for runs whose curve is drawn."""
    seconds: tuple[tuple[int, float], ...] = ()
    """(epoch, its seconds); read only for runs whose hours are not recorded."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Keys of MARKS that apply to the run."""
        tests = {
            "d": self.tags.get("data.drawn") == "true",
            "w": self.tags.get("model.partial_weights") == "true",
            "s": self.tags.get("model.weights") == "none",
            "u": self.tags.get("code.dirty") == "true",
        }
        return tuple(mark for mark, holds in tests.items() if holds)

    def number(self, param: str) -> float | None:
        """A recorded parameter as a number; None if it is not one."""
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
"""Letter behind a number in a table -> the caveat that it stands for."""


@dataclass(frozen=True)
class Experiment:
    """A recorded experiment and its runs."""

    parent: RecordedRun
    runs: tuple[ReportedRun, ...]
    """In the order in which they were opened."""
    objectives: Objectives
    spec: Mapping[str, Any] = field(default_factory=dict)
    """Resolved spec as recorded, not validated; empty if it cannot be read."""
    spec_text: str = ""

    @property
    def name(self) -> str:
        """Experiment id, <name>-<digest>."""
        return self.parent.run_id

    @cached_property
    def ranking(self) -> Ranking:
        return Ranking.of(self.runs, self.objectives)

    @cached_property
    def by_group(self) -> dict[str, list[ReportedRun]]:
        """Name of a setting -> its runs, in the order in which the first of them were opened."""
        groups: dict[str, list[ReportedRun]] = {}
        for run in self.runs:
            groups.setdefault(run.group, []).append(run)
        return groups

    @property
    def trials(self) -> list[Group]:
        """The sampled settings, in the order in which they were opened."""
        order = list(self.by_group)
        sampled = [group for group in self.ranking.groups if group.origin == "sampled"]
        return sorted(sampled, key=lambda group: order.index(group.name))

    @property
    def searched(self) -> list[str]:
        """Dotted paths of the fields that a grid or a space varies."""
        search = self.spec.get("search") or {}
        return list(search.get("grid") or search.get("space") or {})

    def logarithmic(self, path: str) -> bool:
        """Whether a searched field is sampled on a logarithmic scale."""
        space = (self.spec.get("search") or {}).get("space") or {}
        return bool((space.get(path) or {}).get("log_uniform"))


def find_runs(tracker: Tracker, wanted: str) -> list[tuple[RecordedRun, list[RecordedRun]]]:
    """Experiments by name or id, each with all of its runs, or the one run that has the id `wanted`.

    Raises IpcnnError if nothing is recorded under it.
    """
    name = wanted.partition("-")[0]  # ids begin with the name, which has no dash
    recorded = by_experiment(tracker.find(name))
    chosen = [
        (parent, [run for run in runs if wanted in {name, parent.run_id, run.run_id}]) for parent, runs in recorded
    ]
    if any(runs for _, runs in chosen):
        return [(parent, runs) for parent, runs in chosen if runs]
    known = [*tracker.experiments(), *(parent.run_id for parent, _ in recorded)]
    guess = did_you_mean(wanted, known).strip()
    listed = f"Recorded: {', '.join(known)}." if known else "Nothing is recorded yet."
    raise IpcnnError(f"no experiment and no run is recorded as {wanted!r}\n{guess or listed}")


def by_experiment(runs: Sequence[RecordedRun]) -> list[tuple[RecordedRun, list[RecordedRun]]]:
    """Experiments in the order of `Tracker.find`, newest first, each with its runs, oldest first.

    An experiment without runs is its own run.
    """
    complete = [replace(run, template=run.template or template_words(run.params)) for run in runs]
    children: dict[str, list[RecordedRun]] = {}
    for run in reversed(complete):
        if run.parent:
            children.setdefault(run.parent, []).append(run)
    return [(run, children.get(run.handle, [run])) for run in complete if not run.parent]


def template_words(params: Mapping[str, str]) -> str:
    """Short description of the template that recorded params describe; `-` without such params."""
    section: dict[str, Any] = {}
    for key, value in params.items():
        if key.startswith("template."):
            try:
                section[key.removeprefix("template.")] = literal_eval(value)
            except (SyntaxError, ValueError):
                section[key.removeprefix("template.")] = value
    try:
        return TypeAdapter(Template).validate_python(section).label()
    except ValidationError:
        return " ".join(f"{key} {value}" for key, value in section.items())[:60] or "-"
