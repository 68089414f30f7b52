"""Chapters of a report on one experiment: overview, ranking, search and cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from ipcnn_ray.report.document import Block, Chapter, GalleryBlock, Paragraphs, SourceBlock, TableBlock
from ipcnn_ray.report.error_curves import convergence_chapter
from ipcnn_ray.report.experiment_record import KINDS, MARKS, Experiment, ReportedRun
from ipcnn_ray.report.gallery import RunGallery
from ipcnn_ray.report.ranking import Group, without_landmarks
from ipcnn_ray.report.ranking_table import HEADS, Ranking, Table, number, spread_words
from ipcnn_ray.report.search_figures import (
    beta_gamma_figure,
    importance_figure,
    objective_figure,
    parallel_coordinates,
    rank_correlations,
    trials_of,
)
from ipcnn_ray.report.tradeoff import tradeoff_chapter
from ipcnn_ray.report.verdict import Verdicts, landmark_counts
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.spec.search import metric_info
from ipcnn_ray.tracking.tracker import RecordedRun
from ipcnn_ray.utils.text import counted, parse_number

WARNED = ("d", "w", "u")
"""Marks of runs that are warned of at the top of a report."""
Importances = Mapping[str, Mapping[str, float] | None]
"""Goal -> importance of each searched field; None if there are too few trials."""


def search_goals(experiment: Experiment) -> list[str]:
    """Goals that at least one trial has a value of. Without any, as without a control: instability."""
    trials = experiment.trials
    goals = [goal for goal in experiment.objectives.goals if any(goal in group.means for group in trials)]
    return goals or (["instability"] if any("instability" in group.means for group in trials) else [])


def experiment_chapters(
    experiment: Experiment, importances: Importances, gallery: Sequence[RunGallery] = ()
) -> list[Chapter]:
    """All chapters on one experiment. gallery: the runs whose filters are shown."""
    chapters = [
        verdict_chapter(experiment),
        overview_chapter(experiment),
        ranking_chapter(experiment),
        filters_chapter(gallery),
        convergence_chapter(experiment),
        tradeoff_chapter(experiment),
        search_chapter(experiment, importances),
        cost_chapter(experiment),
    ]
    first, *others = [chapter for chapter in chapters if chapter is not None]
    return [replace(first, starts_line=True), *others]


def warnings(experiment: Experiment) -> list[str]:
    """Caveats to all numbers, such as `12 of 12 runs: drawn images, not photographs.`"""
    counts = Counter(mark for run in experiment.runs for mark in run.marks)
    total = len(experiment.runs)
    return [f"{counts[mark]} of {total} runs: {MARKS[mark]}." for mark in WARNED if counts[mark]]


def overview_chapter(experiment: Experiment) -> Chapter:
    """The search and its objectives, and the data, code and hardware of the runs."""
    objectives, parent, runs = experiment.objectives, experiment.parent, experiment.runs
    asked = f"ranked by {', '.join(objectives.goals)}"
    if objectives.constraints:
        asked += f"; bounds: {', '.join(map(str, objectives.constraints))}"
    asked += f"; control: {objectives.control}" if objectives.control else ""
    search = experiment.search
    kind = str(search.get("kind", "a single run"))
    if search.get("algorithm"):
        kind += f" ({search['algorithm']}, {search.get('trials')} trials)"
    if (repeats := search.get("repeats", 1)) > 1:
        kind += f", {repeats} seeds each"
    everything = [parent, *runs]
    dirty = _values(everything, "code.dirty")
    packages = [f"{name} {_values(runs, f'env.{name}')}" for name in ("python", "torch", "ray", "mlflow")]
    started = "-" if parent.started is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(parent.started))
    rows = [
        ["experiment", experiment.name],
        ["state", parent.state + (f": {parent.cause}" if parent.cause else "")],
        ["asked", f"{kind}, {asked}"],
        ["varied", ", ".join(experiment.searched) or "nothing beside the named runs"],
        ["runs", _count_states(runs)],
        ["network", _values(runs, "model.network", "params")],
        ["data", f"{_values(runs, 'data.kind', 'params')}, {_values(runs, 'data.category', 'params')}"],
        ["data digest", _values(everything, "data.digest")],
        ["pretrained layers", _values(runs, "model.weights")],
        ["seeds", _values(runs, "ipcnn.seed")],
        ["code", f"version {_values(everything, 'code.version')}, commit {_values(everything, 'code.commit')}"],
        ["uncommitted changes", {"false": "none", "true": "yes"}.get(dirty, dirty)],
        ["packages", ", ".join(packages)],
        [
            "hardware",
            f"{_values(runs, 'host.cpu')}, {_values(runs, 'host.cores')} cores, GPU {_values(runs, 'host.gpu')}",
        ],
        ["precision", _values(runs, "ipcnn.precision")],
        ["begun", started],
    ]
    blocks: list[Block] = []
    if caveats := warnings(experiment):
        blocks.append(Paragraphs(tuple(f"Note: {caveat}" for caveat in caveats)))
    caption = "As recorded when the runs were trained; several values stand where the runs differ."
    blocks.append(TableBlock("asked", "What was asked, and from what", caption, Table(("what", "value"), rows, ())))
    if experiment.spec_text:
        blocks.append(SourceBlock("The resolved spec", experiment.spec_text))
    return Chapter(f"Experiment {experiment.name}", blocks)


def _values(runs: Sequence[RecordedRun], key: str, source: str = "tags") -> str:
    """The distinct values of a tag or parameter; `source` is the attribute of the runs that holds it."""
    values = list(dict.fromkeys(value for run in runs if (value := getattr(run, source).get(key))))
    shown = values[:6] + ([f"and {len(values) - 6} more"] if len(values) > 6 else [])
    return ", ".join(shown) or "not recorded"


def _count_states(runs: Sequence[RecordedRun]) -> str:
    """`3 succeeded, 1 failed`"""
    return ", ".join(f"{count} {state}" for state, count in Counter(run.state for run in runs).items())


def verdict_chapter(experiment: Experiment) -> Chapter | None:
    """The verdict on each setting; None if there is nothing to say."""
    lines = Verdicts.of(experiment.ranking).lines
    return Chapter("Verdict", [Paragraphs(tuple(lines))]) if lines else None


def ranking_chapter(experiment: Experiment) -> Chapter:
    """The settings, best first, the tests of their differences, and why runs did not succeed."""
    ranking = experiment.ranking
    control = ranking.objectives.control
    caption = f"Settings, best first{f'; the control is {control}' if control else ''}."
    if any(group.order == 2 for group in ranking.groups):
        caption += (
            " Those that were stopped stand below the others, whatever their numbers: these are of their last epoch."
        )
    headline = ranking.headline()
    blocks: list[Block] = [Paragraphs((headline,))] if headline else []
    blocks.append(TableBlock("ranking", "Settings", caption, ranking.table()))
    blocks += filter(None, (landmarks_table(ranking), measures_table(ranking)))
    for table in ranking.luck():
        head = table.columns[0]
        measure = next((name for name, shown in HEADS.items() if shown == head), head)
        caption = "Mean of the differences paired by seed, ± their standard deviation; p as explained below."
        blocks.append(TableBlock(f"luck_{measure}", f"May the differences in {head} be luck?", caption, table))
    causes = ranking.causes()  # a table here, so they are left out of the notes
    blocks.append(Paragraphs(tuple(line for line in ranking.notes() if line not in causes)))
    if rows := [[run.label, run.template, run.state, run.cause] for run in experiment.runs if run.cause]:
        table = Table(("run", "template", "state", "why"), rows, ())
        blocks.append(TableBlock("causes", "Runs that did not end, and why", "As the runs recorded it.", table))
    return Chapter("Ranking", blocks)


def filters_chapter(gallery: Sequence[RunGallery]) -> Chapter | None:
    """The filters of some runs; None without any."""
    runs = tuple(run for run in gallery if run.filters)
    if not runs:
        return None
    caption = (
        "Each card is a filter of the measured layer with its strongest images; the cross is its peak, "
        "dots are landmarks, and a line goes from the peak to the landmark that it follows: a filter that follows has "
        "lines of one length and direction. Tracking: share of the variance of the landmark's place that the peak "
        "explains (1: all, 0: as a peak that never moves). Instability: share of the image diagonal, lower is more "
        "stable. Fires in: object images with a cell above the filter's top 0.5 %. Click a filter to see more of its "
        "images, larger. Tracking and instability are those that the run recorded; filters.csv has them in full."
    )
    return Chapter("Filters", [GalleryBlock("filters", "What filters fire on", caption, runs)])


CAPTION_WITHOUT_LANDMARKS = (
    "Means over the filters of the measured layer; the data have no landmarks. Peaks apart: distance between the peaks "
    "of two filters in an image; spread: of one filter's peak over its images, 0 for one that never moves; both as "
    "shares of the image's side."
)


def landmarks_table(ranking: Ranking) -> TableBlock | None:
    """Whether the filters of each setting follow landmarks, without landmarks where they fire; None where it was not
    measured."""
    shown = [
        column
        for column in LANDMARK_COLUMNS
        if any(measure in group.means for group in ranking.groups for measure in column.measures)
    ]
    if not shown:
        return None
    heads = [column.head for column in shown]
    counts = {group.name: landmark_counts(group) for group in ranking.groups}
    rows = [[group.name, group.template, *(column.cell(group) for column in shown)] for group in ranking.groups]
    columns = ("run", "template", *heads)
    if any(counts.values()):
        columns = (*columns, "filters by landmark")
        rows = [[*row, _landmark_words(counts[row[0]])] for row in rows]
    caption = (
        "Means over the filters of the measured layer. Tracking: share of the variance of a landmark's place that the "
        "filter's peak explains, for its best landmark (1: at a fixed offset in every image, 0: as a peak that never "
        "moves), over its strongest images. Following: filters with a tracking above 0.3. In parentheses: the same "
        "filters with the landmarks of other images, which is chance. Few: over fewer of the strongest images. "
        "Landmarks: effective number of landmarks that the filters follow. Peaks apart: distance between the peaks of "
        "two filters in an image; spread: of one filter's peak over its images, small for one that never moves; both "
        "as shares of the image's side. Keypoint error: of landmarks that a linear regression predicts from all "
        "peaks, share of the side; in parentheses that of their mean position. Filters by landmark: how many follow it."
    )
    title = "Do filters follow landmarks?"
    if without_landmarks(ranking.groups):
        title, caption = "Where do filters fire?", CAPTION_WITHOUT_LANDMARKS
    return TableBlock("landmarks", title, caption, Table(columns, rows, tuple(heads)))


@dataclass(frozen=True)
class LandmarkColumn:
    """A column of `landmarks_table`: one or two metrics, and the baseline of the first in parentheses."""

    head: str
    measures: tuple[str, ...]
    baseline: str = ""

    def cell(self, group: Group) -> str:
        words = ", ".join(spread_words(measure, group.spreads.get(measure)) for measure in self.measures)
        if self.baseline not in group.means:
            return words
        return f"{words} ({number(self.baseline, group.means[self.baseline])})"


LANDMARK_COLUMNS = (
    LandmarkColumn("tracking ↑", ("landmark_tracking",), "landmark_tracking_shuffled"),
    LandmarkColumn("following ↑", ("following_share",), "following_share_shuffled"),
    LandmarkColumn("few: tracking, following ↑", ("landmark_tracking_few", "following_share_few")),
    LandmarkColumn("landmarks ↑", ("landmark_coverage",)),
    LandmarkColumn("peaks apart ↑", ("peak_distance",)),
    LandmarkColumn("spread", ("peak_spread",)),
    LandmarkColumn("keypoint error ↓", ("keypoint_error",), "keypoint_error_mean"),
)


def _landmark_words(counts: Mapping[str, float]) -> str:
    """`head 31.0, neck 0.5`"""
    return ", ".join(f"{name} {number('following', value)}" for name, value in counts.items()) or "-"


def measures_table(ranking: Ranking) -> TableBlock | None:
    """What the settings reach in the measures of `eval.measures`; None where none was taken."""
    names = (name for name in METRICS.names() if name not in EVERY_RUN)
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
    return TableBlock("measures", "Other measures of interpretability", caption, table)


def search_chapter(experiment: Experiment, importances: Importances) -> Chapter | None:
    """Figures of a grid or space search; None without one."""
    if not experiment.trials:
        return None
    blocks: list[Block] = []
    goals = search_goals(experiment)
    for goal in goals:
        name = f"{goal}_" if len(goals) > 1 else ""
        trials = trials_of(experiment, goal)
        blocks.append(objective_figure(experiment, trials, goal, name))
        if figure := parallel_coordinates(experiment, trials, goal, name):
            blocks.append(figure)
        if shares := importances.get(goal):
            ended = sum(trial.ended and trial.value is not None for trial in trials)
            blocks.append(importance_figure(shares, rank_correlations(trials, list(shares)), goal, ended, name))
        else:
            text = f"Importance for {goal}: not computed; it needs eight trials trained to the end."
            blocks.append(Paragraphs((text,)))
        if figure := beta_gamma_figure(experiment, goal, name):
            blocks.append(figure)
    if not blocks:
        blocks.append(Paragraphs(("No trial has a number.",)))
    blocks.append(savings_text([run for group in experiment.trials for run in experiment.by_group[group.name]]))
    return Chapter("Search", blocks)


def runs_csv(experiments: Sequence[Experiment]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of runs.csv: all parameters and the last value of all metrics, in full precision."""
    entries = [(experiment, run) for experiment in experiments for run in experiment.runs]
    params = sorted({key for _, run in entries for key in run.params})
    metrics = sorted({key for _, run in entries for key in run.metrics})
    header = ["run", "experiment", "state", "why", "template", "marks", *params, *metrics]
    rows = []
    for experiment, run in entries:
        identity = [run.run_id, experiment.name, run.state, run.cause, run.template, " ".join(run.marks)]
        values = [run.params.get(key, "") for key in params]
        numbers = [repr(run.metrics[key]) if key in run.metrics else "" for key in metrics]
        rows.append([*identity, *values, *numbers])
    return header, rows


RETRY_CAUSES = {"lost": "worker or node lost", "memory": "out of memory", "error": "error in the code"}


@dataclass(frozen=True)
class ComputeHours:
    """Compute time of a run."""

    kind: str
    """Key of KINDS."""
    hours: float
    exact: bool
    """Whether the run recorded it; otherwise it is estimated from the seconds of its epochs."""


def compute_hours(run: ReportedRun) -> ComputeHours | None:
    """Hours of all workers, estimated from the recorded epochs if no total is recorded; None without any."""
    for kind in KINDS:
        if kind in run.metrics:
            return ComputeHours(kind, run.metrics[kind], True)
    if not run.seconds:
        return None
    workers = parse_number(run.tags.get("ipcnn.workers")) or parse_number(run.tags.get("ipcnn.compute.workers")) or 1
    device = "cpu" if run.tags.get("ipcnn.device", "cpu") == "cpu" else "gpu"
    names = f"ipcnn.{device}s_per_worker", f"ipcnn.compute.{device}s_per_worker"
    per_worker = next(filter(None, (parse_number(run.tags.get(name)) for name in names)), 1)
    total = sum(seconds for _, seconds in run.seconds)
    return ComputeHours(f"{device}_hours", total * workers * per_worker / 3600, False)


def wall_seconds(runs: Sequence[ReportedRun]) -> float | None:
    """Seconds from the first start to the last end; None if no times are recorded."""
    starts = [run.started for run in runs if run.started is not None]
    ends = [run.ended for run in runs if run.ended is not None]
    return max(ends) - min(starts) if starts and ends else None


def retries(run: ReportedRun) -> dict[str, int]:
    """Cause -> number of retries."""
    return {cause: int(parse_number(run.tags.get(f"ipcnn.attempts_{cause}")) or 0) for cause in RETRY_CAUSES}


def cost_chapter(experiment: Experiment) -> Chapter:
    """Hours, wall time, speed and retries of all runs."""
    runs = experiment.runs
    used = [hours for run in runs if (hours := compute_hours(run)) is not None]
    rates = [run.metrics["images_per_second"] for run in runs if "images_per_second" in run.metrics]
    wall = wall_seconds(runs)
    rows = [["runs", str(len(runs)), _count_states(runs)]]
    for kind, title in KINDS.items():
        if of_kind := [hours for hours in used if hours.kind == kind]:
            estimated = sum(not hours.exact for hours in of_kind)
            note = f"; {estimated} from the seconds of their epochs" if estimated else ""
            total = f"{sum(hours.hours for hours in of_kind):.4g}"
            rows.append([title, total, f"of {counted(len(of_kind), 'run')}{note}"])
    if len(used) < len(runs):
        rows.append(["runs of unknown cost", str(len(runs) - len(used)), "no finished epoch is recorded"])
    rows.append(["wall time", "-" if wall is None else duration(wall), "first start to last end, pauses included"])
    if rates:
        spread = f"median of {counted(len(rates), 'run')}; {min(rates):.4g} to {max(rates):.4g}"
        rows.append(["images per second", f"{median(rates):.4g}", f"training, last epoch of each run; {spread}"])
    by_run = [retries(run) for run in runs]
    rows += [
        [f"retries: {meaning}", str(sum(counts[cause] for counts in by_run)), ""]
        for cause, meaning in RETRY_CAUSES.items()
    ]
    devices = Counter(run.tags["ipcnn.device"] for run in runs if "ipcnn.device" in run.tags)
    rows.append(["devices", ", ".join(devices) or "-", ", ".join(counted(count, "run") for count in devices.values())])
    caption = "Hours are those of training and evaluation, of all workers together, without the time in a queue."
    table = Table(("what", "value", "note"), rows, ("value",))
    return Chapter("Cost", [TableBlock("cost", "What it took", caption, table)])


@dataclass(frozen=True)
class EarlyStoppingSavings:
    """Epochs and hours that early stopping saved."""

    pruned: int
    runs: int
    """Runs that were pruned or trained to the end."""
    epochs_trained: int
    epochs_saved: int
    hours_saved: float | None
    """At the pace of each pruned run; None if the pace of one is unknown."""
    kind: str = "cpu_hours"


def early_stopping_savings(runs: Sequence[ReportedRun]) -> EarlyStoppingSavings:
    """Savings over the sampled runs that were pruned or trained to the end."""
    counted = [run for run in runs if run.state in ("succeeded", "pruned")]
    trained = sum(int(run.metrics.get("epoch", 0)) for run in counted)
    pruned = [run for run in counted if run.state == "pruned"]
    epochs, total, kind, unknown = 0, 0.0, "cpu_hours", False
    for run in pruned:
        done, planned, used = run.metrics.get("epoch", 0.0), run.number("train.epochs"), compute_hours(run)
        epochs += 0 if planned is None else int(planned - done)
        if planned is None or used is None or not done:
            unknown = True
        else:
            kind, total = used.kind, total + used.hours / done * (planned - done)
    return EarlyStoppingSavings(len(pruned), len(counted), trained, epochs, None if unknown else total, kind)


def savings_text(runs: Sequence[ReportedRun]) -> Paragraphs:
    """The savings of early stopping, as sentences."""
    savings = early_stopping_savings(runs)
    if not savings.pruned:
        return Paragraphs(("Early stopping ended no trial.",))
    share, hours = savings.epochs_saved / (savings.epochs_trained + savings.epochs_saved), savings.hours_saved
    cost = "" if hours is None else f", about {hours:.3g} {KINDS[savings.kind]} at their own pace"
    return Paragraphs(
        (
            f"Early stopping ended {savings.pruned} of {savings.runs} trials: {savings.epochs_trained} epochs were "
            f"trained, {savings.epochs_saved} ({100 * share:.0f} %) were not{cost}. Trials that failed or were "
            "interrupted are not counted.",
        )
    )


def duration(seconds: float) -> str:
    """`1 h 05 min`, `5 min 20 s`, `12.3 s`"""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
