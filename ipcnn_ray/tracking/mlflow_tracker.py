"""The record of runs in MLflow. No other file imports mlflow; this one does when a record is first touched."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.tracking.storage import is_url
from ipcnn_ray.tracking.tracker import RecordedRun, RunRecord, State
from ipcnn_ray.tracking.tracking_uri import (
    EXPERIMENT_TAG_LENGTH,
    METRICS_PER_CALL,
    PARAM_LENGTH,
    PARAMS_PER_CALL,
    TAG_LENGTH,
    TAGS_PER_CALL,
    absolute,
    alone,
    exists,
    is_server,
    make_ready,
    parts,
    reach,
    told,
    without_password,
)
from ipcnn_ray.utils.text import shortened

STATUS: dict[State, str] = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "succeeded": "FINISHED",
    "failed": "FAILED",
    "stopped": "KILLED",
}
MIRRORED = {"code.commit": "mlflow.source.git.commit"}
"""Tags that MLflow shows in a place of its own."""
TITLE = "ipcnn.title"
"""Tag that is a run's name in MLflow's lists, where ids that begin alike would be cut off to the same letters."""
SOURCE = {"mlflow.source.name": "ipcnn submit", "mlflow.source.type": "LOCAL"}
"""What MLflow says a run comes from; it shows the commit only beside it."""

VENDORS = {"mlflow", "requests", "urllib3", "boto3", "botocore", "s3transfer"}
"""Packages whose errors are about the record's server and its files."""

SETTINGS = {
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_DISABLE_AGENT_HINT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # stdout may be somebody's JSON
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by itself it tries for minutes; tracking/spool.py goes on without it
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}


@functools.cache
def _mlflow() -> Any:
    os.environ.update(environment())
    import mlflow

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # its errors are raised as ours
    return mlflow


def environment() -> dict[str, str]:
    """Settings under which MLflow reports nothing to anybody and prints nothing of its own; the user's own win."""
    return {name: os.environ.get(name, value) for name, value in SETTINGS.items()}


def server_command(uri: str, port: int) -> list[str]:
    """The command that shows the embedded record on this machine, and to this machine only."""
    options = {"--backend-store-uri": uri, "--host": "127.0.0.1", "--port": str(port), "--workers": "1"}
    return [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]


@contextmanager
def _told(uri: str) -> Iterator[None]:
    """MLflow's errors as ours, and those of what it uses to reach its server and its files."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] not in VENDORS:
            raise
        raise told(uri, error) from error


@functools.lru_cache(maxsize=8)
def _client(uri: str) -> Any:
    """This process's client of a store; opens the store."""
    reach(uri)
    try:
        client = _mlflow().MlflowClient(uri)
        client.search_experiments(max_results=1)
    except Exception as error:
        raise told(uri, error) from error
    return client


class MlflowTracker:
    """The record in an MLflow store: a database that this process opens itself, or a server.

    It pickles; every process opens a client of its own from the address when it first needs one.
    """

    def __init__(self, uri: str, artifact_root: str | None = None) -> None:
        """`artifact_root`: folder or URL for the files of new experiments. A server has its own, unless the root is a
        URL: then files go straight there."""
        self.uri = absolute(uri)
        self.artifact_root = artifact_root

    def prepare(self, experiment: str, note: str = "") -> None:
        make_ready(self.uri)
        with alone(self.uri), _told(self.uri):
            client = _client(self.uri)
            found = client.get_experiment_by_name(experiment)
            if found is None:
                self._create(experiment)
                found = client.get_experiment_by_name(experiment)
            if found.lifecycle_stage != "active":
                raise TrackingError(
                    f"experiment {experiment} was deleted from the record at {without_password(self.uri)}\n"
                    f"Bring it back: mlflow experiments restore -x {found.experiment_id}   or change the spec's name."
                )
            note = shortened(note, EXPERIMENT_TAG_LENGTH)
            if note and found.tags.get("mlflow.note.content") != note:
                client.set_experiment_tag(found.experiment_id, "mlflow.note.content", note)

    def _create(self, experiment: str) -> None:
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
        return self._open(experiment, run_id, "", fresh)

    def open_child(self, experiment: str, run_id: str, parent: str, *, fresh: bool = False) -> RunRecord:
        return self._open(experiment, run_id, parent, fresh)

    def attach(self, handle: str) -> RunRecord:
        return _MlflowRun(self.uri, handle)

    def deliver(self, patience: float = 0.0) -> int:
        return 0  # what cannot be recorded is an error; tracking/spool.py lets it wait

    def find(self, experiment: str, run_id: str | None = None) -> list[RecordedRun]:
        if not exists(self.uri):
            return []
        with _told(self.uri):
            found = _client(self.uri).get_experiment_by_name(experiment)
            if found is None or found.lifecycle_stage != "active":
                return []
            wanted = f"tags.\"ipcnn.run\" = '{run_id}'" if run_id else "tags.\"ipcnn.run\" != ''"
            runs = [_recorded(run) for run in self._search(found.experiment_id, wanted)]
        return [run for run in runs if "ipcnn.superseded" not in run.tags]

    def delete(self, handle: str) -> None:
        """Take a run out of the record, as MLflow does it: `mlflow gc` removes it for good."""
        with _told(self.uri):
            _client(self.uri).delete_run(handle)

    def experiments(self) -> list[str]:
        if not exists(self.uri):
            return []
        names: list[str] = []
        with _told(self.uri):
            token: str | None = None
            while token != "":
                page = _client(self.uri).search_experiments(page_token=token, order_by=["creation_time DESC"])
                names += [found.name for found in page if found.name != "Default"]
                token = page.token or ""
        return names

    def history(self, handle: str, metric: str) -> list[tuple[int, float]]:
        with _told(self.uri):
            found = _client(self.uri).get_metric_history(handle, metric)
        return sorted((int(one.step), float(one.value)) for one in found)

    def read(self, handle: str, path: str) -> str | None:
        folder = path.rpartition("/")[0]
        with _told(self.uri), tempfile.TemporaryDirectory() as temporary:
            listed = _client(self.uri).list_artifacts(handle, folder or None)
            if not any(one.path == path for one in listed):
                return None
            return Path(_client(self.uri).download_artifacts(handle, path, temporary)).read_text(encoding="utf-8")

    def _search(self, experiment_id: str, wanted: str) -> Iterator[Any]:
        token: str | None = None
        while token != "":
            page = _client(self.uri).search_runs(
                [experiment_id], wanted, order_by=["attributes.start_time DESC"], page_token=token
            )
            yield from page
            token = page.token or ""

    def _open(self, experiment: str, run_id: str, parent: str, fresh: bool) -> RunRecord:
        with alone(self.uri), _told(self.uri):
            client = _client(self.uri)
            home = client.get_experiment_by_name(experiment)
            if home is None:
                raise TrackingError(
                    f"experiment {experiment} is not in the record\nPrepare the record before its runs."
                )
            older = self._search(home.experiment_id, f"tags.\"ipcnn.run\" = '{run_id}'")
            current = [run.info.run_id for run in older if "ipcnn.superseded" not in run.data.tags]
            nested = {"mlflow.parentRunId": parent} if parent else {}
            if current and not fresh:
                for key, value in nested.items():
                    client.set_tag(current[0], key, value)
                return _MlflowRun(self.uri, current[0])
            tags = {"ipcnn.run": run_id, "ipcnn.state": "queued", **SOURCE, **nested}
            handle = client.create_run(home.experiment_id, tags=tags, run_name=run_id).info.run_id
            client.update_run(handle, status=STATUS["queued"])
            for old in current:
                trials = self._search(home.experiment_id, f"tags.\"mlflow.parentRunId\" = '{old}'")
                for superseded in [old, *(run.info.run_id for run in trials)]:
                    client.set_tag(superseded, "ipcnn.superseded", handle)
            return _MlflowRun(self.uri, handle)


def _recorded(run: Any) -> RecordedRun:
    tags = dict(run.data.tags)
    by_status = {status: state for state, status in STATUS.items()}
    return RecordedRun(
        run_id=tags["ipcnn.run"],
        handle=run.info.run_id,
        parent=tags.get("mlflow.parentRunId", ""),
        state=tags.get("ipcnn.state", by_status[run.info.status]),
        why=tags.get("ipcnn.why", ""),
        tags=tags,
        params=dict(run.data.params),
        metrics=dict(run.data.metrics),
        started=run.info.start_time / 1000 if run.info.start_time else None,
        ended=run.info.end_time / 1000 if run.info.end_time else None,
    )


class _MlflowRun:
    """One open run in an MLflow store."""

    def __init__(self, uri: str, handle: str) -> None:
        self.uri = uri
        self.handle = handle
        self._logged: set[tuple[str, int]] | None = None

    def params(self, values: Mapping[str, str]) -> None:
        compute = {f"ipcnn.{key}": value for key, value in values.items() if key.startswith("compute.")}
        wanted = {key: value for key, value in values.items() if not key.startswith("compute.")}
        short = {key: shortened(value, PARAM_LENGTH) for key, value in wanted.items()}
        with _told(self.uri):
            there = _client(self.uri).get_run(self.handle).data.params
            changed = [key for key in short if there.get(key, short[key]) != short[key]]
            if changed:
                key = changed[0]
                more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
                raise TrackingError(
                    f"run {self.handle} is recorded with {key} = {there[key]}, not {short[key]}{more}\n"
                    "The same run cannot have two settings. Submit with --fresh to begin a new record."
                )
            for key, value in wanted.items():
                if len(value) > PARAM_LENGTH and key not in there:
                    _client(self.uri).log_text(self.handle, value, f"params/{key}.txt")
            new = [_mlflow().entities.Param(key, value) for key, value in short.items() if key not in there]
            for part in parts(new, PARAMS_PER_CALL):
                _client(self.uri).log_batch(self.handle, params=part)
        self.tags(compute)

    def tags(self, values: Mapping[str, str]) -> None:
        all_tags = {**values, **{shown: values[key] for key, shown in MIRRORED.items() if key in values}}
        with _told(self.uri):
            for part in parts(_tags(all_tags), TAGS_PER_CALL):
                _client(self.uri).log_batch(self.handle, tags=part)
            if TITLE in values:
                _client(self.uri).update_run(self.handle, name=values[TITLE])

    def note(self, text: str) -> None:
        self.tags({"mlflow.note.content": text})

    def metrics(self, history: Sequence[Mapping[str, float]], when: int | None = None) -> None:
        numbers = [(key, int(epoch["epoch"]), float(value)) for epoch in history for key, value in epoch.items()]
        try:
            with _told(self.uri):
                self._log_new(numbers, when or int(time.time() * 1000))
        except TrackingError:
            self._logged = None
            raise

    def _log_new(self, numbers: Sequence[tuple[str, int, float]], when: int) -> None:
        logged = self._logged if self._logged is not None else self._read_logged()
        new = [number for number in numbers if number[:2] not in logged]
        finite = [
            _mlflow().entities.Metric(key, value, when, epoch) for key, epoch, value in new if math.isfinite(value)
        ]
        tags = []
        if len(finite) < len(new):
            odd = [f"{key} = {value} in epoch {epoch}" for key, epoch, value in numbers if not math.isfinite(value)]
            tags = _tags({"ipcnn.not_finite": "; ".join(odd)})
        for part in list(parts(finite, METRICS_PER_CALL)) or [[]]:
            if part or tags:
                _client(self.uri).log_batch(self.handle, metrics=part, tags=tags)
            tags = []
        self._logged = logged | {number[:2] for number in new}

    def _read_logged(self) -> set[tuple[str, int]]:
        client = _client(self.uri)
        keys = client.get_run(self.handle).data.metrics
        return {(key, one.step) for key in keys for one in client.get_metric_history(self.handle, key)}

    def text(self, content: str, path: str) -> None:
        with _told(self.uri):
            _client(self.uri).log_text(self.handle, content, path)

    def file(self, local: Path, folder: str) -> None:
        with _told(self.uri):
            _client(self.uri).log_artifact(self.handle, str(local), folder)

    def model(self, module: Any, example: Any, readme: str) -> None:
        models, pytorch = _mlflow().models, _mlflow().pytorch

        if len(example) < 2:
            raise ValueError(
                f"example has {len(example)} images; a batch of 1 would be the only size that the model takes"
            )
        with _told(self.uri):
            client = _client(self.uri)
            run = client.get_run(self.handle)
            if self._has_model(run):
                return
            readme = readme.replace("{uri}", f"runs:/{self.handle}/model")
            note = {"mlflow.note.content": shortened(readme, TAG_LENGTH)}
            made = client.create_logged_model(
                run.info.experiment_id, name="model", source_run_id=self.handle, tags=note
            )
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary, "model")
                batch = example.numpy()
                pytorch.save_model(
                    module,
                    folder,
                    mlflow_model=models.Model(
                        run_id=self.handle, model_id=made.model_id, artifact_path=made.artifact_location
                    ),
                    input_example=batch,
                    signature=models.infer_signature(batch, module(example).detach().numpy()),
                    serialization_format="pt2",
                    pip_requirements=[f"{name}=={metadata.version(name)}" for name in ("mlflow", "torch", "numpy")],
                )
                (folder / "README.md").write_text(readme, encoding="utf-8")
                client.log_model_artifacts(made.model_id, str(folder))
            client.finalize_logged_model(made.model_id, "READY")
            output = _mlflow().entities.LoggedModelOutput(made.model_id, step=int(run.data.metrics.get("epoch", 0)))
            client.log_outputs(self.handle, [output])

    def _has_model(self, run: Any) -> bool:
        """Whether a whole model is there; what an interrupted attempt left is deleted."""
        client = _client(self.uri)
        wanted = f"source_run_id = '{self.handle}'"
        found = client.search_logged_models([run.info.experiment_id], filter_string=wanted)
        outputs = {output.model_id for output in (run.outputs.model_outputs if run.outputs else [])}
        for model in found:
            if model.model_id not in outputs:
                client.delete_logged_model(model.model_id)
        return bool(outputs)

    def state(self, state: State, why: str = "", when: int | None = None) -> None:
        self.tags({"ipcnn.state": state, "ipcnn.why": why})
        with _told(self.uri):
            if state in ("succeeded", "failed", "stopped"):
                _client(self.uri).set_terminated(self.handle, STATUS[state], when)
            else:
                _client(self.uri).update_run(self.handle, status=STATUS[state])


def _tags(values: Mapping[str, str]) -> list[Any]:
    tag = _mlflow().entities.RunTag
    return [tag(key, shortened(value, TAG_LENGTH)) for key, value in values.items()]
