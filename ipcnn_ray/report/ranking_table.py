"""Ranking: the settings of an experiment and their comparisons as tables, sentences, Markdown and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ipcnn_ray.core.statistics import SIGNIFICANCE_LEVEL, Spread, smallest_p
from ipcnn_ray.report.baselines import BASELINE_MARK, instability_baselines
from ipcnn_ray.report.ranking import Comparison, Group, compare_groups, compared_measures, rank, without_landmarks
from ipcnn_ray.spec.search import COMBINED, Objectives
from ipcnn_ray.tracking.run_summary import RunSummary, State
from ipcnn_ray.utils.text import shortened_list

SIGNIFICANCE_COLUMNS = ("difference", "95 % CI", "p", "Holm", "t-test", "Holm ", "verdict")
HEADS = {"val_error": "error"}
DIGITS = {
    **{COMBINED: 3, "epoch": 0, "landmark_coverage": 1, "landmarks_followed": 1, "following": 1},
    **{"landmark_tracking": 2, "landmark_tracking_few": 2, "landmark_tracking_shuffled": 2},
    **{"peak_distance": 2, "peak_spread": 2, "keypoint_error": 3, "keypoint_error_mean": 3},
}
"""Decimal places of a metric, and of a number of filters; 4 for all others."""
IN_PER_CENT = {"val_error": 1, "following_share": 0, "following_share_few": 0, "following_share_shuffled": 0}
"""Shares that are shown in per cent -> decimal places."""
MOST_AMONG = 10
"""Maximum number of repeated settings whose comparisons among themselves are shown; the JSON has all."""
MOST_NAMED = 12
"""Maximum number of runs that are named with a cause."""


@dataclass(frozen=True)
class Table:
    """A table of text cells."""

    columns: tuple[str, ...]
    rows: list[list[str]]
    numbers: tuple[str, ...]
    """Columns that are right-aligned."""

    def markdown(self) -> list[str]:
        """Lines of a Markdown table."""
        marks = ["---:" if column in self.numbers else "---" for column in self.columns]
        return ["| " + " | ".join(cells) + " |" for cells in (self.columns, marks, *self.rows)]


@dataclass(frozen=True)
class Ranking:
    """The ranked settings of an experiment with their comparisons."""

    objectives: Objectives
    groups: list[Group]
    """Best first."""
    against: list[Comparison]
    """Each setting with the control."""
    among: list[Comparison]
    """The other repeated settings with each other."""

    @classmethod
    def of(cls, runs: Sequence[RunSummary], objectives: Objectives) -> Ranking:
        groups = rank(runs, objectives)
        return cls(objectives, groups, *compare_groups(groups, objectives))

    @property
    def repeated(self) -> bool:
        """Whether any setting was trained with several seeds."""
        return any(len(group.runs) > 1 for group in self.groups)

    def table(self) -> Table:
        """One row per setting: goals, constrained metrics, instability (unless the data have no landmarks), error and
        state; below them the baselines of instability.

        Without repeats it also has the difference from the control; with repeats see `luck`.
        """
        goals, control = self.objectives.goals, self.objectives.control
        shown = list(dict.fromkeys([*goals, *(constraint.measure for constraint in self.objectives.constraints)]))
        every_run = ("val_error",) if without_landmarks(self.groups) else ("instability", "val_error")
        shown += [measure for measure in every_run if measure not in shown]
        heads = [HEADS.get(measure, measure) for measure in shown]
        if control is not None and len(goals) == 1 and not self.repeated:
            heads.insert(1, "vs control")
        versus = {c.one: c.difference.mean for c in self.against if c.measure == goals[0]}
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
            marks = ["beyond a bound"] * bool(group.violated) + ["front"] * (group.wins and len(goals) > 1)
            rows.append([group.name, template, *cells, ", ".join([group.state, *marks])])
        columns = ("run", "template", *numbers, "state")
        for baseline in instability_baselines(self.groups):
            value = number(baseline.measure, baseline.value)
            cells = [value if column == baseline.measure else "" for column in columns[2:]]
            rows.append([baseline.row_name, "baseline", *cells])
        return Table(columns, rows, numbers)

    @property
    def _few(self) -> bool:
        return sum(len(group.runs) > 1 for group in self.groups if group.name != self.objectives.control) <= MOST_AMONG

    def luck(self) -> list[Table]:
        """One table of significance tests per metric: each setting minus the control, then the pairs of the others.

        Empty without repeats.
        """
        shown = [comparison for comparison in self.against if comparison.p_exact is not None]
        shown += self.among if self._few else []
        tables = []
        for measure in dict.fromkeys(comparison.measure for comparison in shown):
            rows = []
            for comparison in [c for c in shown if c.measure == measure]:
                difference = spread_words(measure, comparison.difference, sign=True)
                interval = interval_words(measure, comparison.interval)
                tests = map(p_words, (comparison.p_exact, comparison.holm_exact, comparison.p_t, comparison.holm_t))
                sides = f"{comparison.one} - {comparison.other}"
                rows.append([sides, difference, interval, *tests, comparison.verdict])
            tables.append(Table((HEADS.get(measure, measure), *SIGNIFICANCE_COLUMNS), rows, SIGNIFICANCE_COLUMNS[:6]))
        return tables

    def headline(self) -> str:
        """One sentence: the best setting, its closest rival, and whether the difference is significant.

        Empty if no setting is ranked, and in a Pareto search, whose front is in the notes.
        """
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
        comparisons = (c for c in (*self.against, *self.among) if c.measure == goal)
        return f"{text} {_significance(next((c for c in comparisons if {c.one, c.other} == pair), None))}"

    def _called(self, group: Group) -> str:
        """`l1 (L1 β2)`, `the control plain`"""
        if group.name == self.objectives.control:
            return f"the control {group.name}"
        template = group.template
        return group.name if template == group.name else f"{group.name} ({template})"

    def notes(self) -> list[str]:
        """Sentences that explain the tables: units, tests and their limits, causes, violated constraints."""
        lines = []
        if COMBINED in self.objectives.goals:
            lines.append("combined: 1 is the control, lower is better.")
            if not without_landmarks(self.groups):
                lines[-1] += " instability: share of the image diagonal."
        if len(self.objectives.goals) > 1:
            on_front = ", ".join(group.name for group in self.groups if group.wins) or "none"
            meaning = "no run is better in one and as good in the rest"
            lines.append(f"Pareto front over {', '.join(self.objectives.goals)} ({meaning}): {on_front}.")
        if instability_baselines(self.groups):
            lines.append(
                f"{BASELINE_MARK} baselines of instability: a peak that never moves, or at a random cell of each map, "
                "on the images and the grid of the measured layer."
            )
        if self.repeated:
            lines.append("±: standard deviation over seeds (n - 1). Differences are paired by seed.")
        tested = [c for c in (*self.against, *self.among) if c.p_exact is not None]
        if tested:
            lines.append(
                "p: exact sign-flip test, two-sided. Holm: corrected for the comparisons of a measure, those with the "
                f"control and those of the others by themselves. verdict: by this p at {SIGNIFICANCE_LEVEL}. The p of "
                "the t-test, its correction, and the 95 % CI (confidence interval of the mean difference) hold for "
                "differences that are normally distributed."
            )
            for seeds in sorted({c.difference.n for c in tested}):
                lines.append(_limit(seeds, max(c.family for c in tested if c.difference.n == seeds)))
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
        """One sentence per cause of runs that failed, were stopped or were pruned."""
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
        lines.append(f"{shortened_list(labels, MOST_NAMED)} {state_}: {cause}")
    return lines


def _significance(comparison: Comparison | None) -> str:
    """Whether a difference is significant, in a sentence."""
    if comparison is None or comparison.holm_exact is None:
        return "One seed of each: the difference may be luck."
    tested = f"p {p_words(comparison.holm_exact)} after Holm's correction, {comparison.difference.n} seeds"
    return {
        "too few seeds": f"So few seeds cannot tell the difference from luck ({tested}).",
        "may be luck": f"The difference may be luck ({tested}).",
    }.get(comparison.verdict, f"The difference is more than luck ({tested}).")


def _limit(seeds: int, family: int) -> str:
    """The smallest p that is possible with this number of seeds and comparisons, and the seeds that would suffice."""
    least, needed = smallest_p(seeds), 1
    while family * smallest_p(needed) >= SIGNIFICANCE_LEVEL:
        needed += 1
    corrected = f", {p_words(min(1.0, family * least))} after the correction for {family}" if family > 1 else ""
    text = f"With {seeds} seeds p is at least {p_words(least)} (2/2^{seeds}){corrected}"
    return f"{text}: these seeds cannot tell a difference from luck, {needed} could." if needed > seeds else f"{text}."


def number(measure: str, value: float | None, *, sign: bool = False) -> str:
    """A metric as text, in per cent where IN_PER_CENT has it; `-` for None and NaN."""
    if value is None or math.isnan(value):
        return "-"
    plus = "+" if sign else ""
    if measure in IN_PER_CENT:
        return f"{value * 100:{plus}.{IN_PER_CENT[measure]}f} %"
    return f"{value:{plus}.{DIGITS.get(measure, 4)}f}"


def spread_words(measure: str, spread: Spread | None, *, sign: bool = False) -> str:
    """Mean and, of several values, standard deviation."""
    if spread is None:
        return "-"
    mean = number(measure, spread.mean, sign=sign)
    return mean if spread.sd is None else f"{mean.removesuffix(' %')} ± {number(measure, spread.sd)}"


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


def as_json(ranking: Ranking) -> dict[str, Any]:
    """Settings and comparisons for scripts; numbers that are not finite are None."""
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
                "metrics": {key: spread._asdict() for key, spread in group.spreads.items()},
            }
            for group in ranking.groups
        ],
        "against_control": [comparison_json(comparison) for comparison in ranking.against],
        "among_others": [comparison_json(comparison) for comparison in ranking.among],
        "measures": compared_measures(ranking.groups, ranking.objectives),
        "baselines": [baseline.as_json() for baseline in instability_baselines(ranking.groups)],
    }


def comparison_json(comparison: Comparison) -> dict[str, object]:
    """One comparison, with the smallest p that its test can give."""
    return {
        "group": comparison.one,
        "other": comparison.other,
        "measure": comparison.measure,
        "difference": comparison.difference._asdict(),
        "t": comparison.t if comparison.t is None or math.isfinite(comparison.t) else None,
        "p_t": comparison.p_t,
        "ci_low": comparison.interval[0] if comparison.interval else None,
        "ci_high": comparison.interval[1] if comparison.interval else None,
        "p_exact": comparison.p_exact,
        "holm_t": comparison.holm_t,
        "holm_exact": comparison.holm_exact,
        "smallest_holm_exact": comparison.smallest if comparison.family else None,
        "verdict": comparison.verdict,
    }
