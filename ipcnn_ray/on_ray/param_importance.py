"""How much each field of a search matters for its goal, as Optuna tells it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from ipcnn_ray.on_ray.search_space import quiet
from ipcnn_ray.report.search_figures import MOST_FOR_IMPORTANCE

LEAST = 8
"""Trials of which an importance is told."""
TREES = 32
"""Of the random forest; Optuna's 64 take twice as long."""


def importances(
    trials: Sequence[tuple[Mapping[str, Any], float]], logarithmic: Sequence[str] = ()
) -> dict[str, float] | None:
    """Field -> share of the goal's variance that it explains (fANOVA; Hutter, Hoos and Leyton-Brown, ICML 2014).

    trials: (field -> value, finite goal) of every trial trained to its end. Compared are the fields that all of them
    have and that take at least two values; `logarithmic` names those on a logarithmic scale. None for fewer than LEAST
    trials, no such field, or a goal that does not vary. The time grows with the square of the trials, so of more than
    MOST_FOR_IMPORTANCE an even sample in the order given is taken.
    """
    step = max(len(trials) / MOST_FOR_IMPORTANCE, 1)
    trials = [trials[int(index * step)] for index in range(int(len(trials) / step))]
    if len(trials) < LEAST or len({value for _, value in trials}) < 2:
        return None
    shared = [path for path in trials[0][0] if all(path in settings for settings, _ in trials)]
    spaces = {
        path: space
        for path in shared
        if (space := _distribution([settings[path] for settings, _ in trials], path in logarithmic)) is not None
    }
    if not spaces:
        return None
    quiet()
    study = optuna.create_study()
    for settings, value in trials:
        chosen = {path: settings[path] for path in spaces}
        study.add_trial(optuna.trial.create_trial(params=chosen, distributions=spaces, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in found.items()}


def _distribution(values: Sequence[Any], logarithmic: bool) -> optuna.distributions.BaseDistribution | None:
    """A space that holds these values; None where they are all the same."""
    different = list(dict.fromkeys(values))
    if len(different) < 2:
        return None
    numbers = [value for value in different if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(different) or not all(map(math.isfinite, numbers)):
        return optuna.distributions.CategoricalDistribution(different)
    low, high = float(min(numbers)), float(max(numbers))
    return optuna.distributions.FloatDistribution(low, high, log=logarithmic and low > 0)
