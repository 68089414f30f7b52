"""The tables and the JSON of `ipcnn status`; apart from the command, so that no other one waits for its imports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, get_args

from ipcnn_ray.cli import output
from ipcnn_ray.report.experiment_record import by_experiment
from ipcnn_ray.report.ranking import rank, without_landmarks
from ipcnn_ray.report.ranking_table import causes, number
from ipcnn_ray.spec.search import COMBINED, Objectives
from ipcnn_ray.tracking.run_summary import State
from ipcnn_ray.tracking.tracker import RecordedRun, Tracker
from ipcnn_ray.tracking.tracking_uri import without_password

EXPERIMENT_COLUMNS = ("experiment", "state", "runs", "best", "combined", "why")
RUN_COLUMNS = ("run", "template", "state", "epoch", "instability", "error", "combined")
NUMBERS = ("epoch", "instability", "error", "combined")


def show_experiments(tracker: Tracker, json: bool) -> None:
    recorded = [entry for name in tracker.experiments() for entry in by_experiment(tracker.find(name))]
    if json:
        output.print_json(
            [
                {
                    "experiment": parent.run_id,
                    "handle": parent.handle,
                    "state": parent.state,
                    "why": parent.cause,
                    "runs": dict(Counter(run.state for run in trials)),
                }
                for parent, trials in recorded
            ]
        )
        return
    if not recorded:
        output.print_line(f"nothing is recorded yet in {without_password(tracker.uri)}")
        return
    output.print_table(EXPERIMENT_COLUMNS, [_experiment_row(*entry) for entry in recorded], right=NUMBERS)


def runs_json(parent: RecordedRun, runs: Sequence[RecordedRun]) -> list[dict[str, Any]]:
    """The runs, each with its setting: means, spreads, comparisons and verdict."""
    from ipcnn_ray.report.ranking_table import Ranking, as_json, comparison_json
    from ipcnn_ray.report.verdict import Verdicts

    ranking = Ranking.of(runs, Objectives.from_tags(parent.tags))
    groups = {group["group"]: group for group in as_json(ranking)["groups"]}
    verdicts = {verdict["setting"]: verdict for verdict in Verdicts.of(ranking).as_json()["verdicts"]}
    for name, group in groups.items():
        group["verdict"] = verdicts.get(name)
        comparisons = [c for c in (*ranking.against, *ranking.among) if name in (c.one, c.other)]
        group["comparisons"] = [comparison_json(comparison) for comparison in comparisons]
    return [
        {
            "run": run.run_id,
            "handle": run.handle,
            "state": run.state,
            "why": run.cause,
            "origin": run.origin,
            "template": run.template,
            "seed": run.seed,
            "metrics": dict(run.metrics),
            "group": groups[run.group],
        }
        for run in runs
    ]


def show_runs(chosen: Sequence[tuple[RecordedRun, list[RecordedRun]]]) -> None:
    """Print all runs, then the ranking of experiments with repeats, constraints or other goals than `combined`."""
    from ipcnn_ray.report.ranking_table import Ranking

    everything = [run for _, runs in chosen for run in runs]
    columns: tuple[str, ...] = RUN_COLUMNS
    rows = [_run_row(run) for run in everything]
    if without_landmarks([group for parent, runs in chosen for group in rank(runs, Objectives.from_tags(parent.tags))]):
        place = columns.index("instability")
        columns, rows = columns[:place] + columns[place + 1 :], [row[:place] + row[place + 1 :] for row in rows]
    output.print_table(columns, rows, right=NUMBERS)
    for line in causes(everything):
        output.print_paragraph(line)
    for parent, runs in chosen:
        objectives = Objectives.from_tags(parent.tags)
        ranking = Ranking.of(runs, objectives)
        if len(runs) > 1 and (ranking.repeated or objectives.constraints or objectives.goals != (COMBINED,)):
            output.print_line()
            output.print_line(parent.run_id, style="bold")
            output.print_ranking(ranking)


def _experiment_row(parent: RecordedRun, trials: Sequence[RecordedRun]) -> list[str]:
    counts = Counter(run.state for run in trials)
    states = ", ".join(f"{counts[state]} {state}" for state in get_args(State) if counts[state])
    winners = [group for group in rank(trials, Objectives.from_tags(parent.tags)) if group.wins]
    best = ", ".join(group.template for group in winners) or "-"
    combined = number(COMBINED, winners[0].means.get(COMBINED)) if len(winners) == 1 else "-"
    return [parent.run_id, parent.state, states, best, combined, parent.cause]


def _run_row(run: RecordedRun) -> list[str]:
    formats = {"epoch": ".0f", "instability": ".4f", "val_error": ".2%", "combined": ".3f"}
    numbers = [output.format_metric(run.metrics, metric, form) for metric, form in formats.items()]
    return [run.label, run.template, run.state, *numbers]
