"""What an experiment cost, and what early stopping saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from ipcnn_ray.report.blocks import Part, Text, Titled
from ipcnn_ray.report.ranking import Table
from ipcnn_ray.report.records import Entry, Experiment

CAUSES = {"lost": "worker or node lost", "memory": "out of memory", "error": "error in the code"}
KINDS = {"gpu_hours": "GPU-hours", "cpu_hours": "CPU-hours"}


@dataclass(frozen=True)
class Hours:
    """What a run used."""

    kind: str
    """Key of KINDS."""
    hours: float
    exact: bool
    """The run recorded it; else it follows from the seconds of its epochs."""


def hours(run: Entry) -> Hours | None:
    """None where the record does not say; of a run that did not end, what its recorded epochs took."""
    for kind in KINDS:
        if kind in run.metrics:
            return Hours(kind, run.metrics[kind], True)
    if not run.seconds:
        return None
    workers = _tag(run, "ipcnn.workers") or _tag(run, "ipcnn.compute.workers") or 1
    on_gpu = run.tags.get("ipcnn.device", "cpu") != "cpu"
    each = (_tag(run, "ipcnn.compute.gpus_per_worker" if on_gpu else "ipcnn.compute.cpus_per_worker")) or 1
    total = sum(seconds for _, seconds in run.seconds)
    return Hours("gpu_hours" if on_gpu else "cpu_hours", total * workers * each / 3600, False)


def _tag(run: Entry, key: str) -> float | None:
    try:
        return float(run.tags[key])
    except (KeyError, ValueError):
        return None


def wall_seconds(runs: Sequence[Entry]) -> float | None:
    """From the first start to the last end; None where the record has no times."""
    starts = [run.started for run in runs if run.started is not None]
    ends = [run.ended for run in runs if run.ended is not None]
    return max(ends) - min(starts) if starts and ends else None


def retries(run: Entry) -> dict[str, int]:
    """Cause -> attempts that were begun again because of it."""
    return {cause: int(_tag(run, f"ipcnn.attempts_{cause}") or 0) for cause in CAUSES}


def cost_part(experiment: Experiment, name: str) -> Part:
    used = {run.run_id: hours(run) for run in experiment.runs}
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
    table = Titled(f"{name}cost", "What it took", caption, Table(("what", "value", "note"), rows, ("value",)))
    return Part("Cost", [table])


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"


@dataclass(frozen=True)
class Saved:
    """What early stopping did not train."""

    stopped: int
    runs: int
    """That could have been stopped or trained to the end."""
    epochs_trained: int
    epochs_saved: int
    hours_saved: float | None
    """At the pace of each stopped run; None where no pace is known."""
    kind: str = "cpu_hours"


def saved(runs: Sequence[Entry]) -> Saved:
    """Over the runs that a search drew and that were stopped early or trained to their end."""
    counted = [run for run in runs if run.state == "succeeded" or run.stopped_early]
    trained = sum(int(run.metrics.get("epoch", 0)) for run in counted)
    epochs, total, kind, unknown = 0, 0.0, "cpu_hours", False
    for run in counted:
        if not run.stopped_early:
            continue
        done, planned, used = run.metrics.get("epoch", 0.0), run.number("train.epochs"), hours(run)
        if planned is None:
            unknown = True
            continue
        epochs += int(planned - done)
        if used is None or not done:
            unknown = True
        else:
            kind, total = used.kind, total + used.hours / done * (planned - done)
    stopped = sum(run.stopped_early for run in counted)
    return Saved(stopped, len(counted), trained, epochs, None if unknown else total, kind)


def saved_text(runs: Sequence[Entry]) -> Text:
    """What early stopping saved, in sentences."""
    found = saved(runs)
    if not found.stopped:
        return Text(("Early stopping ended no trial.",))
    share = found.epochs_saved / (found.epochs_trained + found.epochs_saved)
    cost = "" if found.hours_saved is None else f", about {found.hours_saved:.3g} {KINDS[found.kind]} at their own pace"
    return Text(
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
