"""The papers' tables in their own layout: the published numbers, and below them ours.

Runs with a template that the papers do not have appear in none of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, cast

from ipcnn_ray.core.statistics import SIGNIFICANCE_LEVEL, Spread, sign_flip_p, smallest_p, spread
from ipcnn_ray.report import published
from ipcnn_ray.report.document import Block, Chapter, Paragraphs, TableBlock
from ipcnn_ray.report.experiment_record import MARKS, Experiment, ReportedRun
from ipcnn_ray.report.published import BETA, CATEGORIES, GAMMA, NETWORKS, TEMPLATES, ZHANG_BETA
from ipcnn_ray.report.ranking import Group
from ipcnn_ray.report.ranking_table import Table, p_words
from ipcnn_ray.utils.text import parse_number

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
"""Key of `published.ZHANG` -> title, metric, kind of data."""
MISSING = "missing"
"""Shown where there is no such run of ours."""
UNPUBLISHED = "not printed"
"""Shown where the paper has no such number."""


class Setting(NamedTuple):
    """One setting of one experiment, with its runs."""

    name: str
    group: Group
    runs: Sequence[ReportedRun]

    @property
    def marks(self) -> tuple[str, ...]:
        """Marks that apply to at least one of its runs."""
        marks = dict.fromkeys(mark for run in self.runs for mark in run.marks)
        tau = self.runs[0].number("template.tau")
        return (*marks, *(["t"] if tau is not None else []), *(["x"] if self.group.order == 2 else []))


def paper_template(params: Mapping[str, str]) -> str | None:
    """Key of `published.TEMPLATES` for a recorded template; None for a template that the paper does not have.

    Uniform templates are compared by gamma / beta, the only thing that matters for them.
    """
    shape, norm = params.get("template.shape"), params.get("template.norm")
    if shape == "none":
        return "none"
    beta, gamma = (parse_number(params.get(f"template.{field}")) for field in ("beta", "gamma"))
    if norm not in ("l1", "l2") or beta is None:
        return None
    if shape == "gradient" and beta == BETA:
        return norm
    fits = shape == "uniform" and gamma is not None and math.isclose(gamma / beta, GAMMA / BETA)
    return f"uniform_{norm}" if fits else None


def zhang_template(params: Mapping[str, str]) -> str | None:
    """`original` without a template, `interpretable` with that of Zhang et al. or of their code; None for any other."""
    shape, norm, beta = (params.get(f"template.{field}") for field in ("shape", "norm", "beta"))
    if shape == "none":
        return "original"
    theirs = shape == "released" or (shape, norm, beta) == ("gradient", "l1", str(ZHANG_BETA))
    return "interpretable" if theirs else None


def animal_categories(params: Mapping[str, str]) -> tuple[str, ...]:
    """The categories of a run."""
    return tuple(filter(None, params.get("data.category", "").split(", ")))


Index = Mapping[tuple[str, ...], Sequence[Setting]]
"""Cell of a table -> the settings that belong to it. The first is shown: photographs before drawn images, complete
weights before partial ones and none, succeeded before failed; then in the order of experiments and their rankings."""


def index_settings(experiments: Sequence[Experiment], key_of: Callable[[ReportedRun], tuple[str, ...] | None]) -> Index:
    """Settings of all experiments by cell. `key_of` returns the cell of a run, or None if it belongs to none."""
    index: dict[tuple[str, ...], list[Setting]] = {}
    for experiment in experiments:
        for group in experiment.ranking.groups:
            runs = experiment.by_group[group.name]
            if (key := key_of(runs[0])) is not None:
                index.setdefault(key, []).append(Setting(f"{experiment.name}-{group.name}", group, runs))
    return {key: sorted(settings, key=_precedence) for key, settings in index.items()}


def _shown(index: Index, *key: str) -> Setting | None:
    """The setting to show in a cell."""
    return next(iter(index.get(key, ())), None)


def _precedence(setting: Setting) -> tuple[bool, bool, bool, bool]:
    marks = setting.marks
    return (not setting.group.spreads, "d" in marks, "w" in marks, "s" in marks)


def part_template_key(run: ReportedRun) -> tuple[str, ...] | None:
    """(network, template, category) of a run in tables 1 to 5: one category of VOC Part, photographed or drawn."""
    template, animals = paper_template(run.params), animal_categories(run.params)
    fits = run.params.get("data.kind") in ("voc_part", "drawn_animals") and len(animals) == 1
    return (run.params.get("model.network", "?"), template, animals[0]) if fits and template else None


def measured_spread(setting: Setting | None, metric: str) -> Spread | None:
    """Spread over seeds in the papers' unit: `accuracy` in per cent, from the validation error."""
    if setting is None:
        return None
    if metric != "accuracy":
        return setting.group.spreads.get(metric)
    error = setting.group.spreads.get("val_error")
    return error and Spread(error.n, 100 * (1 - error.mean), None if error.sd is None else 100 * error.sd)


def format_cell(setting: Setting | None, metric: str) -> str:
    """`0.1402 ± 0.0031 (n 3) [d]`: mean, standard deviation, number of seeds, marks; or why there is no number."""
    if setting is None:
        return MISSING
    measured = measured_spread(setting, metric)
    if measured is None:
        return f"{MISSING} ({setting.group.state})" if not setting.group.spreads else f"{MISSING} (not measured)"
    text = f"{measured.mean:.{_digits(metric)}f}"
    if measured.sd is not None:
        text += f" ± {measured.sd:.{_digits(metric)}f} (n {measured.n})"
    return text + _brackets(setting.marks)


def format_average(settings: Sequence[Setting | None], metric: str) -> str:
    """Mean over the six categories of the means over seeds; if some are missing, with their number."""
    means = [measured.mean for setting in settings if (measured := measured_spread(setting, metric)) is not None]
    if not means:
        return MISSING
    text = f"{spread(means).mean:.{_digits(metric)}f}"
    if len(means) < len(CATEGORIES):
        text += f" ({len(means)} of {len(CATEGORIES)})"
    return text + _brackets(dict.fromkeys(mark for setting in settings if setting for mark in setting.marks))


def _digits(metric: str) -> int:
    return 2 if metric == "accuracy" else 4


def _brackets(marks: Iterable[str]) -> str:
    """` [d w]`; empty without marks."""
    return f" [{' '.join(marks)}]" if marks else ""


def paper_chapter(experiments: Sequence[Experiment]) -> Chapter:
    """Tables 1 to 5 of the part-template paper, and the numbers of Zhang et al."""
    index = index_settings(experiments, part_template_key)
    duplicates = [
        f"{' '.join(key)}: {len(settings)} settings fit, shown is {settings[0].name}."
        for key, settings in index.items()
        if len(settings) > 1
    ]
    midway, final = ("none", "l1"), ("uniform_l1", "l2", "uniform_l2")
    blocks: list[Block] = [
        _category_table("table1", "Table 1. Location instability, plain and L1", index, "instability", midway),
        _category_table("table2", "Table 2. Classification accuracy (%), plain and L1", index, "accuracy", midway),
        _category_table("table3", "Table 3. Location instability", index, "instability", final),
        _norm_table(index),
        _category_table("table5", "Table 5. Classification accuracy (%)", index, "accuracy", final),
        _zhang_table(experiments),
        Paragraphs(
            (
                f"{MISSING}: no such run is recorded. {UNPUBLISHED}: the paper has no such number. ±: standard "
                "deviation over seeds, n their number. (2 of 6): the mean of so many categories only.",
                "Letters behind a number: " + "; ".join(f"{mark}: {words}" for mark, words in MARKS.items()) + ".",
                *duplicates,
            )
        ),
    ]
    return Chapter("The papers' tables", blocks, starts_line=True)


def _all_networks(index: Index) -> dict[str, str]:
    """Our name -> title: the papers' networks, then all others that were trained."""
    return {**NETWORKS, **{key[0]: key[0] for key in sorted(index) if key[0] not in NETWORKS}}


def model_name(network: str, template: str) -> str:
    """`AlexNet (L1)`"""
    word = TEMPLATES[template]
    return f"{NETWORKS.get(network, network)} ({word})" if word else NETWORKS.get(network, network)


def _category_table(name: str, title: str, index: Index, measure: str, templates: Sequence[str]) -> TableBlock:
    rows = []
    for network in _all_networks(index):
        for template in templates:
            model = model_name(network, template)
            if network in NETWORKS:
                rows.append([model, PUBLISHED, *_published(measure, network, template)])
            settings = [_shown(index, network, template, category) for category in CATEGORIES]
            if network in NETWORKS or any(settings):
                cells = [format_cell(setting, measure) for setting in settings]
                rows.append([model, OURS, *cells, format_average(settings, measure)])
    unit = (
        "Share of the image diagonal; lower is more stable."
        if measure == "instability"
        else "Per cent of validation images; the paper prints one number for each network, not for each animal."
    )
    caption = f"{unit} Read each pair of rows downwards: the printed number, then ours."
    return TableBlock(name, title, caption, Table(COLUMNS, rows, COLUMNS[2:]))


def _published(measure: str, network: str, template: str) -> list[str]:
    row = (published.MIDWAY | published.FINAL)[network, template]
    if measure == "instability":
        return [f"{value:.3f}" for value in (*row.by_category, row.average)]
    return [*[UNPUBLISHED] * len(CATEGORIES), f"{row.accuracy:.1f}"]


def _norm_table(index: Index) -> TableBlock:
    """Table 4, with a significance test that the paper does not have."""
    columns = ("model", "numbers", "L1-norm", "L2-norm", "improvement", "pairs", "p", "verdict")
    rows = []
    for network in _all_networks(index):
        if network in NETWORKS:
            printed = [f"{value:.3f}" for value in published.L1_AGAINST_L2[network]]
            rows.append([NETWORKS[network], PUBLISHED, *printed, *[UNPUBLISHED] * 3])
        pairs, marks = _norm_pairs(index, network)
        if not pairs:
            if network in NETWORKS:
                rows.append([NETWORKS[network], OURS, *[MISSING] * 3, "0", "-", "-"])
            continue
        p = sign_flip_p([l1 - l2 for l1, l2 in pairs]) if 1 < len(pairs) <= 40 else None
        l1, l2 = (spread(column).mean for column in zip(*pairs, strict=True))
        if p is None:
            verdict = "one pair"
        elif smallest_p(len(pairs)) >= SIGNIFICANCE_LEVEL:
            verdict = "too few pairs"
        else:
            verdict = "more than luck" if p < SIGNIFICANCE_LEVEL else "may be luck"
        numbers = [f"{l1:.4f}{_brackets(marks)}", f"{l2:.4f}{_brackets(marks)}", f"{l1 - l2:+.4f}"]
        rows.append([NETWORKS.get(network, network), OURS, *numbers, str(len(pairs)), p_words(p), verdict])
    caption = (
        "Share of the image diagonal; a positive improvement says that L2 is more stable. Ours: means over the pairs, "
        "the runs with equal category and seed; p of the exact sign-flip test over them, two-sided. The paper says of "
        "its improvements that they may be due to luck; it has one run of each."
    )
    title = "Table 4. Average location instability, L1 against L2"
    return TableBlock("table4", title, caption, Table(columns, rows, columns[2:7]))


def _norm_pairs(index: Index, network: str) -> tuple[list[tuple[float, float]], list[str]]:
    """Pairs (L1, L2) of equal category and seed, and the marks of their settings."""
    pairs: list[tuple[float, float]] = []
    marks: dict[str, None] = {}
    for category in CATEGORIES:
        l1, l2 = (_shown(index, network, norm, category) for norm in ("l1", "l2"))
        if l1 and l2:
            by_seed_l1, by_seed_l2 = l1.group.values("instability"), l2.group.values("instability")
            common = [(value, by_seed_l2[seed]) for seed, value in by_seed_l1.items() if seed in by_seed_l2]
            pairs += common
            marks |= dict.fromkeys((*l1.marks, *l2.marks)) if common else {}
    return pairs, list(marks)


def _zhang_key(run: ReportedRun) -> tuple[str, ...] | None:
    template, animals, kind = zhang_template(run.params), animal_categories(run.params), run.params.get("data.kind")
    if template is None or kind is None:
        return None
    photographed = "voc_part" if kind == "drawn_animals" else kind
    several = "several" if len(animals) > 1 else "one"
    return (run.params.get("model.network", "?"), template, photographed, several, ", ".join(animals))


def _zhang_table(experiments: Sequence[Experiment]) -> TableBlock:
    index = index_settings(experiments, _zhang_key)
    columns = ("measure", "network", "original", "original, ours", "interpretable", "interpretable, ours")
    rows = []
    for key, (title, measure, kind) in ZHANG_TABLES.items():
        printed = cast("Mapping[str, published.Zhang]", published.ZHANG[key])
        digits = 2 if measure == "accuracy" else 3
        several = "several" if "several" in key else "one"
        others = sorted({setting[0] for setting in index if setting[2:4] == (kind, several)} - set(printed))
        for network in (*printed, *others):
            theirs = [f"{value:.{digits}f}" for value in printed[network]] if network in printed else [UNPUBLISHED] * 2
            ours = [_zhang_cell(index, network, which, kind, several, measure) for which in published.Zhang._fields]
            if network in printed or any(not cell.startswith(MISSING) for cell in ours):
                rows.append([title, NETWORKS.get(network, network), theirs[0], ours[0], theirs[1], ours[1]])
    caption = (
        "Instability as a share of the image diagonal, accuracy per cent, part interpretability as a share of images. "
        "Interpretable: the template of Zhang et al. (gradient, L1, beta 4) or that of their code (released). Over "
        "VOC Part's single categories and over those of ILSVRC ours is the mean of the categories trained, their "
        "number behind it."
    )
    title = "Zhang et al., CVPR 2018: original and interpretable networks"
    return TableBlock("zhang", title, caption, Table(columns, rows, columns[2:]))


def _zhang_cell(index: Index, network: str, template: str, kind: str, several: str, metric: str) -> str:
    """Our number; the mean over the categories if several were trained."""
    key = (network, template, kind, several)
    settings = [candidates[0] for candidate_key, candidates in index.items() if candidate_key[:4] == key]
    measured = [(setting, spread_) for setting in settings if (spread_ := measured_spread(setting, metric)) is not None]
    if len(measured) < 2:
        text = format_cell(measured[0][0] if measured else next(iter(settings), None), metric)
        is_one = bool(measured) and several == "one"
        return text + (f" ({animal_categories(measured[0][0].runs[0].params)[0]})" if is_one else "")
    mean = spread([spread_.mean for _, spread_ in measured]).mean
    unit = "categories" if several == "one" else "sets of categories"
    marks = dict.fromkeys(mark for setting, _ in measured for mark in setting.marks)
    return f"{mean:.{_digits(metric)}f} ({len(measured)} {unit}){_brackets(marks)}"
