"""Which recorded run stands in which cell of the papers' tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ipcnn_ray.core.statistics import Spread, spread
from ipcnn_ray.report.groups import Group
from ipcnn_ray.report.published import BETA, CATEGORIES, GAMMA, ZHANG_BETA
from ipcnn_ray.report.records import Entry, Experiment

MISSING = "missing"
"""We have no such run."""
UNPUBLISHED = "not printed"
"""The paper has no such number."""


class Setting(NamedTuple):
    """The runs of one setting of one experiment."""

    experiment: str
    group: Group
    runs: tuple[Entry, ...]

    @property
    def name(self) -> str:
        return f"{self.experiment}-{self.group.name}"

    @property
    def marks(self) -> tuple[str, ...]:
        """Of any of its runs."""
        found = dict.fromkeys(mark for run in self.runs for mark in run.marks)
        tau = self.runs[0].number("template.tau")
        return (*found, *(["t"] if tau is not None else []), *(["x"] if self.group.order == 2 else []))


def paper_template(params: Mapping[str, str]) -> str | None:
    """Key of `published.TEMPLATES` that a run's recorded template is; None for a template that the paper has not.

    Only gamma / beta counts of a uniform template.
    """
    shape, norm = params.get("template.shape"), params.get("template.norm")
    if shape == "none":
        return "none"
    if norm not in ("l1", "l2"):
        return None
    try:
        beta, gamma = float(params["template.beta"]), float(params.get("template.gamma", "nan"))
    except (KeyError, ValueError):
        return None
    if shape == "gradient" and beta == BETA:
        return norm
    return f"uniform_{norm}" if shape == "uniform" and math.isclose(gamma / beta, GAMMA / BETA) else None


def zhang_template(params: Mapping[str, str]) -> str | None:
    """`original`, or `interpretable`: the template of Zhang et al., or that of their code; None for another."""
    shape = params.get("template.shape")
    if shape == "none":
        return "original"
    gradient = shape == "gradient" and params.get("template.norm") == "l1"
    return (
        "interpretable"
        if shape == "released" or (gradient and params.get("template.beta") == str(ZHANG_BETA))
        else None
    )


def categories(params: Mapping[str, str]) -> tuple[str, ...]:
    """Of a run, one or several."""
    return tuple(filter(None, params.get("data.category", "").split(", ")))


@dataclass(frozen=True)
class Shelf:
    """Settings by what they are."""

    by_key: Mapping[tuple[str, ...], tuple[Setting, ...]]
    """The one to show first: photographs before drawn images, whole weights before partial ones and none, trained to
    the end before failed; then as the experiments were given and as each ranks its settings."""

    @classmethod
    def of(cls, experiments: Sequence[Experiment], key: Callable[[Entry], tuple[str, ...] | None]) -> Shelf:
        """`key` says where a run belongs; None: nowhere."""
        found: dict[tuple[str, ...], list[Setting]] = {}
        for experiment in experiments:
            for group in experiment.ranking.groups:
                runs = tuple(experiment.by_group[group.name])
                where = key(runs[0])
                if where is not None:
                    found.setdefault(where, []).append(Setting(experiment.name, group, runs))
        return cls({where: tuple(sorted(settings, key=_precedence)) for where, settings in found.items()})

    def get(self, *key: str) -> Setting | None:
        """The setting to show."""
        return next(iter(self.by_key.get(key, ())), None)

    def crowded(self, keys: Iterable[tuple[str, ...]]) -> list[str]:
        """Of cells that several settings fit, which one is shown, as sentences."""
        return [
            f"{' '.join(key)}: {len(fit)} settings fit, shown is {fit[0].name}."
            for key in keys
            if len(fit := self.by_key.get(key, ())) > 1
        ]


def _precedence(setting: Setting) -> tuple[bool, bool, bool, bool]:
    marks = setting.marks
    return (not setting.group.spreads, "d" in marks, "w" in marks, "s" in marks)


def voc_cell(run: Entry) -> tuple[str, ...] | None:
    """(network, template of the part-template paper, category): one animal, photographed or drawn."""
    template, animals = paper_template(run.params), categories(run.params)
    fits = run.params.get("data.kind") in ("voc_part", "drawn_animals") and len(animals) == 1
    return (run.params.get("model.network", "?"), template, animals[0]) if fits and template else None


def measured(setting: Setting | None, measure: str) -> Spread | None:
    """A setting's measure over its seeds, in the unit of the papers: `accuracy` per cent, from the validation error."""
    if setting is None:
        return None
    if measure != "accuracy":
        return setting.group.spreads.get(measure)
    error = setting.group.spreads.get("val_error")
    return error and Spread(error.n, 100 * (1 - error.mean), None if error.sd is None else 100 * error.sd)


def cell(setting: Setting | None, measure: str) -> str:
    """`0.1402 ± 0.0031 (n 3) [d]`: mean, spread over seeds, their number, marks; or why there is none."""
    if setting is None:
        return MISSING
    found = measured(setting, measure)
    if found is None:
        return f"{MISSING} ({setting.group.state})" if not setting.group.spreads else f"{MISSING} (not measured)"
    digits = 2 if measure == "accuracy" else 4
    text = f"{found.mean:.{digits}f}"
    if found.sd is not None:
        text += f" ± {found.sd:.{digits}f} (n {found.n})"
    return text + (f" [{' '.join(setting.marks)}]" if setting.marks else "")


def average(settings: Sequence[Setting | None], measure: str) -> str:
    """Mean over the six categories of the means over seeds; where some are missing it says how many there are."""
    found = [one for setting in settings if (one := measured(setting, measure)) is not None]
    if not found:
        return MISSING
    text = f"{spread([one.mean for one in found]).mean:.{2 if measure == 'accuracy' else 4}f}"
    marks = dict.fromkeys(mark for setting in settings if setting for mark in setting.marks)
    if len(found) < len(CATEGORIES):
        text += f" ({len(found)} of {len(CATEGORIES)})"
    return text + (f" [{' '.join(marks)}]" if marks else "")
