"""The chapters of one experiment: what was asked and from what, its ranking, its search."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from ipcnn_ray.report.document import Block, Chapter, Paragraphs, SourceBlock, TableBlock
from ipcnn_ray.report.error_curves import convergence_chapter
from ipcnn_ray.report.experiment_record import MARKS, Experiment, ReportedRun
from ipcnn_ray.report.ranking_table import HEADS, Ranking, Table, spread_words
from ipcnn_ray.report.search_figures import (
    beta_gamma_figure,
    history,
    importance_figure,
    parallel,
    rank_correlations,
    trials_of,
)
from ipcnn_ray.report.tradeoff import tradeoff_chapter
from ipcnn_ray.spec.extensions import INSTABILITY, METRICS
from ipcnn_ray.spec.objectives import metric_info
from ipcnn_ray.tracking.tracker import RecordedRun

WARNED = ("d", "w", "u")
"""Marks that stand at the head of a page as warnings."""
Importances = Mapping[str, Mapping[str, float] | None]
"""Goal -> importance of each searched field; None where it cannot be told."""


def search_goals(experiment: Experiment) -> list[str]:
    """Goals that any trial has a number for; instability where none has, as without a control."""
    trials = experiment.trials
    found = [goal for goal in experiment.objectives.goals if any(goal in group.means for group in trials)]
    return found or (["instability"] if any("instability" in group.means for group in trials) else [])


def experiment_chapters(experiment: Experiment, importances: Importances, prefix: str = "") -> list[Chapter]:
    """Everything that the page says of one experiment; `prefix` begins the names of its files."""
    chapters = [
        overview_chapter(experiment, prefix),
        ranking_chapter(experiment, prefix),
        convergence_chapter(experiment, prefix),
        tradeoff_chapter(experiment, prefix),
        search_chapter(experiment, importances, prefix),
        cost_chapter(experiment, prefix),
    ]
    return [part for part in chapters if part is not None]


def warnings(experiment: Experiment) -> list[str]:
    """What a reader must know before any number: `12 of 12 runs: drawn images, not photographs`."""
    counts = Counter(mark for run in experiment.runs for mark in run.marks)
    total = len(experiment.runs)
    return [f"{counts[mark]} of {total} runs: {MARKS[mark]}." for mark in WARNED if counts[mark]]


def overview_chapter(experiment: Experiment, prefix: str) -> Chapter:
    """What was asked, data and code."""
    objectives, parent, runs = experiment.objectives, experiment.parent, experiment.runs
    asked = f"ranked by {', '.join(objectives.goals)}"
    if objectives.constraints:
        asked += f"; bounds: {', '.join(map(str, objectives.constraints))}"
    asked += f"; control: {objectives.control}" if objectives.control else ""
    search = experiment.spec.get("search") or {}
    kind = str(search.get("kind", "a single run"))
    if search.get("algorithm"):
        kind += f" ({search['algorithm']}, {search.get('trials')} trials)"
    if (repeats := search.get("repeats", 1)) > 1:
        kind += f", {repeats} seeds each"
    states = Counter(run.state for run in runs)
    dirty = _values([parent, *runs], "code.dirty")
    rows = [
        ["experiment", experiment.name],
        ["state", parent.state + (f": {parent.cause}" if parent.cause else "")],
        ["asked", f"{kind}, {asked}"],
        ["varied", ", ".join(experiment.searched) or "nothing beside the named runs"],
        ["runs", ", ".join(f"{n} {state}" for state, n in states.items())],
        ["network", _values(runs, "model.network", "params")],
        ["data", _values(runs, "data.kind", "params") + ", " + _values(runs, "data.category", "params")],
        ["data digest", _values([parent, *runs], "data.digest")],
        ["pretrained layers", _values(runs, "model.weights")],
        ["seeds", _values(runs, "ipcnn.seed")],
        [
            "code",
            f"version {_values([parent, *runs], 'code.version')}, commit {_values([parent, *runs], 'code.commit')}",
        ],
        ["uncommitted changes", {"false": "none", "true": "yes"}.get(dirty, dirty)],
        [
            "packages",
            ", ".join(f"{name} {_values(runs, f'env.{name}')}" for name in ("python", "torch", "ray", "mlflow")),
        ],
        [
            "hardware",
            f"{_values(runs, 'host.cpu')}, {_values(runs, 'host.cores')} cores, GPU {_values(runs, 'host.gpu')}",
        ],
        ["precision", _values(runs, "ipcnn.precision")],
        ["begun", "-" if parent.started is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(parent.started))],
    ]
    blocks: list[Block] = []
    if told := warnings(experiment):
        blocks.append(Paragraphs(tuple(f"Note: {line}" for line in told)))
    caption = "As recorded when the runs were trained; several values stand where the runs differ."
    blocks.append(
        TableBlock(f"{prefix}asked", "What was asked, and from what", caption, Table(("what", "value"), rows, ()))
    )
    if experiment.spec_text:
        blocks.append(SourceBlock("The resolved spec", experiment.spec_text))
    return Chapter(f"Experiment {experiment.name}", blocks)


def _values(runs: Sequence[RecordedRun], key: str, where: str = "tags") -> str:
    """All values that the runs have, each once."""
    found = list(dict.fromkeys(one for run in runs if (one := getattr(run, where).get(key))))
    shown = found[:6] + ([f"and {len(found) - 6} more"] if len(found) > 6 else [])
    return ", ".join(shown) or "not recorded"


def ranking_chapter(experiment: Experiment, prefix: str) -> Chapter:
    """The settings best first, and what of their differences may be luck."""
    ranking = experiment.ranking
    caption = "Settings, best first" + (
        f"; the control is {ranking.objectives.control}." if ranking.objectives.control else "."
    )
    if any(group.order == 2 for group in ranking.groups):
        caption += (
            " Those that were stopped stand below the others, whatever their numbers: these are of their last epoch."
        )
    headline = ranking.headline()
    blocks: list[Block] = [Paragraphs((headline,))] if headline else []
    blocks.append(TableBlock(f"{prefix}ranking", "Settings", caption, ranking.table()))
    blocks += [table for table in (measures_table(ranking, prefix),) if table]
    for table in ranking.luck():
        head = table.columns[0]
        measure = next((name for name, shown in HEADS.items() if shown == head), head)
        caption = "Mean of the differences paired by seed, ± their standard deviation; p as explained below."
        blocks.append(TableBlock(f"{prefix}luck_{measure}", f"May the differences in {head} be luck?", caption, table))
    told, causes = ranking.causes(), [run for run in experiment.runs if run.cause]
    blocks.append(Paragraphs(tuple(line for line in ranking.notes() if line not in told)))
    if causes:
        rows = [[run.label, run.template, run.state, run.cause] for run in causes]
        table = Table(("run", "template", "state", "why"), rows, ())
        blocks.append(
            TableBlock(f"{prefix}causes", "Runs that did not end, and why", "As the runs recorded it.", table)
        )
    return Chapter("Ranking", blocks)


def measures_table(ranking: Ranking, prefix: str) -> TableBlock | None:
    """What the settings reach in the other measures of interpretability; None where none was taken."""
    names = (name for name in METRICS.names() if name != INSTABILITY)
    infos = {name: metric_info(name) for name in names if any(name in group.means for group in ranking.groups)}
    if not infos:
        return None
    marks = {name: f"{name} {'↑' if info.better == 'higher' else '↓'}" for name, info in infos.items()}
    rows = [
        [group.name, group.template, *(spread_words(name, group.spreads.get(name)) for name in infos)]
        for group in ranking.groups
    ]
    meanings = ". ".join(f"{name}, {info.unit}: {info.description}" for name, info in infos.items())
    caption = (
        "Means over filters, in the order of the ranking; ↑: higher is better, ↓: lower is better. "
        f"A measure that is the same for all settings tells nothing apart. {meanings}."
    )
    table = Table(("run", "template", *marks.values()), rows, tuple(marks.values()))
    return TableBlock(f"{prefix}measures", "Other measures of interpretability", caption, table)


def search_chapter(experiment: Experiment, importances: Importances, prefix: str) -> Chapter | None:
    """What a grid or a space found; None without one."""
    if not experiment.trials:
        return None
    blocks: list[Block] = []
    for goal in search_goals(experiment):
        name = f"{prefix}{goal}_" if len(search_goals(experiment)) > 1 else prefix
        trials = trials_of(experiment, goal)
        blocks.append(history(experiment, trials, goal, name))
        blocks += [plot for plot in (parallel(experiment, trials, goal, name),) if plot]
        if shares := importances.get(goal):
            ended = sum(trial.ended and trial.value is not None for trial in trials)
            blocks.append(importance_figure(shares, rank_correlations(trials, list(shares)), goal, ended, name))
        else:
            blocks.append(Paragraphs((f"Importance for {goal}: not told; it needs eight trials trained to the end.",)))
        blocks += [plot for plot in (beta_gamma_figure(experiment, goal, name),) if plot]
    if not blocks:
        blocks.append(Paragraphs(("No trial has a number.",)))
    blocks.append(savings_text([run for group in experiment.trials for run in experiment.by_group[group.name]]))
    return Chapter("Search", blocks)


def runs_csv(experiments: Sequence[Experiment]) -> tuple[list[str], list[list[str]]]:
    """Every run with every parameter and the last value of every metric, in full precision: head and rows."""
    entries = [(experiment, run) for experiment in experiments for run in experiment.runs]
    params = sorted({key for _, run in entries for key in run.params})
    metrics = sorted({key for _, run in entries for key in run.metrics})
    head = ["run", "experiment", "state", "why", "template", "marks", *params, *metrics]
    rows = []
    for experiment, run in entries:
        first = [run.run_id, experiment.name, run.state, run.cause, run.template, " ".join(run.marks)]
        values: list[Any] = [run.params.get(key, "") for key in params]
        numbers = [repr(run.metrics[key]) if key in run.metrics else "" for key in metrics]
        rows.append([*first, *values, *numbers])
    return head, rows


CAUSES = {"lost": "worker or node lost", "memory": "out of memory", "error": "error in the code"}
KINDS = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}


@dataclass(frozen=True)
class ComputeHours:
    """What a run used."""

    kind: str
    """Key of KINDS."""
    hours: float
    exact: bool
    """The run recorded it; else it follows from the seconds of its epochs."""


def compute_hours(run: ReportedRun) -> ComputeHours | None:
    """None where the record does not say; of a run that did not end, what its recorded epochs took."""
    for kind in KINDS:
        if kind in run.metrics:
            return ComputeHours(kind, run.metrics[kind], True)
    if not run.seconds:
        return None
    workers = _tag(run, "ipcnn.workers") or _tag(run, "ipcnn.compute.workers") or 1
    on_gpu = run.tags.get("ipcnn.device", "cpu") != "cpu"
    each = (_tag(run, "ipcnn.compute.gpus_per_worker" if on_gpu else "ipcnn.compute.cpus_per_worker")) or 1
    total = sum(seconds for _, seconds in run.seconds)
    return ComputeHours("gpu_hours" if on_gpu else "cpu_hours", total * workers * each / 3600, False)


def _tag(run: ReportedRun, key: str) -> float | None:
    try:
        return float(run.tags[key])
    except (KeyError, ValueError):
        return None


def wall_seconds(runs: Sequence[ReportedRun]) -> float | None:
    """From the first start to the last end; None where the record has no times."""
    starts = [run.started for run in runs if run.started is not None]
    ends = [run.ended for run in runs if run.ended is not None]
    return max(ends) - min(starts) if starts and ends else None


def retries(run: ReportedRun) -> dict[str, int]:
    """Cause -> attempts that were begun again because of it."""
    return {cause: int(_tag(run, f"ipcnn.attempts_{cause}") or 0) for cause in CAUSES}


def cost_chapter(experiment: Experiment, name: str) -> Chapter:
    used = {run.run_id: compute_hours(run) for run in experiment.runs}
    known = [one for one in used.values() if one is not None]
    rates = [run.metrics["images_per_second"] for run in experiment.runs if "images_per_second" in run.metrics]
    wall = wall_seconds(experiment.runs)
    again = Counter[str]()
    for run in experiment.runs:
        again.update(retries(run))
    states = Counter(run.state for run in experiment.runs)
    rows = [["runs", str(len(experiment.runs)), ", ".join(f"{n} {state}" for state, n in states.items())]]
    for kind, title in KINDS.items():
        mine = [one for one in known if one.kind == kind]
        if mine:
            guessed = sum(not one.exact for one in mine)
            note = f"of {_runs(len(mine))}" + (f"; {guessed} from the seconds of their epochs" if guessed else "")
            rows.append([title, f"{sum(one.hours for one in mine):.4g}", note])
    if len(known) < len(experiment.runs):
        rows.append(["runs of unknown cost", str(len(experiment.runs) - len(known)), "no finished epoch is recorded"])
    rows.append(["wall time", "-" if wall is None else duration(wall), "first start to last end, pauses included"])
    if rates:
        spread = f"median of {_runs(len(rates))}; {min(rates):.4g} to {max(rates):.4g}"
        rows.append(["images per second", f"{median(rates):.4g}", f"training, last epoch of each run; {spread}"])
    rows += [[f"retries: {words}", str(again[cause]), ""] for cause, words in CAUSES.items()]
    devices = Counter(run.tags["ipcnn.device"] for run in experiment.runs if "ipcnn.device" in run.tags)
    rows.append(["devices", ", ".join(devices) or "-", ", ".join(map(_runs, devices.values()))])
    caption = "Hours are those of training and evaluation, of all workers together, without the time in a queue."
    table = TableBlock(f"{name}cost", "What it took", caption, Table(("what", "value", "note"), rows, ("value",)))
    return Chapter("Cost", [table])


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


@dataclass(frozen=True)
class EarlyStoppingSavings:
    """What early stopping did not train."""

    stopped: int
    runs: int
    """That could have been stopped or trained to the end."""
    epochs_trained: int
    epochs_saved: int
    hours_saved: float | None
    """At the pace of each stopped run; None where no pace is known."""
    kind: str = "cpu_hours"


def early_stopping_savings(runs: Sequence[ReportedRun]) -> EarlyStoppingSavings:
    """Over the runs that a search drew and that were stopped early or trained to their end."""
    counted = [run for run in runs if run.state in ("succeeded", "pruned")]
    trained = sum(int(run.metrics.get("epoch", 0)) for run in counted)
    epochs, total, kind, unknown = 0, 0.0, "cpu_hours", False
    for run in counted:
        if run.state != "pruned":
            continue
        done, planned, used = run.metrics.get("epoch", 0.0), run.number("train.epochs"), compute_hours(run)
        if planned is None:
            unknown = True
            continue
        epochs += int(planned - done)
        if used is None or not done:
            unknown = True
        else:
            kind, total = used.kind, total + used.hours / done * (planned - done)
    stopped = sum(run.state == "pruned" for run in counted)
    return EarlyStoppingSavings(stopped, len(counted), trained, epochs, None if unknown else total, kind)


def savings_text(runs: Sequence[ReportedRun]) -> Paragraphs:
    """What early stopping saved, in sentences."""
    found = early_stopping_savings(runs)
    if not found.stopped:
        return Paragraphs(("Early stopping ended no trial.",))
    share = found.epochs_saved / (found.epochs_trained + found.epochs_saved)
    cost = "" if found.hours_saved is None else f", about {found.hours_saved:.3g} {KINDS[found.kind]} at their own pace"
    return Paragraphs(
        (
            f"Early stopping ended {found.stopped} of {found.runs} trials: {found.epochs_trained} epochs were trained, "
            f"{found.epochs_saved} ({100 * share:.0f} %) were not{cost}. Trials that failed or were "
            "interrupted are not counted.",
        )
    )


def duration(seconds: float) -> str:
    """`1 h 05 min`, `5 min 20 s`, `12.3 s`"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
