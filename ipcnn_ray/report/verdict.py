"""Verdict: whether each setting makes filters follow parts, in a few sentences with their numbers.

Location instability alone cannot tell: a filter that always fires at the same place beats most trained ones. A setting
is therefore compared with the control in metrics that a constant cannot win as well, and with the baselines of
instability.

All comparisons are paired by seed and use Student's paired t-test, corrected by Holm over the settings of the
experiment for each metric. The exact sign-flip test of the ranking cannot reach .05 with fewer than six seeds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ipcnn_ray.core.statistics import MOST_SEEDS, POWER, SIGNIFICANCE_LEVEL, seeds_needed, spread
from ipcnn_ray.report.ranking import Comparison, Group, compare_family, without_landmarks
from ipcnn_ray.report.ranking_table import Ranking, number, p_words
from ipcnn_ray.spec.extensions import BASELINES, METRICS
from ipcnn_ray.utils.text import counted, shortened_list

Outcome = Literal[
    "follows parts",
    "follows parts, not more stable",
    "some filters follow parts",
    "moved to the middle",
    "more stable, follows nothing more",
    "less stable",
    "follows less",
    "nothing decided",
    "not measured",
    "no landmarks",
    "one seed",
]
"""`follows parts`: at least half of the filters do, more than of the control's. `some filters follow parts`: more than
of the control's, but fewer than half. `not measured`: an earlier version recorded the runs. `no landmarks`: the data
have none. `one seed`: fewer than two seeds in common with the control."""
MOST = 0.5
"""Share of filters that must follow a landmark for `follows parts`."""
CONTROL = "control"
"""What the tag `ipcnn.verdict` of the control's runs holds."""
COMPARED = {
    "instability": "instability",
    "following_share": "the share of filters that follow a landmark",
    "peak_spread": "the spread of the peaks",
    "landmark_coverage": "coverage",
    "val_error": "error",
}
"""Metrics that a verdict compares -> their names in its sentences; without landmarks all that are measured."""
HEADLINES: Mapping[Outcome, str] = {
    "follows parts": "follows parts: it is more stable, and more of its filters follow a landmark",
    "follows parts, not more stable": "follows parts, but is not more stable",
    "some filters follow parts": "makes some filters follow parts: more than of the control's, but fewer than half",
    "moved to the middle": "moved to the middle: it is more stable because its peaks move less, and no more "
    "of its filters follow a landmark",
    "more stable, follows nothing more": "is more stable, but no more of its filters follow a landmark",
    "less stable": "is less stable, and no more of its filters follow a landmark",
    "follows less": "follows less: fewer of its filters follow a landmark",
    "nothing decided": "nothing is decided",
    "not measured": "no verdict: its runs, or those of the control, did not record whether filters follow landmarks",
    "no landmarks": "whether its filters follow parts cannot be told: the data have no landmarks",
}
WITHOUT_LANDMARKS = (
    "The data have no landmarks, so nothing tells whether filters follow parts. A filter that always fires at one "
    "place can have the best numbers; only peak_spread, 0 for it, tells it apart."
)
CONSTANTS = ("instability_best_constant", "instability_center")
"""Baselines of instability of a filter that never moves."""
RANDOM = "instability_random"
"""Baseline of instability of a filter that fires anywhere."""
NEEDED = ("instability", "following_share")
"""Metrics without which there is no verdict."""


@dataclass(frozen=True)
class Difference:
    """One metric of a setting and of the control, over the seeds that both were trained with."""

    comparison: Comparison
    setting_mean: float
    control_mean: float

    @property
    def decided(self) -> bool:
        """Whether the t-test, corrected by Holm, finds a difference."""
        return self.comparison.holm_t is not None and self.comparison.holm_t < SIGNIFICANCE_LEVEL

    @property
    def lower(self) -> bool:
        """Whether the setting's value is lower, decided."""
        return self.decided and self.comparison.difference.mean < 0

    @property
    def higher(self) -> bool:
        return self.decided and self.comparison.difference.mean > 0

    @property
    def seeds_needed(self) -> int | None:
        """Seeds that would decide a difference with the observed mean and deviation, with probability POWER.

        At the strictest level of Holm's correction. None if it is decided, or for more than MOST_SEEDS.
        """
        if self.decided or not self.comparison.family:
            return None
        return seeds_needed(self.comparison.difference, SIGNIFICANCE_LEVEL / self.comparison.family)

    def as_json(self) -> dict[str, Any]:
        one = self.comparison
        return {
            "measure": one.measure,
            "setting": self.setting_mean,
            "control": self.control_mean,
            "difference": one.difference._asdict(),
            "ci_low": one.interval[0] if one.interval else None,
            "ci_high": one.interval[1] if one.interval else None,
            "p_t": one.p_t,
            "holm_t": one.holm_t,
            "decided": self.decided,
            "seeds_needed": self.seeds_needed,
        }


@dataclass(frozen=True)
class Verdict:
    """What the runs say about one setting."""

    setting: str
    outcome: Outcome
    sentences: tuple[str, ...]
    """At most six. Empty for a setting with one seed, except the best of these."""
    differences: Mapping[str, Difference]
    """Metric of COMPARED -> setting and control; only what both recorded."""


@dataclass(frozen=True)
class Verdicts:
    """The verdicts on an experiment's settings, in the order of the ranking."""

    control: str
    """Where the control stands between the baselines, or a run that has none; what cannot be told without landmarks.
    Empty if it is not recorded."""
    verdicts: tuple[Verdict, ...]
    one_seed: str
    """What is to be said of all settings with one seed; empty without any."""
    notes: tuple[str, ...]
    """How the verdicts were reached."""
    control_name: str | None

    @classmethod
    def of(cls, ranking: Ranking) -> Verdicts:
        """Verdicts on all settings with a succeeded run, other than the control."""
        groups = [group for group in ranking.groups if group.order < 2]
        blind = without_landmarks(groups)
        control = next((group for group in groups if group.name == ranking.objectives.control), None)
        if control is None:
            if ranking.objectives.control and len(ranking.groups) > 1:
                missing = f"No verdict: the control {ranking.objectives.control} has no run that succeeded."
                return cls("", (), "", (missing,), None)
            standing = WITHOUT_LANDMARKS if blind else " ".join(filter(None, map(_standing, groups)))
            return cls(standing, (), "", (), None)
        others = [group for group in groups if group is not control]
        differences = _differences(others, control, _measured(groups) if blind else list(COMPARED))
        verdicts = [_verdict(group, control, differences[group.name], blind=blind) for group in others]
        single = [verdict for verdict in verdicts if verdict.outcome == "one seed"]
        if single:
            best, names = single[0], {verdict.setting for verdict in single}
            sentences = _sentences_of_one_seed([group for group in others if group.name in names], control)
            verdicts[verdicts.index(best)] = Verdict(best.setting, best.outcome, sentences, best.differences)
        notes = (_method(verdicts),) if len(single) < len(verdicts) else ()
        standing = WITHOUT_LANDMARKS if blind else _standing(control)
        return cls(standing, tuple(verdicts), _one_seed(single), notes, control.name)

    @property
    def lines(self) -> list[str]:
        """The text, one paragraph for each setting."""
        lines = [self.control]
        lines += [" ".join(verdict.sentences) for verdict in self.verdicts if verdict.outcome != "one seed"]
        best = next((verdict for verdict in self.verdicts if verdict.outcome == "one seed"), None)
        lines.append(" ".join(filter(None, (self.one_seed, *(best.sentences if best else ())))))
        return [line for line in (*lines, *self.notes) if line]

    @property
    def outcomes(self) -> dict[str, str]:
        """Setting -> outcome; `control` for the control."""
        outcomes: dict[str, str] = {verdict.setting: verdict.outcome for verdict in self.verdicts}
        return outcomes if self.control_name is None else {**outcomes, self.control_name: CONTROL}

    def markdown(self) -> str:
        """The text as a Markdown document; empty without any."""
        return "".join(f"{line}\n\n" for line in self.lines).rstrip("\n") + "\n" if self.lines else ""

    def as_json(self) -> dict[str, Any]:
        return {
            "verdicts": [
                {
                    "setting": verdict.setting,
                    "outcome": verdict.outcome,
                    "sentences": list(verdict.sentences),
                    "differences": [difference.as_json() for difference in verdict.differences.values()],
                }
                for verdict in self.verdicts
            ],
            "verdict_notes": [line for line in (self.control, self.one_seed, *self.notes) if line],
        }


def _measured(groups: Sequence[Group]) -> list[str]:
    """Return the metrics of interpretability that any setting has, and the error."""
    names = [name for name in METRICS.names() if name not in BASELINES and any(name in group.means for group in groups)]
    return [*names, "val_error"]


def _differences(others: Sequence[Group], control: Group, measures: Sequence[str]) -> dict[str, dict[str, Difference]]:
    """Setting -> metric -> difference from the control."""
    found: dict[str, dict[str, Difference]] = {group.name: {} for group in others}
    for measure in measures:
        comparisons = compare_family([(group, control) for group in others], measure)
        for group, comparison in zip(others, comparisons, strict=True):
            if comparison is None:
                continue
            mine, theirs = group.values(measure), control.values(measure)
            common = [seed for seed in mine if seed in theirs]
            means = [spread([values[seed] for seed in common or values]).mean for values in (mine, theirs)]
            found[group.name][measure] = Difference(comparison, means[0], means[1])
    return found


def _verdict(group: Group, control: Group, differences: Mapping[str, Difference], *, blind: bool) -> Verdict:
    """blind: whether the data have no landmarks."""
    outcome = _outcome(group, control, differences)
    if outcome == "one seed":
        return Verdict(group.name, outcome, (), differences)
    if blind:
        outcome = "no landmarks"
    sentences = (
        f"{_called(group)} {HEADLINES[outcome]}."
        if outcome not in ("nothing decided", "not measured", "no landmarks")
        else f"{_called(group)}: {HEADLINES[outcome]}.",
        _measured_sentence(differences, control) if blind else _instability_sentence(differences, control),
        _baseline_sentence(group),
        _following_sentence(group, differences),
        _error_sentence(differences),
        _undecided_sentence(differences),
    )
    return Verdict(group.name, outcome, tuple(filter(None, sentences)), differences)


def _outcome(group: Group, control: Group, differences: Mapping[str, Difference]) -> Outcome:
    seeds = [{run.seed for run in side.runs if run.state == "succeeded"} for side in (group, control)]
    if len(seeds[0] & seeds[1]) < 2:
        return "one seed"
    if any(name not in differences or differences[name].comparison.p_t is None for name in NEEDED):
        return "not measured"
    instability, following = (differences[name] for name in NEEDED)
    if following.higher:
        if following.setting_mean < MOST:
            return "some filters follow parts"
        return "follows parts" if instability.lower else "follows parts, not more stable"
    if instability.lower:
        spread_of_peaks = differences.get("peak_spread")
        stays = spread_of_peaks is not None and spread_of_peaks.lower
        return "moved to the middle" if stays else "more stable, follows nothing more"
    if instability.higher:
        return "less stable"
    return "follows less" if following.lower else "nothing decided"


def _called(group: Group) -> str:
    return group.name if group.template in (group.name, "") else f"{group.name} ({group.template})"


def _test_words(difference: Difference, scale: float, unit: str, digits: int) -> str:
    """`95 % CI -55 to -41 %, p 0.0004`, with a mark where it is not decided. scale: of the interval."""
    comparison = difference.comparison
    if comparison.interval is None:
        return "one seed"
    low, high = (f"{end * scale:+.{digits}f}" for end in comparison.interval)
    undecided = "" if difference.decided else ": not decided"
    return f"95 % CI {low} to {high}{unit}, p {p_words(comparison.holm_t)}{undecided}"


def _instability_sentence(differences: Mapping[str, Difference], control: Group) -> str:
    difference = differences.get("instability")
    if difference is None:
        return ""
    text = f"Instability {difference.setting_mean:.4f} against {difference.control_mean:.4f} of {control.name}: "
    if difference.control_mean > 0:
        scale = 100 / difference.control_mean
        text += f"{difference.comparison.difference.mean * scale:+.0f} % ({_test_words(difference, scale, ' %', 0)}"
    else:
        text += f"{difference.comparison.difference.mean:+.4f} ({_test_words(difference, 1, '', 4)}"
    return f"{text}; {counted(difference.comparison.difference.n, 'seed')})."


def _measured_sentence(differences: Mapping[str, Difference], control: Group) -> str:
    """All metrics of interpretability, of data without landmarks."""
    words = [
        f"{name} {number(name, one.setting_mean)} against {number(name, one.control_mean)} "
        f"({_test_words(one, 1, '', 4)})"
        for name, one in differences.items()
        if name != "val_error"
    ]
    return f"Beside {control.name}: {'; '.join(words)}." if words else ""


def _baseline_sentence(group: Group) -> str:
    """Where the setting's instability stands between the baselines; empty if it recorded none."""
    constant, mean, random = _constant(group), group.means.get("instability"), group.means.get(RANDOM)
    if constant is None or mean is None:
        return ""
    if mean < constant:
        return f"It is more stable than a filter that never moves ({constant:.4f})."
    never = f"that never moves has {constant:.4f}, so instability alone proves nothing."
    return (
        f"A filter that fires anywhere has {random:.4f}, one {never}"
        if random and mean >= random
        else f"A filter {never}"
    )


def _constant(group: Group) -> float | None:
    """Instability of a filter that never moves from its best place; None if it is not recorded."""
    return min((group.means[name] for name in CONSTANTS if name in group.means), default=None)


def _following_sentence(group: Group, differences: Mapping[str, Difference]) -> str:
    following, spread_of_peaks = differences.get("following_share"), differences.get("peak_spread")
    if following is None:
        return ""
    shuffled = group.means.get("following_share_shuffled")
    chance = "" if shuffled is None else f"; by chance {_percent(shuffled)}"
    text = (
        f"{_percent(following.setting_mean)} of its filters follow a landmark, {_percent(following.control_mean)} of "
        f"the control's ({_test_words(following, 100, ' points', 0)}{chance})"
    )
    if which := _which(group):
        text += f"; {which}"
    if spread_of_peaks is not None and spread_of_peaks.decided and not following.higher:
        text += (
            f"; the peaks of a filter spread {spread_of_peaks.setting_mean:.2f} of the image's side, those of the "
            f"control {spread_of_peaks.control_mean:.2f} ({_test_words(spread_of_peaks, 1, '', 2)})"
        )
    return f"{text}."


def _which(group: Group) -> str:
    """Which landmarks are followed by how many filters; empty if none is."""
    followed = {name: value for name, value in landmark_counts(group).items() if value > 0}
    if not followed:
        return ""
    if len(followed) == 1:
        (landmark,) = followed
        return f"all of these the {landmark}"
    counts = ", ".join(f"{name} {value:.1f}" for name, value in sorted(followed.items(), key=lambda item: -item[1]))
    coverage = group.means.get("landmark_coverage")
    return f"filters by landmark: {counts}" + ("" if coverage is None else f"; effectively {coverage:.1f} landmarks")


def landmark_counts(group: Group) -> dict[str, float]:
    """Landmark -> mean number of filters that follow it."""
    prefix = "following_"
    return {
        name.removeprefix(prefix): value
        for name, value in group.means.items()
        if name.startswith(prefix) and not name.startswith("following_share")
    }


def _error_sentence(differences: Mapping[str, Difference]) -> str:
    difference = differences.get("val_error")
    if difference is None:
        return ""
    numbers = f"Error {100 * difference.setting_mean:.1f} % against {100 * difference.control_mean:.1f} %"
    points = 100 * difference.comparison.difference.mean
    return f"{numbers}: {points:+.1f} points ({_test_words(difference, 100, '', 1)})."


def _undecided_sentence(differences: Mapping[str, Difference]) -> str:
    undecided = [(name, one) for name, one in differences.items() if not one.decided and one.comparison.family]
    if not undecided:
        return ""
    by_number: dict[int, list[str]] = {}
    for name, one in undecided:
        by_number.setdefault(one.seeds_needed or MOST_SEEDS + 1, []).append(COMPARED.get(name, name))
    needed = [
        f"{number if number <= MOST_SEEDS else f'more than {MOST_SEEDS}'} for {', '.join(names)}"
        for number, names in sorted(by_number.items())
    ]
    return f"Seeds that would decide differences such as these: {'; '.join(needed)}."


def _standing(group: Group) -> str:
    """A setting beside the baselines, without a comparison; empty if they are not recorded."""
    constant, random, mean = _constant(group), group.means.get(RANDOM), group.means.get("instability")
    if constant is None or random is None or mean is None:
        return ""
    text = f"{_called(group)}: instability {mean:.4f}; a filter that never moves has {constant:.4f}, one that fires "
    text += f"anywhere {random:.4f}"
    if (share := group.means.get("following_share")) is not None:
        text += f". {_percent(share)} of its filters follow a landmark"
        if (shuffled := group.means.get("following_share_shuffled")) is not None:
            text += f" (by chance {_percent(shuffled)})"
    return f"{text}."


def _one_seed(single: Sequence[Verdict]) -> str:
    if not single:
        return ""
    names = shortened_list([verdict.setting for verdict in single], 6)
    return (
        f"{names}: one seed gives no verdict. `search.repeats` trains named runs and grids with several; to repeat a "
        "sampled run, name it in another spec."
    )


def _sentences_of_one_seed(single: Sequence[Group], control: Group) -> tuple[str, ...]:
    """The numbers of the best setting with one seed, and of the one with the most filters that follow a landmark."""
    best = single[0]
    most = max(single, key=lambda group: group.means.get("following_share", -1.0))
    sentences = [f"The best of them, {_numbers(best, control)}; one seed."]
    if most.means.get("following_share", -1.0) > best.means.get("following_share", -1.0):
        sentences.append(f"The one with the most filters that follow a landmark, {_numbers(most, control)}; one seed.")
    return (*sentences, *filter(None, (_baseline_sentence(most),)))


def _numbers(group: Group, control: Group) -> str:
    """A setting's name and its numbers in words."""
    numbers = []
    mean, reference = group.means.get("instability"), control.means.get("instability")
    if mean is not None:
        relative = f", {100 * (mean / reference - 1):+.0f} % to the control" if reference else ""
        numbers.append(f"instability {mean:.4f}{relative}")
    if (share := group.means.get("following_share")) is not None:
        which = _which(group)
        numbers.append(f"{_percent(share)} of its filters follow a landmark{f' ({which})' if which else ''}")
    if without_landmarks([group]):
        numbers += [f"{name} {number(name, group.means[name])}" for name in _measured([group])[:-1]]
    if (error := group.means.get("val_error")) is not None:
        numbers.append(f"error {100 * error:.1f} %")
    return f"{_called(group)}: {', '.join(numbers)}"


def _method(verdicts: Sequence[Verdict]) -> str:
    text = (
        "Verdicts go by Student's t-test of the differences paired by seed, corrected by Holm over the settings for "
        f"each metric, at {SIGNIFICANCE_LEVEL}; the exact test of the tables cannot reach it with fewer than six seeds."
    )
    if any(not one.decided for verdict in verdicts for one in verdict.differences.values() if one.comparison.family):
        text += (
            f" Seeds that would decide: with a probability of {POWER}, at the strictest level of the correction, if "
            "the observed mean and deviation are the true ones."
        )
    return text


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
