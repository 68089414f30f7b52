"""`ipcnn compare`: differences of recorded experiments or runs in spec, lineage and metrics."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipcnn_ray.report.baselines import BASELINE_MARK, BaselineValue, instability_baselines
from ipcnn_ray.report.experiment_record import Experiment, ReportedRun
from ipcnn_ray.report.ranking import Comparison, Group, compare_family
from ipcnn_ray.report.ranking_table import HEADS, Table, comparison_json, interval_words, number, p_words, spread_words
from ipcnn_ray.spec.extensions import BASELINES
from ipcnn_ray.spec.search import ranked_names
from ipcnn_ray.utils.text import shortened_list

LINEAGE = ("code.", "env.", "host.", "data.", "model.", "ipcnn.device", "ipcnn.precision", "ipcnn.workers")
"""Prefixes of the tags that describe code, data, weights and hardware."""
IGNORED_TAGS = ("data.drawn", "model.weights_report")
"""Lineage tags that repeat another tag or are too long for a table."""
ABSENT = "-"
ONLY_IN_JSON = ("landmark_tracking_few", "following_share_few", "landmarks_followed")
"""Metrics that repeat others so nearly that they have no table."""
MAX_CHARACTERS = 60
"""Length of a value in a table; the JSON has all of it."""
MAX_NUMBERS = 3
"""Numbers of one side that a table lists; more are shown as a range."""
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
WHOLE = "all"
"""Name of the pair if each side is a single setting."""


Facts = Mapping[str, Sequence[str | None]]
"""Field or tag that differs between sides -> its value on each side, those of its runs joined; None without any."""


@dataclass(frozen=True)
class Pair:
    """One metric of a setting that two sides share."""

    setting: str
    """Its name; `all` if both sides are a single setting."""
    side: str
    """Name of the side that is compared with the first."""
    groups: tuple[Group, Group]
    """The setting on this side and on the first."""
    comparison: Comparison
    """This side minus the first."""


@dataclass(frozen=True)
class Differences:
    """All differences between two or more sides; each is an experiment or one of its runs."""

    names: tuple[str, ...]
    spec: Facts
    lineage: Facts
    pairs: list[Pair]
    unshared: list[list[str]]
    """One per side: its settings that the first side lacks; of the first those that every other lacks."""
    baselines: list[list[BaselineValue]]
    """One per side: the baselines of its location instability."""

    @classmethod
    def of(cls, sides: Sequence[Experiment]) -> Differences:
        by_name = [{group.name: group for group in side.ranking.groups} for side in sides]
        params = [{**_merge([run.params for run in side.runs]), **_search(side)} for side in sides]
        tags = [_merge([_lineage(run) for run in side.runs]) for side in sides]
        first, *others = map(set, by_name)
        unshared: list[list[str]] = [[] for _ in sides]
        if any(len(groups) > 1 for groups in by_name):
            unshared = [sorted(first - set().union(*others)), *(sorted(groups - first) for groups in others)]
        names = tuple(side.runs[0].run_id if len(side.runs) == 1 else side.name for side in sides)
        baselines = [instability_baselines(side.ranking.groups) for side in sides]
        return cls(names, differing(params), differing(tags), _pairs(names, by_name), unshared, baselines)

    @property
    def letters(self) -> list[str]:
        """Short names of the sides: A, B, ..."""
        return [chr(ord("A") + index) if index < 26 else f"side {index + 1}" for index in range(len(self.names))]

    def tables(self) -> list[tuple[str, Table]]:
        """Tables with their titles; empty ones are left out."""
        sides = [list(side) for side in zip(self.letters, self.names, strict=True)]
        tables = [
            ("Sides", Table(("side", "experiment or run"), sides, ())),
            ("Spec", _facts_table("field", self.letters, self.spec)),
            ("Code, data and hardware", _facts_table("tag", self.letters, self.lineage)),
            *self._metric_tables(),
        ]
        return [(title, table) for title, table in tables if table.rows]

    def _metric_tables(self) -> list[tuple[str, Table]]:
        columns = ("setting", "sides", "n", "A", "other", "difference", "95 % CI", "p", "Holm", "verdict")
        letters = dict(zip(self.names, self.letters, strict=True))
        tables = []
        for measure in dict.fromkeys(pair.comparison.measure for pair in self.pairs):
            if measure in ONLY_IN_JSON:
                continue
            rows = []
            for pair in [pair for pair in self.pairs if pair.comparison.measure == measure]:
                comparison = pair.comparison
                mine, first = (spread_words(measure, group.spreads.get(measure)) for group in pair.groups)
                difference = spread_words(measure, comparison.difference, sign=True)
                numbers = [str(comparison.difference.n), first, mine, difference]
                interval = interval_words(measure, comparison.interval)
                tests = [interval, p_words(comparison.p_exact), p_words(comparison.holm_exact)]
                rows.append([pair.setting, f"{letters[pair.side]} - A", *numbers, *tests, comparison.verdict])
            rows += self._baseline_rows(measure, letters)
            tables.append((HEADS.get(measure, measure), Table(columns, rows, columns[2:9])))
        return tables

    def _baseline_rows(self, measure: str, letters: Mapping[str, str]) -> list[list[str]]:
        """A row for each baseline of a metric; several where the settings differ in it."""
        rows = []
        for name, (of, words) in BASELINES.items():
            settings: dict[tuple[str, str, str, str], list[str]] = {}
            for pair in [pair for pair in self.pairs if pair.comparison.measure == measure == of]:
                mine, first = (group.means.get(name) for group in pair.groups)
                if mine is not None or first is not None:
                    cells = (f"{letters[pair.side]} - A", "", number(measure, first), number(measure, mine))
                    settings.setdefault(cells, []).append(pair.setting)
            for cells, names in settings.items():
                which = f" ({shortened_list(names, 3)})" if len(settings) > 1 and names != [WHOLE] else ""
                rows.append([f"{BASELINE_MARK} {words}{which}", *cells, "", "", "", "", "baseline"])
        return rows

    def notes(self) -> list[str]:
        """Sentences that explain the tables, and what is equal."""
        lines = []
        if not self.spec:
            lines.append("The specs are the same.")
        if not self.lineage:
            lines.append("Code, data and hardware are the same.")
        for letter, settings in zip(self.letters, self.unshared, strict=True):
            if settings:
                lines.append(f"Only {letter} has {shortened_list(settings, 8)}.")
        if not self.pairs:
            lines.append("No setting of A was measured on another side, so no numbers are compared.")
        else:
            lines.append(
                "difference: the other side less A, over the n seeds that both have; ±: standard deviation over seeds; "
                "95 % CI: confidence interval of the difference, if it is normally distributed. p: exact sign-flip "
                "test of the pairs, two-sided; Holm: corrected over the rows of a table."
            )
            if all(pair.comparison.p_exact is None for pair in self.pairs):
                lines.append("With one seed each nothing says whether a difference is more than luck.")
        return lines

    def as_json(self) -> dict[str, Any]:
        """The same for scripts, with all values in full."""
        return {
            "sides": list(self.names),
            "spec": [{"field": key, "values": list(values)} for key, values in self.spec.items()],
            "lineage": [{"tag": key, "values": list(values)} for key, values in self.lineage.items()],
            "metrics": [
                {"setting": pair.setting, "side": pair.side, "first": self.names[0], **comparison_json(pair.comparison)}
                for pair in self.pairs
            ],
            "baselines": [
                {"side": name, **baseline.as_json()}
                for name, side in zip(self.names, self.baselines, strict=True)
                for baseline in side
            ],
            "only": dict(zip(self.names, self.unshared, strict=True)),
        }


def differing(sides: Sequence[Mapping[str, str]]) -> Facts:
    """Keys whose values differ between sides."""
    facts = {key: [side.get(key) for side in sides] for side in sides for key in side}
    return {key: values for key, values in facts.items() if len(set(values)) > 1}


def _merge(all_values: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Key -> value; if runs differ, their distinct values, joined."""
    keys = dict.fromkeys(key for values in all_values for key in values)
    different = {key: dict.fromkeys(values.get(key, ABSENT) for values in all_values) for key in keys}
    return {key: ", ".join(sorted(values) if len(values) > 1 else values) for key, values in different.items()}


def _search(side: Experiment) -> dict[str, str]:
    """Fields of the search section by dotted path; empty for a single run."""
    if len(side.runs) == 1:
        return {}
    return dict(_flat(side.search, "search"))


def _flat(value: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}")]
    return [(path, str(value))] if value is not None else []


def _lineage(run: ReportedRun) -> dict[str, str]:
    return {key: text for key, text in run.tags.items() if key.startswith(LINEAGE) and key not in IGNORED_TAGS and text}


def _pairs(names: Sequence[str], groups: Sequence[Mapping[str, Group]]) -> list[Pair]:
    """Comparisons with the first side of settings with equal names, or of the only setting of each side."""
    single = all(len(side) == 1 for side in groups)
    matched: list[tuple[str, str, Group, Group]] = []
    for name, side in zip(names[1:], groups[1:], strict=True):
        if single:
            ((first,), (mine,)) = (list(groups[0].values()), list(side.values()))
            matched.append((WHOLE, name, mine, first))
        else:
            matched += [(key, name, group, groups[0][key]) for key, group in side.items() if key in groups[0]]
    pairs = []
    spreads = [group.spreads for side in groups for group in side.values()]
    for measure in (
        name for name in ranked_names() if name not in BASELINES and any(name in metrics for metrics in spreads)
    ):
        comparisons = compare_family([(mine, first) for _, _, mine, first in matched], measure)
        for (setting, side_name, mine, first), comparison in zip(matched, comparisons, strict=True):
            if comparison is not None:
                comparison = replace(comparison, one=f"{side_name} {setting}", other=f"{names[0]} {setting}")
                pairs.append(Pair(setting, side_name, (mine, first), comparison))
    return pairs


def _facts_table(head: str, names: Sequence[str], facts: Facts) -> Table:
    rows = [[key, *(ABSENT if value is None else _shorten(value) for value in facts[key])] for key in facts]
    return Table((head, *names), rows, ())


def _shorten(value: str) -> str:
    """The value with many numbers as their range, cut to MAX_CHARACTERS."""
    parts = value.split(", ")
    numbers = [float(part) for part in parts if NUMBER.fullmatch(part)]
    if len(numbers) > MAX_NUMBERS:
        rest = [part for part in parts if not NUMBER.fullmatch(part)]
        value = ", ".join([*rest, f"{min(numbers):.4g} to {max(numbers):.4g} ({len(numbers)} values)"])
    return value if len(value) <= MAX_CHARACTERS else f"{value[: MAX_CHARACTERS - 3]}..."
