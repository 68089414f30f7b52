"""The settings of an experiment in the order of their goal, and what of their differences may be luck, as text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ipcnn_ray.core.statistics import Spread, smallest_p
from ipcnn_ray.report.ranking import Group, rank
from ipcnn_ray.report.significance import LEVEL, Comparison, compare_groups, compared_measures
from ipcnn_ray.spec.objectives import COMBINED, Objectives
from ipcnn_ray.tracking.run_summary import RunSummary, State

COMPARED = ("difference", "95 % CI", "p", "Holm", "t-test", "Holm ", "verdict")
HEADS = {"val_error": "error"}
DIGITS = {COMBINED: 3, "epoch": 0}
"""Behind the point; 4 for all others."""
MOST_AMONG = 10
"""Settings whose comparisons among themselves are shown; those of more are in the JSON alone."""


MOST_NAMED = 12
"""Runs of one cause that are named."""


@dataclass(frozen=True)
class Table:
    """Cells as text."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    numbers: tuple[str, ...]
    """Columns that are aligned to the right."""

    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        marks = ["---:" if column in self.numbers else "---" for column in self.columns]
        return ["| " + " | ".join(cells) + " |" for cells in (self.columns, marks, *self.rows)]


@dataclass(frozen=True)
class Ranking:
    """Everything that is said of the runs of an experiment when they have ended."""

    objectives: Objectives
    groups: list[Group]
    """Best first."""
    against: list[Comparison]
    """Each setting against the control."""
    among: list[Comparison]
    """The settings among themselves."""

    @classmethod
    def of(cls, runs: Sequence[RunSummary], objectives: Objectives) -> Ranking:
        groups = rank(runs, objectives)
        return cls(objectives, groups, *compare_groups(groups, objectives))

    @property
    def repeated(self) -> bool:
        """Whether any setting was trained with several seeds."""
        return any(len(group.runs) > 1 for group in self.groups)

    def table(self) -> Table:
        """One row for each setting: its goals, instability, error; without repeats, which are compared in tables of
        their own, also how far it is from the control."""
        goals, control = self.objectives.goals, self.objectives.control
        shown = list(dict.fromkeys([*goals, *(one.measure for one in self.objectives.constraints)]))
        shown += [measure for measure in ("instability", "val_error") if measure not in shown]
        heads = [HEADS.get(measure, measure) for measure in shown]
        if control is not None and len(goals) == 1 and not self.repeated:
            heads.insert(1, "vs control")
        versus = {one.one: one.difference.mean for one in self.against if one.measure == goals[0]}
        numbers = ("n", *heads) if self.repeated else (*heads, "epochs")
        rows = []
        for group in self.groups:
            cells = [spread_words(measure, group.spreads.get(measure)) for measure in shown]
            if "vs control" in heads:
                cells.insert(1, number(goals[0], versus.get(group.name), sign=True))
            if self.repeated:
                cells.insert(0, str(len(group.runs)))
            else:
                cells.append(number("epoch", group.means.get("epoch")))
            template = group.template + (" (control)" if group.name == control else "")
            rows.append([group.name, template, *cells, state(self, group)])
        return Table(("run", "template", *numbers, "state"), rows, numbers)

    @property
    def _few(self) -> bool:
        return sum(len(group.runs) > 1 for group in self.groups if group.name != self.objectives.control) <= MOST_AMONG

    def luck(self) -> list[Table]:
        """Where seeds are repeated, a table for each measure: each setting less the control, then the others' pairs."""
        told = [one for one in self.against if one.p_exact is not None]
        told += self.among if self._few else []
        tables = []
        for measure in dict.fromkeys(one.measure for one in told):
            rows = [
                [
                    f"{one.one} - {one.other}",
                    spread_words(measure, one.difference, sign=True),
                    interval_words(measure, one.interval),
                    *map(p_words, (one.p_exact, one.holm_exact, one.p_t, one.holm_t)),
                    one.verdict,
                ]
                for one in told
                if one.measure == measure
            ]
            tables.append(Table((HEADS.get(measure, measure), *COMPARED), rows, COMPARED[:6]))
        return tables

    def headline(self) -> str:
        """Which setting is the best, beside which other, and whether to believe it; empty where none is, and in a
        Pareto search, whose front is among the notes."""
        goal, ranked = self.objectives.goals[0], [group for group in self.groups if group.order == 0]
        best = next((group for group in self.groups if group.wins), None)
        if best is None or len(self.objectives.goals) > 1:
            return ""
        control = next((group for group in self.groups if group.name == self.objectives.control), None)
        rival = control if best is not control else next((group for group in ranked if group is not best), None)
        text = f"Best by {goal}: {self._called(best)}, {spread_words(goal, best.spreads.get(goal))}"
        if rival is None or goal not in rival.spreads:
            return f"{text}; nothing else was trained to its end to compare it with."
        text += f"; {self._called(rival)} has {spread_words(goal, rival.spreads[goal])}."
        pair = {best.name, rival.name}
        found = next((x for x in (*self.against, *self.among) if x.measure == goal and {x.one, x.other} == pair), None)
        return f"{text} {_belief(found)}"

    def _called(self, group: Group) -> str:
        """`l1 (L1 β2)`, `the control plain`"""
        if group.name == self.objectives.control:
            return f"the control {group.name}"
        template = group.template
        return group.name if template == group.name else f"{group.name} ({template})"

    def notes(self) -> list[str]:
        """What a reader must know to read the tables: units, what was tested and what the test cannot say, causes."""
        lines = []
        if COMBINED in self.objectives.goals:
            lines.append("combined: 1 is the control, lower is better. instability: share of the image diagonal.")
        if len(self.objectives.goals) > 1:
            on_front = ", ".join(group.name for group in self.groups if group.wins) or "none"
            meaning = "no run is better in one and as good in the rest"
            lines.append(f"Pareto front over {', '.join(self.objectives.goals)} ({meaning}): {on_front}.")
        if self.repeated:
            lines.append("±: standard deviation over seeds (n - 1). Differences are paired by seed.")
        tested = [one for one in [*self.against, *self.among] if one.p_exact is not None]
        if tested:
            lines.append(
                "p: exact sign-flip test, two-sided. Holm: corrected for the comparisons of a measure, those with the "
                f"control and those of the others by themselves. verdict: by this p at {LEVEL}. t-test: its p, and "
                "corrected, and 95 % CI: the confidence interval of the mean difference hold for differences that are "
                "normally distributed."
            )
            for seeds in sorted({one.difference.n for one in tested}):
                lines.append(_limit(seeds, max(one.family for one in tested if one.difference.n == seeds)))
        if not self._few:
            lines.append(f"The settings among themselves: {len(self.among)} comparisons, which --json has.")
        lines += self.causes()
        for group in self.groups:
            if group.violated:
                lines.append(f"{group.name} is beyond a bound: {', '.join(group.violated)}")
        if not any(group.wins for group in self.groups) and any(group.violated for group in self.groups):
            lines.append("No run keeps every bound, so none is the best.")
        return lines

    def causes(self) -> list[str]:
        """Why runs did not end, as sentences."""
        return causes([run for group in self.groups for run in group.runs])

    def markdown(self) -> str:
        """The ranking as a Markdown document."""
        headline = self.headline()
        lines = [*([f"**{headline}**", ""] if headline else []), *self.table().markdown()]
        for table in self.luck():
            lines += ["", *table.markdown()]
        for line in self.notes():
            lines += ["", line]
        return "\n".join(lines) + "\n"


def causes(runs: Sequence[RunSummary]) -> list[str]:
    """A line for each cause: `a, b pruned: early stopping at epoch 4 of 12`."""
    by_cause: dict[tuple[State, str], list[str]] = {}
    for run in runs:
        if run.cause:
            by_cause.setdefault((run.state, run.cause), []).append(run.label)
    lines = []
    for (state_, cause), labels in by_cause.items():
        more = f" and {len(labels) - MOST_NAMED} more" if len(labels) > MOST_NAMED else ""
        lines.append(f"{', '.join(labels[:MOST_NAMED])}{more} {state_}: {cause}")
    return lines


def _belief(found: Comparison | None) -> str:
    """Whether the difference between the best and another is more than luck, in a sentence."""
    if found is None or found.holm_exact is None:
        return "One seed of each: the difference may be luck."
    tested = f"p {p_words(found.holm_exact)} after Holm's correction, {found.difference.n} seeds"
    return {
        "too few seeds": f"So few seeds cannot tell the difference from luck ({tested}).",
        "may be luck": f"The difference may be luck ({tested}).",
    }.get(found.verdict, f"The difference is more than luck ({tested}).")


def _limit(seeds: int, family: int) -> str:
    """What so many seeds can tell, whatever the runs reach."""
    least, needed = smallest_p(seeds), 1
    while family * smallest_p(needed) >= LEVEL:
        needed += 1
    corrected = f", {p_words(min(1.0, family * least))} after the correction for {family}" if family > 1 else ""
    text = f"With {seeds} seeds p is at least {p_words(least)} (2/2^{seeds}){corrected}"
    return f"{text}: these seeds cannot tell a difference from luck, {needed} could." if needed > seeds else f"{text}."


def state(ranking: Ranking, group: Group) -> str:
    """A setting's state, and what became of it in the ranking."""
    marks = []
    if group.violated:
        marks.append("beyond a bound")
    if group.wins and len(ranking.objectives.goals) > 1:
        marks.append("front")
    return ", ".join([group.state, *marks])


def number(measure: str, value: float | None, *, sign: bool = False) -> str:
    """A value in its unit: errors per cent, all else as it is."""
    if value is None or math.isnan(value):
        return "-"
    plus = "+" if sign else ""
    if measure == "val_error":
        return f"{value * 100:{plus}.1f} %"
    return f"{value:{plus}.{DIGITS.get(measure, 4)}f}"


def spread_words(measure: str, found: Spread | None, *, sign: bool = False) -> str:
    """Mean, and standard deviation where there are several values."""
    if found is None:
        return "-"
    text = number(measure, found.mean, sign=sign)
    if found.sd is None:
        return text
    sd = number(measure, found.sd)
    return f"{text.removesuffix(' %')} ± {sd}"


def interval_words(measure: str, interval: tuple[float, float] | None) -> str:
    """Ends of a confidence interval, in the unit of `number`."""
    if interval is None:
        return "-"
    low, high = (number(measure, end, sign=True) for end in interval)
    return f"{low.removesuffix(' %')} to {high}"


def p_words(p: float | None) -> str:
    if p is None:
        return "-"
    return "< 0.0001" if p < 1e-4 else f"{p:.4f}".rstrip("0").rstrip(".") if p < 1 else "1"


def as_json(ranking: Ranking) -> dict[str, object]:
    """Settings and comparisons, for scripts; what is not finite is null."""
    return {
        "goals": list(ranking.objectives.goals),
        "winners": [group.name for group in ranking.groups if group.wins],
        "groups": [
            {
                "group": group.name,
                "template": group.template,
                "runs": [run.label for run in group.runs],
                "seeds": [run.seed for run in group.runs],
                "state": group.state,
                "violated": list(group.violated),
                "wins": group.wins,
                "metrics": {key: found._asdict() for key, found in group.spreads.items()},
            }
            for group in ranking.groups
        ],
        "against_control": [comparison_json(one) for one in ranking.against],
        "among_others": [comparison_json(one) for one in ranking.among],
        "measures": compared_measures(ranking.groups, ranking.objectives),
    }


def comparison_json(one: Comparison) -> dict[str, object]:
    """One comparison, with the least p that its test could have given."""
    return {
        "group": one.one,
        "other": one.other,
        "measure": one.measure,
        "difference": one.difference._asdict(),
        "t": one.t if one.t is None or math.isfinite(one.t) else None,
        "p_t": one.p_t,
        "ci_low": one.interval[0] if one.interval else None,
        "ci_high": one.interval[1] if one.interval else None,
        "p_exact": one.p_exact,
        "holm_t": one.holm_t,
        "holm_exact": one.holm_exact,
        "smallest_holm_exact": one.smallest if one.family else None,
        "verdict": one.verdict,
    }
