"""ReportedRun and Experiment: recorded experiments as reports use them, and reading them from the tracker."""

from __future__ import annotations

from ast import literal_eval
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ipcnn_ray.errors import IpcnnError, SpecError
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.report.ranking_table import Ranking
from ipcnn_ray.spec.loader import Source, read_yaml
from ipcnn_ray.spec.runs import SINGLE
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.spec.template import Template
from ipcnn_ray.tracking.run_summary import ORIGIN, translate_earlier_record
from ipcnn_ray.tracking.tracker import SPEC_ARTIFACT, RecordedRun, Tracker
from ipcnn_ray.utils.text import did_you_mean, parse_number

KINDS = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}
"""Metric of the compute time of a run -> its title."""
PLAIN = "plain"
"""Kind of the network without templates."""
STYLED_CURVES = 6
"""Settings of each kind of template whose error curve has a colour of its own; the others are thin and grey."""
MOST_FOR_IMPORTANCE = 100
"""Importance is computed from at most this many trials, an even sample of them."""
MOST_GREY_CURVES = 200
"""Grey curves of the figure; an even sample, best to worst, if there are more."""


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

    @property
    def title(self) -> str:
        """Label and template."""
        return self.label if self.template in ("", self.label) else f"{self.label}: {self.template}"

    @property
    def template_kind(self) -> str:
        """The shape of the template, as recorded; `plain` without one.

        The template of the authors' code, `released`, counts as the gradient template that it is.
        """
        shape = self.params.get("template.shape", "not recorded")
        return {"none": PLAIN, "released": "gradient"}.get(shape, shape)

    def number(self, param: str) -> float | None:
        """A recorded parameter as a number; None if it is not one."""
        return parse_number(self.params.get(param))


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

    @cached_property
    def evaluated(self) -> list[Group]:
        """Settings with a validation error, in the order of the ranking."""
        return [
            group
            for group in self.ranking.groups
            if any("val_error" in run.metrics for run in self.by_group[group.name])
        ]

    def curves_to_draw(self) -> list[Group]:
        """Settings whose curve is drawn, so that only their errors are read from the record.

        These are the named ones, the best of every panel, and the others, or an even sample of them.
        """
        drawn = [group for group in self.evaluated if group.origin == "named"]
        styled: Counter[str] = Counter()
        rest: list[Group] = []
        for group in self.evaluated:
            if group not in drawn:
                kind = self.by_group[group.name][0].template_kind
                styled[kind] += 1
                (drawn if styled[kind] <= STYLED_CURVES else rest).append(group)
        step = max(1.0, len(rest) / MOST_GREY_CURVES)
        return [*drawn, *(rest[int(i * step)] for i in range(int(len(rest) / step)))]

    @property
    def trials(self) -> list[Group]:
        """The sampled settings, in the order in which they were opened."""
        order = list(self.by_group)
        sampled = [group for group in self.ranking.groups if group.origin == "sampled"]
        return sorted(sampled, key=lambda group: order.index(group.name))

    @property
    def search(self) -> Mapping[str, Any]:
        """Search section of the spec; empty for a single run."""
        return self.spec.get("search") or {}

    @property
    def searched(self) -> list[str]:
        """Dotted paths of the fields that a grid or a space varies."""
        return list(self.search.get("grid") or self.search.get("space") or {})

    def logarithmic(self, path: str) -> bool:
        """Whether a searched field is sampled on a logarithmic scale."""
        distributions = self.search.get("space") or {}
        return bool((distributions.get(path) or {}).get("log_uniform"))


def read_experiments(
    tracker: Tracker,
    names: Sequence[str],
    *,
    curves: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Experiment]:
    """Read recorded experiments by name or id, each once, or with the one run that has the id, in the order given.

    curves: also read the histories that a report draws. progress: called with (runs read, all runs) per experiment.
    Raises IpcnnError if nothing is recorded under a name.
    """
    experiments: dict[tuple[str, str], Experiment] = {}
    for name in names:
        for parent, runs in find_runs(tracker, name):
            experiment = _read_experiment(tracker, parent, runs)
            if curves:
                experiment = _with_histories(tracker, experiment, progress)
            single = len(runs) == 1 and runs[0].run_id == name
            experiments.setdefault((parent.handle, name if single else ""), experiment)
    return list(experiments.values())


def _read_experiment(tracker: Tracker, parent: RecordedRun, runs: Sequence[RecordedRun]) -> Experiment:
    """An experiment without histories. Its spec is not validated: another version may have written it."""
    text = tracker.read(parent.handle, SPEC_ARTIFACT) or ""
    try:
        raw = read_yaml(text, Source(SPEC_ARTIFACT)) if text else None
    except SpecError:
        raw = None
    spec = raw if isinstance(raw, dict) else {}
    reported = tuple(_reported(run, spec) for run in runs)
    return Experiment(parent, reported, Objectives.from_tags(parent.tags), spec, text)


def _reported(run: RecordedRun, spec: Mapping[str, Any]) -> ReportedRun:
    """The origin of a run that an earlier version recorded follows from the spec."""
    origin = run.origin
    if ORIGIN not in run.tags and spec:
        named = {entry["name"] for entry in (spec.get("search") or {}).get("runs") or [{"name": SINGLE}]}
        origin = translate_earlier_record(run.run_id, run.state, run.cause, named).origin
    return ReportedRun(**{**vars(run), "origin": origin})


def _with_histories(tracker: Tracker, experiment: Experiment, progress: Callable[[int, int], None]) -> Experiment:
    drawn = {run.run_id for group in experiment.curves_to_draw() for run in experiment.by_group[group.name]}
    runs = []
    for run in experiment.runs:
        errors = tracker.history(run.handle, "val_error") if run.run_id in drawn else ()
        unknown = "seconds" in run.metrics and not any(kind in run.metrics for kind in KINDS)
        seconds = tracker.history(run.handle, "seconds") if unknown else ()
        runs.append(replace(run, errors=tuple(errors), seconds=tuple(seconds)))
        progress(len(runs), len(experiment.runs))
    return replace(experiment, runs=tuple(runs))


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
            *above, name = key.removeprefix("template.").split(".")
            owner = section
            for part in above:
                owner = owner.setdefault(part, {})
            try:
                owner[name] = literal_eval(value)
            except (SyntaxError, ValueError):
                owner[name] = value
    try:
        return TypeAdapter(Template).validate_python(section).label()
    except ValidationError:
        return " ".join(f"{key} {value}" for key, value in section.items())[:60] or "-"
