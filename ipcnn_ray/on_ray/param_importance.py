"""Importance of each searched field for the objective, by fANOVA."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna

from ipcnn_ray.report.experiment_record import MOST_FOR_IMPORTANCE

MIN_TRIALS = 8
TREES = 32
"""Trees of the random forest; Optuna's default of 64 takes twice as long."""


def silence_optuna() -> None:
    """Stop Optuna from logging every trial to stderr."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def importances(
    trials: Sequence[tuple[Mapping[str, Any], float]], logarithmic: Sequence[str] = ()
) -> dict[str, float] | None:
    """Return for each field the share of the objective's variance that it explains.

    *Source*: fANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014).

    Args:
        trials: (field -> value, finite objective) of every trial that was trained to its end. Fields that are missing
            in a trial or have one value are left out. The time grows with the square of the number of trials, so at
            most MOST_FOR_IMPORTANCE trials are used, spaced evenly.
        logarithmic: Fields on a logarithmic scale.

    Returns:
        None for fewer than MIN_TRIALS trials, no field to compare, or a constant objective.
    """
    step = max(len(trials) / MOST_FOR_IMPORTANCE, 1)
    trials = [trials[int(index * step)] for index in range(int(len(trials) / step))]
    if len(trials) < MIN_TRIALS or len({value for _, value in trials}) < 2:
        return None
    shared = [path for path in trials[0][0] if all(path in settings for settings, _ in trials)]
    spaces = {
        path: space
        for path in shared
        if (space := _distribution([settings[path] for settings, _ in trials], path in logarithmic)) is not None
    }
    if not spaces:
        return None
    silence_optuna()
    study = optuna.create_study()
    for settings, value in trials:
        params = {path: settings[path] for path in spaces}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
    evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=TREES, seed=0)
    shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {path: float(share) for path, share in shares.items()}


def _distribution(values: Sequence[Any], logarithmic: bool) -> optuna.distributions.BaseDistribution | None:
    """Return a distribution that contains these values; None if they are all equal."""
    distinct = list(dict.fromkeys(values))
    if len(distinct) < 2:
        return None
    numbers = [value for value in distinct if isinstance(value, (int, float)) and not isinstance(value, bool)]
    if len(numbers) < len(distinct) or not all(map(math.isfinite, numbers)):
        return optuna.distributions.CategoricalDistribution(distinct)
    low, high = float(min(numbers)), float(max(numbers))
    return optuna.distributions.FloatDistribution(low, high, log=logarithmic and low > 0)
