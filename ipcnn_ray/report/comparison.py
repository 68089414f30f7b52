"""Recorded experiments or runs against each other: what was asked, what came out, from what code and data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ipcnn_ray.report.experiment_record import Experiment, ReportedRun
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.report.ranking_table import HEADS, Table, comparison_json, interval_words, p_words, spread_words
from ipcnn_ray.report.significance import Comparison, compare_family
from ipcnn_ray.spec.objectives import ranked_names

LINEAGE = ("code.", "env.", "host.", "data.", "model.", "ipcnn.device", "ipcnn.precision", "ipcnn.workers")
"""How the names of tags begin that say from what a run was made."""
OURS = ("data.drawn", "model.weights_report")
"""Of these those that another tag says already, or that are too long."""
ABSENT = "-"
MOST = 60
"""Characters of a value in a table; the JSON has all."""
FEW = 3
"""Different numbers of one side that a table shows one by one."""
NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")
WHOLE = "all"
"""Name of the pair where each side is one setting."""


@dataclass(frozen=True)
class Fact:
    """A field or tag that is not the same on all sides."""

    key: str
    values: tuple[str | None, ...]
    """Of each side; several values of its runs together; None where it has none."""


@dataclass(frozen=True)
class Pair:
    """One setting that two sides have, by a measure."""

    setting: str
    """Its name; `all` where both sides are a single setting."""
    side: str
    """The side that is compared with the first."""
    groups: tuple[Group, Group]
    """Of this side and of the first."""
    comparison: Comparison
    """This side less the first."""


@dataclass(frozen=True)
class Differences:
    """Everything in which sides differ."""

    names: tuple[str, ...]
    spec: list[Fact]
    lineage: list[Fact]
    pairs: list[Pair]
    alone: list[list[str]]
    """Of each side the settings that the first has not, or for the first those that no other has."""

    @classmethod
    def of(cls, sides: Sequence[Experiment]) -> Differences:
        """At least two sides; each is an experiment, or one of its runs."""
        groups = [{group.name: group for group in side.ranking.groups} for side in sides]
        spec = facts([{**_params(side.runs), **_search(side)} for side in sides])
        tags = [_merged([_lineage(run) for run in side.runs]) for side in sides]
        shared = [set(one) & set(groups[0]) for one in groups[1:]]
        single = all(len(one) == 1 for one in groups)
        if single:
            alone: list[list[str]] = [[] for _ in sides]
        else:
            alone = [sorted(set(groups[0]) - set().union(*shared))]
            alone += [sorted(set(one) - set(groups[0])) for one in groups[1:]]
        names = _names(sides)
        return cls(names, spec, facts(tags), _pairs(names, groups), alone)

    @property
    def letters(self) -> list[str]:
        """Short names of the sides: A, B, ... in the order given."""
        return [chr(ord("A") + index) if index < 26 else f"side {index + 1}" for index in range(len(self.names))]

    def tables(self) -> list[tuple[str, Table]]:
        """Titles and tables, those without rows left out."""
        found = [
            (
                "Sides",
                Table(
                    ("side", "experiment or run"),
                    [list(pair) for pair in zip(self.letters, self.names, strict=True)],
                    (),
                ),
            ),
            ("Spec", _facts_table("field", self.letters, self.spec)),
            ("Code, data and hardware", _facts_table("tag", self.letters, self.lineage)),
            *[(f"{HEADS.get(measure, measure)}", table) for measure, table in self._measures()],
        ]
        return [(title, table) for title, table in found if table.rows]

    def _measures(self) -> list[tuple[str, Table]]:
        columns = ("setting", "sides", "n", "A", "other", "difference", "95 % CI", "p", "Holm", "verdict")
        letters = dict(zip(self.names, self.letters, strict=True))
        tables = []
        for measure in dict.fromkeys(pair.comparison.measure for pair in self.pairs):
            rows = []
            for pair in self.pairs:
                one = pair.comparison
                if one.measure != measure:
                    continue
                mine, first = (spread_words(measure, group.spreads.get(measure)) for group in pair.groups)
                numbers = [str(one.difference.n), first, mine, spread_words(measure, one.difference, sign=True)]
                rows.append(
                    [
                        pair.setting,
                        f"{letters[pair.side]} - A",
                        *numbers,
                        interval_words(measure, one.interval),
                        p_words(one.p_exact),
                        p_words(one.holm_exact),
                        one.verdict,
                    ]
                )
            tables.append((measure, Table(columns, rows, columns[2:9])))
        return tables

    def notes(self) -> list[str]:
        """What a reader must know."""
        lines = []
        if not self.spec:
            lines.append("The specs are the same.")
        if not self.lineage:
            lines.append("Code, data and hardware are the same.")
        for name, alone in zip(self.letters, self.alone, strict=True):
            if alone:
                shown = ", ".join(alone[:8]) + (f" and {len(alone) - 8} more" if len(alone) > 8 else "")
                lines.append(f"Only {name} has {shown}.")
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
        """For scripts."""
        return {
            "sides": list(self.names),
            "spec": [{"field": one.key, "values": list(one.values)} for one in self.spec],
            "lineage": [{"tag": one.key, "values": list(one.values)} for one in self.lineage],
            "metrics": [
                {"setting": pair.setting, "side": pair.side, "first": self.names[0], **comparison_json(pair.comparison)}
                for pair in self.pairs
            ],
            "only": {name: alone for name, alone in zip(self.names, self.alone, strict=True)},
        }


def facts(sides: Sequence[Mapping[str, str]]) -> list[Fact]:
    """Keys whose values are not the same on all sides."""
    keys = dict.fromkeys(key for side in sides for key in side)
    found = [Fact(key, tuple(side.get(key) for side in sides)) for key in keys]
    return [fact for fact in found if len(set(fact.values)) > 1]


def _params(runs: Sequence[ReportedRun]) -> dict[str, str]:
    return _merged([run.params for run in runs])


def _merged(all_values: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Key -> value; where runs differ, all of their values, each once."""
    keys = dict.fromkeys(key for values in all_values for key in values)
    different = {key: dict.fromkeys(values.get(key, ABSENT) for values in all_values) for key in keys}
    return {key: ", ".join(sorted(values) if len(values) > 1 else values) for key, values in different.items()}


def _search(side: Experiment) -> dict[str, str]:
    """The search section of an experiment; a run has none of its own."""
    if len(side.runs) == 1:
        return {}
    return {key: value for key, value in _flat(side.spec.get("search") or {}, "search")}


def _flat(value: Any, path: str) -> list[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        return [pair for key, inner in value.items() for pair in _flat(inner, f"{path}.{key}")]
    return [(path, str(value))] if value is not None else []


def _lineage(run: ReportedRun) -> dict[str, str]:
    return {key: text for key, text in run.tags.items() if key.startswith(LINEAGE) and key not in OURS and text}


def _names(sides: Sequence[Experiment]) -> tuple[str, ...]:
    """The id of each side: of its experiment, or of its one run."""
    return tuple(side.runs[0].run_id if len(side.runs) == 1 else side.name for side in sides)


def _pairs(names: Sequence[str], groups: Sequence[Mapping[str, Group]]) -> list[Pair]:
    """Settings of equal name; where all sides are one setting, those."""
    single = all(len(one) == 1 for one in groups)
    matched: list[tuple[str, str, Group, Group]] = []
    for name, side in zip(names[1:], groups[1:], strict=True):
        if single:
            ((first,), (mine,)) = (list(groups[0].values()), list(side.values()))
            matched.append((WHOLE, name, mine, first))
        else:
            matched += [(key, name, group, groups[0][key]) for key, group in side.items() if key in groups[0]]
    found = []
    spreads = [group.spreads for side in groups for group in side.values()]
    every = [measure for measure in ranked_names() if any(measure in one for one in spreads)]
    for measure in every:
        # the names make each comparison findable again: `family` leaves out pairs that lack the measure
        numbered = [
            (replace(mine, name=str(index)), replace(first, name=f"first of {index}"))
            for index, (_, _, mine, first) in enumerate(matched)
        ]
        for one in compare_family(numbered, measure):
            setting, side_name, mine, first = matched[int(one.one)]
            told = replace(one, one=f"{side_name} {setting}", other=f"{names[0]} {setting}")
            found.append(Pair(setting, side_name, (mine, first), told))
    return found


def _facts_table(head: str, names: Sequence[str], found: Sequence[Fact]) -> Table:
    rows = [[one.key, *(ABSENT if value is None else _short(value) for value in one.values)] for one in found]
    return Table((head, *names), rows, ())


def _short(value: str) -> str:
    """Many numbers are told by their range: a search tried them."""
    parts = value.split(", ")
    numbers = [float(part) for part in parts if NUMBER.fullmatch(part)]
    if len(numbers) > FEW:
        rest = [part for part in parts if not NUMBER.fullmatch(part)]
        value = ", ".join([*rest, f"{min(numbers):.4g} to {max(numbers):.4g} ({len(numbers)} values)"])
    return value if len(value) <= MOST else f"{value[: MOST - 3]}..."
