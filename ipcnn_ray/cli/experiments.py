"""Experiments from Python, with what the commands do: submit one, read its runs, load a model.

It is in `cli/` because it shows progress and logs, as the commands do, which call it.
"""

from __future__ import annotations

import os
from contextlib import ExitStack, closing
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from rich.console import Console

from ipcnn_ray.cli import output
from ipcnn_ray.cli.jobs import log_file, start_job
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.report.experiment_record import find_runs
from ipcnn_ray.report.experiment_result import ExperimentResult, runs_frame
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import Loaded, Source, load
from ipcnn_ray.spec.runs import experiment_id
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking import open_tracker
from ipcnn_ray.tracking.run_summary import RunSummary
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import printable, shortened_list

if TYPE_CHECKING:
    import pandas

    from ipcnn_ray.on_ray.events import Event
    from ipcnn_ray.on_ray.submission import Outcome
    from ipcnn_ray.train.final_model import Classifier
    from ipcnn_ray.train.run_metadata import RunRequest


def submit(
    spec: str | PathLike[str] | Loaded | ExperimentSpec,
    address: str | None = None,
    *,
    fresh: bool = False,
    wait: float = 30.0,
    detach: bool = False,
    progress: bool = True,
) -> ExperimentResult:
    """Train an experiment to its end, as `ipcnn submit` does, and return its ranked runs and verdicts.

    Checks, data, runs, stored models, rankings, the record and the log of `ipcnn logs` are the same. Submitted again,
    by this function or the command, the experiment goes on where it stopped, and trains nothing if it has ended::

        result = ipcnn_ray.submit(ipcnn_ray.load_spec("specs/uniform_sweep.yaml", {"train.epochs": 4}))
        print(result.best.metrics["landmark_tracking"], result.verdict)

    Args:
        spec: A spec, or the path of its file. Paths of data, weights, runs and record are those of the environment
            (IPCNN_HOME, IPCNN_DATA, IPCNN_WEIGHTS, IPCNN_STORAGE, MLFLOW_TRACKING_URI).
        address: Address of a cluster's dashboard, http://host:8265: the experiment is submitted as a job, whose log is
            followed, and its result read from the record. Default: this machine, whatever IPCNN_ADDRESS says.
        fresh: Train everything again, beside what was recorded.
        wait: Minutes that a cluster may take to have room for a run.
        detach: With an address: return at once, a result without runs; `runs` reads them later.
        progress: Show progress on stderr, or with an address the log of the job on stdout.

    Raises:
        IpcnnError: The request is wrong, or the experiment cannot run; its subclasses SpecError, DataError,
            TrackingError, ResourceError and TrainingError say which, as of `run_submission`. A run that fails does not
            raise: its state is `failed`.
        Interrupted: Somebody stopped the experiment.
    """
    loaded = spec if isinstance(spec, Loaded) else _loaded(spec)
    if address is not None:
        return _submit_to_cluster(address, loaded.spec, fresh=fresh, wait=wait, detach=detach, progress=progress)
    if detach:
        raise IpcnnError("detach = True is for a cluster\nGive its address, or leave detach out.")
    return submit_here(loaded, Paths.from_environment(), fresh=fresh, wait=wait, progress=progress)


def submit_here(
    loaded: Loaded,
    paths: Paths,
    *,
    fresh: bool = False,
    wait: float = 30.0,
    progress: bool = True,
    ray_address: str | None = None,
) -> Outcome:
    """Train an experiment from this process, with progress on stderr and in the experiment's log file.

    wait: Minutes that a cluster may take to have room for a run. ray_address: `auto` for the Ray cluster of this
    machine; by default an embedded Ray is started. Raises what `run_submission` raises.
    """
    from ipcnn_ray.cli.live import Progress
    from ipcnn_ray.on_ray.submission import run_submission

    paths.make_home()
    epochs, goals = loaded.spec.train.epochs, _objectives(loaded.spec).goals
    with ExitStack() as stack:
        log = stack.enter_context(closing(_LogFile(log_file(experiment_id(loaded.spec), paths))))
        consoles = [Console(file=cast("IO[str]", log), width=200), *([output.stderr] if progress else [])]
        displays = [stack.enter_context(Progress(console, epochs, goals)) for console in consoles]

        def report(event: Event) -> None:
            for display in displays:
                display(event)

        return run_submission(loaded, paths, listener=report, fresh=fresh, address=ray_address, wait=60 * wait)


def runs(experiment: str) -> pandas.DataFrame:
    """Return the recorded runs of an experiment as a table, one row for each run, its id as the index.

    Columns: label, group, seed, template, origin, state, cause, started, ended; each metric under its name (see
    `ipcnn_ray.FilterMetrics` and the README for units); every field of the spec by its dotted path, as text.

    experiment: Name or id of an experiment, or id of a run, in the record of the environment (MLFLOW_TRACKING_URI).
    Of a name, all experiments that were submitted with it, newest first.
    Raises IpcnnError if nothing is recorded under it, TrackingError if the record cannot be read.
    """
    found = find_runs(open_tracker(Paths.from_environment()), experiment)
    return runs_frame([run for _, recorded in found for run in recorded])


def load_model(run: str | RunSummary) -> Classifier:
    """Return the trained network of a recorded run, with its input normalisation, in evaluation mode on the CPU.

    It maps RGB crops, [N, 3, S, S] float with values 0..255, to logits, [N], or [N, L] for L categories; a positive
    logit means that the crop shows the category. Its `categories` are the names of the L columns, its `image_size` is
    S, and `maps` returns the maps of the interpretable layers::

        model = ipcnn_ray.load_model(ipcnn_ray.submit("specs/uniform_sweep.yaml").best)
        probability = model(crops).sigmoid()

    Its `explain` takes a photograph and returns an `Explanation`: the score of each category, and of each filter that
    fires where it fires and what it followed in training::

        said = model.explain("new.jpg")
        print(said.decision, [(fired.landmark, fired.x, fired.y) for fired in said.strongest(3)])

    run: A run of a result, or the id of a run as `runs` lists it, or of an experiment with a single run. Its weights
    are read from the storage of the environment (IPCNN_STORAGE).
    Raises IpcnnError if it is not recorded, is one of several, or has failed; TrainingError if it has not ended, or its
    weights are not in the storage.
    """
    from ipcnn_ray.train.final_model import final_model

    return final_model(request_of(run))[0]


def request_of(run: str | RunSummary) -> RunRequest:
    """Return the request of a recorded run, from which its model is loaded. run, errors: see `load_model`."""
    from ipcnn_ray.train.run_metadata import experiment_spec_of, recorded_request

    paths, wanted = Paths.from_environment(), run if isinstance(run, str) else run.run_id
    tracker = open_tracker(paths)
    (parent, recorded), *_ = find_runs(tracker, wanted)
    if len(recorded) > 1:
        names = shortened_list([one.run_id for one in recorded], 6)
        raise IpcnnError(f"{wanted} has {len(recorded)} runs\nGive the id of one: {names}.")
    if recorded[0].state == "failed":
        cause = f": {recorded[0].cause}" if recorded[0].cause else ""
        raise IpcnnError(f"run {recorded[0].run_id} has failed{cause}\nSubmit the experiment again: it goes on.")
    return recorded_request(experiment_spec_of(tracker, parent), paths, parent, recorded[0])


def _loaded(spec: str | PathLike[str] | ExperimentSpec) -> Loaded:
    return Loaded(spec, Source(spec.name)) if isinstance(spec, ExperimentSpec) else load(spec)


def _submit_to_cluster(
    address: str, spec: ExperimentSpec, *, fresh: bool, wait: float, detach: bool, progress: bool
) -> ExperimentResult:
    from ipcnn_ray.on_ray.tuner import Interrupted

    identity = experiment_id(spec)
    client, job, _ = start_job(address, spec, fresh=fresh, wait=wait)
    if detach:
        return ExperimentResult(identity, (), (), _objectives(spec))
    for piece in client.logs(job.id, follow=True):
        if progress:
            output.stdout.out(printable(piece), end="", highlight=False)
    job = client.job(job.id)
    if job.state == "stopped":
        raise Interrupted
    paths = Paths.from_environment()
    uri = paths.tracking_uri if os.environ.get("MLFLOW_TRACKING_URI") else job.record or paths.tracking_uri
    (parent, recorded), *_ = find_runs(open_tracker(replace(paths, tracking_uri=uri)), identity)
    result = ExperimentResult.of(identity, recorded, Objectives.from_tags(parent.tags))
    if job.state == "failed" and not (parent.state == "succeeded" and result.failed):
        raise IpcnnError(f"{job.id} has failed: {job.cause}\nSubmit it again: it goes on from its last epoch.")
    return result


def _objectives(spec: ExperimentSpec) -> Objectives:
    return Objectives.of(spec.search, landmarks=bool(spec.data.landmarks))


class _LogFile:
    """The file that `ipcnn logs` shows; created by its first line, so that a refused spec leaves none."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def write(self, text: str) -> int:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a", encoding="utf-8", buffering=1)
        return self._file.write(text)

    def flush(self) -> None:
        """Lines are written as they come."""

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
