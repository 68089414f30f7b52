"""The papers' tables in their own layout: what was published, and below it what was recorded here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, cast

from ipcnn_ray.core.statistics import Spread, sign_flip_p, smallest_p, spread
from ipcnn_ray.report import published
from ipcnn_ray.report.document import Block, Chapter, Paragraphs, TableBlock
from ipcnn_ray.report.experiment_record import MARKS, Experiment, ReportedRun
from ipcnn_ray.report.published import BETA, CATEGORIES, GAMMA, NETWORKS, TEMPLATES, ZHANG_BETA
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.report.ranking_table import Table, p_words
from ipcnn_ray.report.significance import LEVEL

COLUMNS = ("model", "numbers", *CATEGORIES, "Avg.")
PUBLISHED, OURS = "published", "ours"
ZHANG_TABLES = {
    "voc_instability": ("Location instability, VOC Part, one category", "instability", "voc_part"),
    "voc_accuracy": ("Accuracy (%), VOC Part, one category", "accuracy", "voc_part"),
    "voc_several_accuracy": ("Accuracy (%), VOC Part, several categories", "accuracy", "voc_part"),
    "ilsvrc_instability": ("Location instability, ILSVRC animal part", "instability", "ilsvrc_animal_part"),
    "cub_instability": ("Location instability, CUB-200", "instability", "cub200"),
    "voc_part_interpretability": ("Part interpretability, VOC Part, one category", "part_interpretability", "voc_part"),
}
"""Key of `published.ZHANG` -> title, measure, kind of data."""


def paper_chapter(experiments: Sequence[Experiment]) -> Chapter:
    """Tables 1 to 5 of the part-template paper, and the numbers of Zhang et al."""
    index = SettingIndex.of(experiments, voc_cell)
    blocks: list[Block] = [
        _six("table1", "Table 1. Location instability, plain and L1", index, "instability", ("none", "l1")),
        _six("table2", "Table 2. Classification accuracy (%), plain and L1", index, "accuracy", ("none", "l1")),
        _six("table3", "Table 3. Location instability", index, "instability", ("uniform_l1", "l2", "uniform_l2")),
        _norms(index),
        _six("table5", "Table 5. Classification accuracy (%)", index, "accuracy", ("uniform_l1", "l2", "uniform_l2")),
        _zhang(experiments),
        Paragraphs(
            (
                f"{MISSING}: no such run is recorded. {UNPUBLISHED}: the paper has no such number. ±: standard "
                "deviation over seeds, n their number. (2 of 6): the mean of so many categories only.",
                "Letters behind a number: " + "; ".join(f"{mark}: {words}" for mark, words in MARKS.items()) + ".",
                *index.crowded(key for key in index.by_key),
            )
        ),
    ]
    return Chapter("The papers' tables", blocks)


def _networks(index: SettingIndex) -> dict[str, str]:
    """The papers' networks, and behind them any other that was trained."""
    return {**NETWORKS, **{key[0]: key[0] for key in sorted(index.by_key) if key[0] not in NETWORKS}}


def model_name(network: str, template: str) -> str:
    """`AlexNet (L1)`"""
    word = TEMPLATES[template]
    return f"{NETWORKS.get(network, network)} ({word})" if word else NETWORKS.get(network, network)


def _six(name: str, title: str, index: SettingIndex, measure: str, templates: Sequence[str]) -> TableBlock:
    rows = []
    for network in _networks(index):
        for template in templates:
            model = model_name(network, template)
            if network in NETWORKS:
                rows.append([model, PUBLISHED, *_published(measure, network, template)])
            settings = [index.get(network, template, category) for category in CATEGORIES]
            if network in NETWORKS or any(settings):
                cells = [cell(setting, measure) for setting in settings]
                rows.append([model, OURS, *cells, average(settings, measure)])
    unit = (
        "Share of the image diagonal; lower is more stable."
        if measure == "instability"
        else "Per cent of validation images; the paper prints one number for each network, not for each animal."
    )
    caption = f"{unit} Read each pair of rows downwards: the printed number, then ours."
    return TableBlock(name, title, caption, Table(COLUMNS, rows, COLUMNS[2:]))


def _published(measure: str, network: str, template: str) -> list[str]:
    if measure == "instability":
        row = (published.MIDWAY_INSTABILITY | published.FINAL_INSTABILITY)[network, template]
        return [f"{value:.3f}" for value in (*row.by_category, row.average)]
    accuracy = (published.MIDWAY_ACCURACY | published.FINAL_ACCURACY)[network, template]
    return [*[UNPUBLISHED] * len(CATEGORIES), f"{accuracy:.1f}"]


def _norms(index: SettingIndex) -> TableBlock:
    """Table 4, with what the paper leaves open: whether the difference may be luck."""
    columns = ("model", "numbers", "L1-norm", "L2-norm", "improvement", "pairs", "p", "verdict")
    rows = []
    for network in _networks(index):
        if network in NETWORKS:
            printed = [f"{value:.3f}" for value in published.L1_AGAINST_L2[network]]
            rows.append([NETWORKS[network], PUBLISHED, *printed, *[UNPUBLISHED] * 3])
        pairs, marks = _norm_pairs(index, network)
        if not pairs:
            if network in NETWORKS:
                rows.append([NETWORKS[network], OURS, *[MISSING] * 3, "0", "-", "-"])
            continue
        p = sign_flip_p([one - other for one, other in pairs]) if 1 < len(pairs) <= 40 else None
        l1, l2 = (spread([pair[i] for pair in pairs]).mean for i in (0, 1))
        verdict = "one pair" if p is None else "more than luck" if p < LEVEL else "may be luck"
        if p is not None and smallest_p(len(pairs)) >= LEVEL:
            verdict = "too few pairs"
        text = f" [{' '.join(marks)}]" if marks else ""
        numbers = [f"{l1:.4f}{text}", f"{l2:.4f}{text}", f"{l1 - l2:+.4f}"]
        rows.append([NETWORKS.get(network, network), OURS, *numbers, str(len(pairs)), p_words(p), verdict])
    caption = (
        "Share of the image diagonal; a positive improvement says that L2 is more stable. Ours: means over the pairs, "
        "the runs with equal category and seed; p of the exact sign-flip test over them, two-sided. The paper says of "
        "its improvements that they may be due to luck; it has one run of each."
    )
    title = "Table 4. Average location instability, L1 against L2"
    return TableBlock("table4", title, caption, Table(columns, rows, columns[2:7]))


def _norm_pairs(index: SettingIndex, network: str) -> tuple[list[tuple[float, float]], list[str]]:
    """(L1, L2) of equal category and seed, and the marks of both."""
    pairs: list[tuple[float, float]] = []
    marks: dict[str, None] = {}
    for category in CATEGORIES:
        one, other = index.get(network, "l1", category), index.get(network, "l2", category)
        if one and other:
            mine, theirs = one.group.values("instability"), other.group.values("instability")
            found = [(mine[seed], theirs[seed]) for seed in mine if seed in theirs]
            pairs += found
            marks |= dict.fromkeys(mark for setting in (one, other) for mark in setting.marks) if found else {}
    return pairs, list(marks)


def _zhang_key(run: ReportedRun) -> tuple[str, ...] | None:
    template, animals, kind = zhang_template(run.params), categories(run.params), run.params.get("data.kind")
    if template is None or kind is None:
        return None
    photographed = "voc_part" if kind == "drawn_animals" else kind
    several = "several" if len(animals) > 1 else "one"
    return (run.params.get("model.network", "?"), template, photographed, several, ", ".join(animals))


def _zhang(experiments: Sequence[Experiment]) -> TableBlock:
    index = SettingIndex.of(experiments, _zhang_key)
    columns = ("measure", "network", "original", "original, ours", "interpretable", "interpretable, ours")
    rows = []
    for key, (title, measure, kind) in ZHANG_TABLES.items():
        printed = cast("Mapping[str, published.Zhang]", published.ZHANG[key])
        digits = 2 if measure == "accuracy" else 3
        several = "several" if "several" in key else "one"
        others = sorted({where[0] for where in index.by_key if where[2:4] == (kind, several)} - set(printed))
        for network in (*printed, *others):
            theirs = [f"{value:.{digits}f}" for value in printed[network]] if network in printed else [UNPUBLISHED] * 2
            ours = [_zhang_cell(index, network, which, kind, several, measure) for which in published.Zhang._fields]
            if network in printed or any(not one.startswith(MISSING) for one in ours):
                rows.append([title, NETWORKS.get(network, network), theirs[0], ours[0], theirs[1], ours[1]])
    caption = (
        "Instability as a share of the image diagonal, accuracy per cent, part interpretability as a share of images. "
        "Interpretable: the template of Zhang et al. (gradient, L1, beta 4) or that of their code (released). Over "
        "VOC Part's single categories and over those of ILSVRC ours is the mean of the categories trained, their "
        "number behind it."
    )
    title = "Zhang et al., CVPR 2018: original and interpretable networks"
    return TableBlock("zhang", title, caption, Table(columns, rows, columns[2:]))


def _zhang_cell(index: SettingIndex, network: str, which: str, kind: str, several: str, measure: str) -> str:
    settings = [found[0] for where, found in index.by_key.items() if where[:4] == (network, which, kind, several)]
    measures = [(setting, one) for setting in settings if (one := measured(setting, measure)) is not None]
    if len(measures) < 2:
        return cell(measures[0][0] if measures else next(iter(settings), None), measure) + (
            f" ({categories(measures[0][0].runs[0].params)[0]})" if measures and several == "one" else ""
        )
    mean = spread([one.mean for _, one in measures]).mean
    marks = dict.fromkeys(mark for setting, _ in measures for mark in setting.marks)
    unit = "categories" if several == "one" else "sets of categories"
    return f"{mean:.{2 if measure == 'accuracy' else 4}f} ({len(measures)} {unit})" + (
        f" [{' '.join(marks)}]" if marks else ""
    )


MISSING = "missing"
"""We have no such run."""
UNPUBLISHED = "not printed"
"""The paper has no such number."""


class Setting(NamedTuple):
    """The runs of one setting of one experiment."""

    experiment: str
    group: Group
    runs: tuple[ReportedRun, ...]

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
class SettingIndex:
    """Settings by what they are."""

    by_key: Mapping[tuple[str, ...], tuple[Setting, ...]]
    """The one to show first: photographs before drawn images, whole weights before partial ones and none, trained to
    the end before failed; then as the experiments were given and as each ranks its settings."""

    @classmethod
    def of(
        cls, experiments: Sequence[Experiment], key: Callable[[ReportedRun], tuple[str, ...] | None]
    ) -> SettingIndex:
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


def voc_cell(run: ReportedRun) -> tuple[str, ...] | None:
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
