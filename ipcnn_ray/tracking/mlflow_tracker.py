"""Tracker that records runs in MLflow. No other file imports mlflow, and this one only when a store is first used."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.tracking.run_summary import ENDED, State
from ipcnn_ray.tracking.storage import is_url
from ipcnn_ray.tracking.tracker import RecordedRun, RunRecord
from ipcnn_ray.tracking.tracking_uri import (
    absolute,
    check_reachable,
    create_store,
    exclusive_launcher,
    exists,
    is_server,
    store_error,
    without_password,
)
from ipcnn_ray.utils.text import shortened

STATUS: dict[State, str] = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "succeeded": "FINISHED",
    "failed": "FAILED",
    "pruned": "KILLED",
    "stopped": "KILLED",
}
DESCRIPTION = "mlflow.note.content"
"""Tag that MLflow shows as the description."""
TITLE = "ipcnn.title"
"""Tag that is also the run's name in MLflow: our ids start alike, and lists cut them off."""
COPIED_TAGS = {"code.commit": "mlflow.source.git.commit"}
"""Our tags that MLflow shows under a name of its own."""
SOURCE_TAGS = {"mlflow.source.name": "ipcnn submit", "mlflow.source.type": "LOCAL"}
"""MLflow shows the commit only beside a source."""

SHARED_VIEW = "mlflow.sharedViewState."
"""Prefix of the experiment tags in which MLflow keeps the views of its table of runs; the rest is the view's key."""
SHARED_VIEW_KEY = "viewStateShareKey"
"""Parameter of a page's address that names the view to open."""
RUN_NAME = "attributes.`Run Name`"
"""Column of that table that is always shown."""
RUN_NAME_WIDTH = 190
"""Pixels."""

CHECKS = "ipcnn_doctor"
"""Experiment of `check_record`."""
CLIENT_PACKAGES = {"mlflow", "requests", "urllib3", "boto3", "botocore", "s3transfer"}
"""Packages whose exceptions concern the tracking server or its artifact store."""

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout may be JSON
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default retries for minutes; BufferedTracker retries
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

Item = TypeVar("Item")


@functools.cache
def _mlflow() -> Any:
    os.environ.update(environment())
    import mlflow
    import mlflow.utils.validation

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # errors are raised as TrackingError
    return mlflow


def _limits() -> Any:
    """Return MLflow's module of limits: value lengths in characters, entries per request."""
    return _mlflow().utils.validation


def environment() -> dict[str, str]:
    """Return environment variables that turn off MLflow's telemetry and output. Variables that are set stay."""
    return {name: os.environ.get(name, value) for name, value in SETTINGS.items()}


def server_command(uri: str, port: int) -> list[str]:
    """Return the command that serves the MLflow UI of a store on 127.0.0.1."""
    options = {
        "--backend-store-uri": uri,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--workers": "1",
        "--uvicorn-opts": "--log-level warning",
    }
    return [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]


@contextmanager
def _store_errors(uri: str) -> Iterator[None]:
    """Raise errors of MLflow, and of its HTTP and S3 clients, as TrackingError."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in CLIENT_PACKAGES:
            raise
        raise store_error(uri, error) from error


@functools.lru_cache(maxsize=8)
def _client(uri: str) -> Any:
    """Open the store; return this process's client of it."""
    check_reachable(uri)
    try:
        client = _mlflow().MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise store_error(uri, error) from error
    return client


class MlflowTracker:
    """Tracker of an MLflow store: an SQLite database or a server. It pickles; each process opens its own client."""

    def __init__(self, uri: str, artifact_root: str | None = None) -> None:
        """
        Args:
            uri: sqlite:///FILE, or the address of a server.
            artifact_root: Folder or URL for the artifacts of new experiments. A server uses its own root unless this
                is a URL: then clients access that directly.
        """
        self.uri = absolute(uri)
        self.artifact_root = artifact_root

    def prepare(self, experiment: str, description: str = "") -> None:
        create_store(self.uri)
        with exclusive_launcher(self.uri), _store_errors(self.uri):
            client = _client(self.uri)
            entry = client.get_experiment_by_name(experiment)
            if entry is None:
                self._create_experiment(experiment)
                entry = client.get_experiment_by_name(experiment)
            if entry.lifecycle_stage != "active":
                raise TrackingError(
                    f"experiment {experiment} was deleted from the record at {without_password(self.uri)}\n"
                    f"Bring it back: mlflow experiments restore -x {entry.experiment_id}   or change the spec's name."
                )
            description = shortened(description, _limits().MAX_EXPERIMENT_TAG_VAL_LENGTH)
            if description and entry.tags.get(DESCRIPTION) != description:
                client.set_experiment_tag(entry.experiment_id, DESCRIPTION, description)

    def _create_experiment(self, experiment: str) -> None:
        location, root = None, self.artifact_root
        if root is not None and is_url(root):
            location = f"{root.rstrip('/')}/{experiment}"
        elif root is not None and not is_server(self.uri):
            location = f"{Path(root).expanduser().absolute().as_uri()}/{experiment}"
        tags = {"mlflow.experimentKind": "custom_model_development"}
        try:
            _client(self.uri).create_experiment(experiment, artifact_location=location, tags=tags)
        except _mlflow().exceptions.MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another launcher on the same server
                raise

    def open_parent(self, experiment: str, run_id: str, *, fresh: bool = False) -> RunRecord:
        return self.open_child(experiment, run_id, "", fresh=fresh)

    def attach(self, handle: str) -> RunRecord:
        return _MlflowRun(self.uri, handle)

    def flush(self, timeout: float = 0.0) -> int:
        return 0

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        if not exists(self.uri):
            return []
        with _store_errors(self.uri):
            entry = _client(self.uri).get_experiment_by_name(experiment)
            if entry is None or entry.lifecycle_stage != "active":
                return []
            query = f"tags.\"ipcnn.run\" = '{run_id}'" if run_id else "tags.\"ipcnn.run\" != ''"
            runs = [_recorded(run) for run in self._search(entry.experiment_id, query)]
        return [run for run in runs if "ipcnn.superseded" not in run.tags]

    def delete(self, handle: str) -> None:
        with _store_errors(self.uri):
            client = _client(self.uri)
            experiment = client.get_run(handle).info.experiment_id
            above = {
                run.info.run_id: {run.data.tags.get("mlflow.parentRunId"), run.data.tags.get("ipcnn.superseded")}
                for run in self._search(experiment, "tags.\"ipcnn.run\" != ''")
            }
            below = {handle}
            while more := {run for run, others in above.items() if others & below} - below:
                below |= more
            for run in sorted(below, key=lambda run: run == handle):
                for model in client.search_logged_models([experiment], filter_string=f"source_run_id = '{run}'"):
                    client.delete_logged_model(model.model_id)
                client.delete_run(run)

    def deleted(self) -> dict[str, str]:
        """Return the runs that are marked as deleted: the place of their artifacts by handle."""
        if not exists(self.uri):
            return {}
        with _store_errors(self.uri):
            client, both = _client(self.uri), _mlflow().entities.ViewType.ALL
            experiments = _all_pages(client.search_experiments, order_by=["creation_time DESC"], view_type=both)
            ids = [experiment.experiment_id for experiment in experiments]
            view, order = _mlflow().entities.ViewType.DELETED_ONLY, ["attributes.start_time DESC"]
            if not ids:
                return {}
            runs = _all_pages(client.search_runs, ids, "", order_by=order, run_view_type=view)
            return {run.info.run_id: run.info.artifact_uri or "" for run in runs}

    def purge(self) -> None:
        """Remove for good what is marked as deleted, by `mlflow gc`. Raises TrackingError, also for a server, whose
        database only its own machine can reach."""
        command = [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", self.uri, "--tracking-uri", self.uri]
        if is_server(self.uri):
            raise TrackingError(f"MLflow at {without_password(self.uri)}: run `mlflow gc` where the server runs")
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment()})
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise TrackingError(f"mlflow gc of {without_password(self.uri)} has failed: {shortened(last, 400)}")

    def experiments(self) -> list[str]:
        if not exists(self.uri):
            return []
        with _store_errors(self.uri):
            entries = list(_all_pages(_client(self.uri).search_experiments, order_by=["creation_time DESC"]))
        return [entry.name for entry in entries if entry.name != "Default"]

    def history(self, handle: str, metric: str) -> list[tuple[int, float]]:
        with _store_errors(self.uri):
            values = _client(self.uri).get_metric_history(handle, metric)
        return sorted((int(value.step), float(value.value)) for value in values)

    def read(self, handle: str, path: str) -> str | None:
        folder = path.rpartition("/")[0]
        with _store_errors(self.uri), tempfile.TemporaryDirectory() as temporary:
            artifacts = _client(self.uri).list_artifacts(handle, folder or None)
            if not any(artifact.path == path for artifact in artifacts):
                return None
            return Path(_client(self.uri).download_artifacts(handle, path, temporary)).read_text(encoding="utf-8")

    def save_view(
        self, experiment: str, key: str, tags: Sequence[str], metrics: Sequence[str], query: str, order_by: str
    ) -> str:
        """Save a view of MLflow's table of runs with the experiment; return the path of its page below the server's.

        Runs of the view are sorted by a metric, so MLflow lists them without their parent, and not folded below it.

        Args:
            key: Name of the view; one that is saved already is replaced.
            tags: Columns, before those of the metrics.
            query: Which runs to show, in MLflow's search syntax.
            order_by: Metric, the lowest value first.
        """
        names = {f"tags.`{name}`": name for name in tags} | {f"metrics.`{name}`": name for name in metrics}
        columns = {column: 9 * len(name) + 35 for column, name in names.items()}  # pixels; heads are not cut off
        state = {
            "selectedColumns": list(columns),
            "columnOrder": [RUN_NAME, *columns],
            "columnWidths": {RUN_NAME: RUN_NAME_WIDTH, **columns},
            "searchFilter": query,
            "orderByKey": f"metrics.`{order_by}`",
            "orderByAsc": True,
            "runsHiddenMode": "SHOW_ALL",
        }
        with _store_errors(self.uri):
            client = _client(self.uri)
            entry = client.get_experiment_by_name(experiment)
            # Newer versions read `state` and list the view by its name; earlier ones read the fields beside it.
            named = {
                "name": f"{experiment}-{key}",
                "createdAt": entry.creation_time,
                "state": json.dumps(state),
                **state,
            }
            value = json.dumps(named)
            if entry.tags.get(f"{SHARED_VIEW}{key}") != value:
                client.set_experiment_tag(entry.experiment_id, f"{SHARED_VIEW}{key}", value)
        return f"#/experiments/{entry.experiment_id}/runs?{SHARED_VIEW_KEY}={key}"

    def _search(self, experiment_id: str, query: str) -> Iterator[Any]:
        order = ["attributes.start_time DESC"]
        return _all_pages(_client(self.uri).search_runs, [experiment_id], query, order_by=order)

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> RunRecord:
        with exclusive_launcher(self.uri), _store_errors(self.uri):
            client = _client(self.uri)
            entry = client.get_experiment_by_name(experiment)
            if entry is None:
                raise TrackingError(
                    f"experiment {experiment} is not in the record\nPrepare the record before its runs."
                )
            recorded = self._search(entry.experiment_id, f"tags.\"ipcnn.run\" = '{run_id}'")
            current = [run.info.run_id for run in recorded if "ipcnn.superseded" not in run.data.tags]
            parent_tag = {"mlflow.parentRunId": parent} if parent else {}
            if current and not fresh:
                for key, value in parent_tag.items():
                    client.set_tag(current[0], key, value)
                return _MlflowRun(self.uri, current[0])
            tags = {"ipcnn.run": run_id, "ipcnn.state": "queued", **SOURCE_TAGS, **parent_tag}
            handle = client.create_run(entry.experiment_id, tags=tags, run_name=run_id).info.run_id
            client.update_run(handle, status=STATUS["queued"])
            for old in current:
                trials = self._search(entry.experiment_id, f"tags.\"mlflow.parentRunId\" = '{old}'")
                for superseded in [old, *(run.info.run_id for run in trials)]:
                    client.set_tag(superseded, "ipcnn.superseded", handle)
            return _MlflowRun(self.uri, handle)


def check_record(uri: str, artifacts: str | None, run_id: str) -> None:
    """Write, read, compare and delete a run with a metric and a file. `run_id` must be unique. Raises TrackingError."""
    tracker, value = MlflowTracker(uri, artifacts), 0.125
    tracker.prepare(CHECKS, "Runs that `ipcnn doctor` writes, reads back and deletes. It may be deleted for good.")
    run = tracker.open_parent(CHECKS, run_id)
    try:
        run.log_metrics([{"epoch": 1.0, "number": value}])
        run.log_text("written by ipcnn doctor\n", "doctor.txt")
        run.set_state("succeeded")
        values = [recorded.metrics.get("number") for recorded in tracker.find(CHECKS, run_id)]
        if values != [value]:
            raise TrackingError(
                f"MLflow: {value} was recorded and {values} came back\n"
                "The store loses what is written. Set MLFLOW_TRACKING_URI to another one."
            )
    finally:
        tracker.delete(run.handle)


def _recorded(run: Any) -> RecordedRun:
    tags = dict(run.data.tags)
    by_status = {status: state for state, status in STATUS.items()}
    return RecordedRun.from_tags(
        tags["ipcnn.run"],
        tags.get("ipcnn.state", by_status[run.info.status]),
        tags.get("ipcnn.why", ""),
        tags,
        dict(run.data.params),
        handle=run.info.run_id,
        parent=tags.get("mlflow.parentRunId", ""),
        metrics={key: value for key, value in run.data.metrics.items() if not key.startswith("system/")},
        started=run.info.start_time / 1000 if run.info.start_time else None,
        ended=run.info.end_time / 1000 if run.info.end_time else None,
    )


class _MlflowRun:
    """An open run of an MLflow store."""

    def __init__(self, uri: str, handle: str) -> None:
        self.uri = uri
        self.handle = handle
        self._logged: dict[str, set[int]] = {}
        """Steps of the recorded values of each metric that was logged here or read from the store."""

    def log_params(self, values: Mapping[str, str]) -> None:
        limit = _limits().MAX_PARAM_VAL_LENGTH
        compute = {f"ipcnn.{key}": value for key, value in values.items() if key.startswith("compute.")}
        params = {key: value for key, value in values.items() if not key.startswith("compute.")}
        short = {key: shortened(value, limit) for key, value in params.items()}
        with _store_errors(self.uri):
            recorded = _client(self.uri).get_run(self.handle).data.params
            changed = [key for key in short if recorded.get(key, short[key]) != short[key]]
            if changed:
                key = changed[0]
                more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
                raise TrackingError(
                    f"run {self.handle} is recorded with {key} = {recorded[key]}, not {short[key]}{more}\n"
                    "The same run cannot have two settings. Submit with --fresh to begin a new record."
                )
            new = [key for key in params if key not in recorded]
            for key in new:
                if len(params[key]) > limit:
                    _client(self.uri).log_text(self.handle, params[key], f"params/{key}.txt")
            entities = [_mlflow().entities.Param(key, short[key]) for key in new]
            for batch in _batches(entities, _limits().MAX_PARAMS_TAGS_PER_BATCH):
                _client(self.uri).log_batch(self.handle, params=batch)
        self.set_tags(compute)

    def set_tags(self, values: Mapping[str, str]) -> None:
        copies = {copy: values[key] for key, copy in COPIED_TAGS.items() if key in values}
        with _store_errors(self.uri):
            for batch in _batches(_tags({**values, **copies}), _limits().MAX_PARAMS_TAGS_PER_BATCH):
                _client(self.uri).log_batch(self.handle, tags=batch)
            if TITLE in values:
                _client(self.uri).update_run(self.handle, name=values[TITLE])

    def set_description(self, text: str) -> None:
        self.set_tags({DESCRIPTION: text})

    def log_metrics(self, history: Sequence[Mapping[str, float]], when: int | None = None) -> None:
        values = [(key, int(epoch["epoch"]), float(value)) for epoch in history for key, value in epoch.items()]
        try:
            with _store_errors(self.uri):
                self._log_new(values, when or int(time.time() * 1000))
        except TrackingError:
            self._logged = {}
            raise

    def _log_new(self, values: Sequence[tuple[str, int, float]], when: int) -> None:
        logged = self._logged
        if unknown := {key for key, _, _ in values} - logged.keys():
            client = _client(self.uri)
            recorded = client.get_run(self.handle).data.metrics
            for key in unknown:
                history = client.get_metric_history(self.handle, key) if key in recorded else []
                logged[key] = {value.step for value in history}
        new = [(key, epoch, value) for key, epoch, value in values if epoch not in logged[key]]
        metric = _mlflow().entities.Metric
        finite = [metric(key, value, when, epoch) for key, epoch, value in new if math.isfinite(value)]
        tags = []
        if len(finite) < len(new):
            odd = [f"{key} = {value} in epoch {epoch}" for key, epoch, value in values if not math.isfinite(value)]
            tags = _tags({"ipcnn.not_finite": "; ".join(odd)})
        for batch in list(_batches(finite, _limits().MAX_METRICS_PER_BATCH)) or [[]]:
            if batch or tags:
                _client(self.uri).log_batch(self.handle, metrics=batch, tags=tags)
            tags = []
        for key, epoch, _ in new:
            logged[key].add(epoch)

    def log_text(self, content: str, path: str) -> None:
        with _store_errors(self.uri):
            _client(self.uri).log_text(self.handle, content, path)

    def log_file(self, local: Path, folder: str) -> None:
        with _store_errors(self.uri):
            _client(self.uri).log_artifact(self.handle, str(local), folder)

    def log_model(self, module: Any, example: Any, readme: str) -> None:
        models, pytorch = _mlflow().models, _mlflow().pytorch
        if len(example) < 2:
            raise ValueError(
                f"example has {len(example)} images; a batch of 1 would be the only size that the model takes"
            )
        with _store_errors(self.uri):
            client = _client(self.uri)
            run = client.get_run(self.handle)
            if self._has_model(run):
                return
            readme = readme.replace("{uri}", f"runs:/{self.handle}/model")
            model = client.create_logged_model(
                run.info.experiment_id,
                name="model",
                source_run_id=self.handle,
                tags={DESCRIPTION: shortened(readme, _limits().MAX_TAG_VAL_LENGTH)},
            )
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary, "model")
                batch = example.numpy()
                pytorch.save_model(
                    module,
                    folder,
                    mlflow_model=models.Model(
                        run_id=self.handle, model_id=model.model_id, artifact_path=model.artifact_location
                    ),
                    input_example=batch,
                    signature=models.infer_signature(batch, module(example).detach().numpy()),
                    serialization_format="pt2",
                    pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
                )
                (folder / "README.md").write_text(readme, encoding="utf-8")
                client.log_model_artifacts(model.model_id, str(folder))
            client.finalize_logged_model(model.model_id, "READY")
            output = _mlflow().entities.LoggedModelOutput(model.model_id, step=int(run.data.metrics.get("epoch", 0)))
            client.log_outputs(self.handle, [output])

    def _has_model(self, run: Any) -> bool:
        """Whether the run has a complete model. Models of interrupted attempts are deleted."""
        client = _client(self.uri)
        models = client.search_logged_models([run.info.experiment_id], filter_string=f"source_run_id = '{self.handle}'")
        outputs = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
        for model in models:
            if model.model_id not in outputs:
                client.delete_logged_model(model.model_id)
        return bool(outputs)

    def set_state(self, state: State, cause: str = "", when: int | None = None) -> None:
        self.set_tags({"ipcnn.state": state, "ipcnn.why": cause})
        with _store_errors(self.uri):
            if state in ENDED:
                _client(self.uri).set_terminated(self.handle, STATUS[state], when)
            else:
                _client(self.uri).update_run(self.handle, status=STATUS[state])


def _all_pages(search: Callable[..., Any], *query: Any, order_by: list[str], **view: Any) -> Iterator[Any]:
    token: str | None = None
    while token != "":
        page = search(*query, order_by=order_by, page_token=token, **view)
        yield from page
        token = page.token or ""


def _tags(values: Mapping[str, str]) -> list[Any]:
    limit = _limits().MAX_TAG_VAL_LENGTH
    return [_mlflow().entities.RunTag(key, shortened(value, limit)) for key, value in values.items()]


def _batches(values: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]
