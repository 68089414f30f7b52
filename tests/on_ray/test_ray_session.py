"""The embedded Ray: access, environment and priority of its workers; how many runs fit on which nodes."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import ray
from fakes.commands import run_command
from fakes.ray_bench import EventLog, tiny

import ipcnn_ray
from ipcnn_ray.cli.options import STOPPED, WRONG_REQUEST
from ipcnn_ray.errors import IpcnnError, ResourceError
from ipcnn_ray.on_ray import ray_session
from ipcnn_ray.on_ray.ray_session import max_concurrent_runs, private_folder, session, starting_session, this_machine
from ipcnn_ray.on_ray.submission import run_experiment
from ipcnn_ray.spec.training import Compute
from ipcnn_ray.utils.paths import Paths

LAPTOP = [{"CPU": 2.0}]
TWO_GPU_NODES = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}]


@ray.remote(num_cpus=1)
def worker_facts() -> tuple[str, str, int, int]:
    from ray.util.state import list_nodes

    import ipcnn_ray

    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    return os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"], ipcnn_ray.__version__, len(list_nodes()), niceness


@pytest.mark.slow
def test_workers_and_access_of_the_embedded_ray(ray_here):
    """Ray's Tune finds the embedded Ray by its address to release the cores of a stopped run of several workers."""
    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    assert ray.get(worker_facts.remote()) == ("30", ipcnn_ray.__version__, 1, niceness)

    url = f"http://{ray.get_runtime_context().worker.node.webui_url}/api/version"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=10)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
    assert urllib.request.urlopen(request, timeout=10).status == 200

    folder = Path(ray.get_runtime_context().get_temp_dir())
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700  # Ray opens those below it to everybody

    with session() as nodes:  # a connected Ray is used and left running
        assert [int(node["CPU"]) for node in nodes] == [os.cpu_count()]
    assert ray.is_initialized()


def test_the_folder_of_sessions_is_closed_to_others_and_not_that_of_somebody_else(tmp_path):
    folder = private_folder(tmp_path / "not" / "yet")
    assert folder.name == f"ipcnn-{os.getuid()}" and stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o777)
    assert private_folder(folder.parent) == folder and stat.S_IMODE(folder.stat().st_mode) == 0o700

    (tmp_path / folder.name).symlink_to(folder)
    with pytest.raises(ResourceError, match="made by somebody else\nHave it deleted, or set RAY_TMPDIR"):
        private_folder(tmp_path)
    if os.getuid() == 0:
        os.chown(folder, 65534, 65534)
        with pytest.raises(ResourceError, match="made by somebody else"):
            private_folder(folder.parent)


def processes_of(mark: str) -> dict[str, str]:
    """Commands of the processes with this text in their environment, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if mark.encode() in (folder / "environ").read_bytes():
                found[folder.name] = (folder / "cmdline").read_text()
    return found


@pytest.mark.slow
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_submission_that_ends_while_ray_starts_leaves_no_process(tmp_path, interrupted):
    """By an error of the tracking server, which is asked meanwhile, or by Ctrl-C while it does not answer."""
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "name: early\ndata: {kind: drawn_animals, objects: 24, negatives: 16}\nmodel: {network: compact}\n"
        "template: {shape: gradient}\ntrain: {epochs: 1, batch_size: 8}\ncompute: {workers: 2}\n"
    )
    own = {key: value for key, value in os.environ.items() if not key.startswith(("IPCNN_", "MLFLOW_", "RAY_"))}
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if interrupted:
            server.listen()
        record = f"http://127.0.0.1:{server.getsockname()[1]}"
        env = {**own, "IPCNN_HOME": str(tmp_path / "home"), "MLFLOW_TRACKING_URI": record}
        # Below a shell that runs the tests in the background, processes ignore SIGINT by themselves.
        heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        command = [sys.executable, "-c", f"{heed}; from ipcnn_ray.cli.app import main; main()", "submit", str(spec)]
        with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as submission:
            started = False
            while submission.poll() is None and not started:
                started = any("gcs_server" in command for command in processes_of(str(tmp_path)).values())
                time.sleep(0.05)
            if interrupted:
                submission.send_signal(signal.SIGINT)
            _, told = submission.communicate(timeout=240)
    assert started
    assert submission.returncode == (STOPPED if interrupted else WRONG_REQUEST)
    assert ("Stopped. The same command goes on" if interrupted else "Connection refused") in told
    assert processes_of(str(tmp_path)) == {}


def test_an_error_of_the_start_is_raised_where_ray_is_needed(monkeypatch):
    thread: list[threading.Thread] = []

    @contextmanager
    def session(*, dashboard):
        thread.append(threading.current_thread())
        raise ResourceError("no room")
        yield

    monkeypatch.setattr(ray_session, "session", session)
    with starting_session(dashboard=False) as nodes:
        for _ in range(2):
            with pytest.raises(ResourceError, match="no room"):
                nodes()
    assert thread[0] is not threading.main_thread() and not thread[0].is_alive()


def test_a_session_that_starts_ends_before_the_thread_that_started_it(monkeypatch):
    """An error of the block waits for the start. The kernel kills Ray's processes when their thread ends."""
    order, go = [], threading.Event()

    @contextmanager
    def session(*, dashboard):
        thread = threading.current_thread()
        go.wait(10)
        order.append("started")
        try:
            yield [{"CPU": 2.0}]
        finally:
            order.append(f"stopped, thread alive: {thread.is_alive()}")

    monkeypatch.setattr(ray_session, "session", session)
    with pytest.raises(ValueError, match="elsewhere"), starting_session(also=lambda: order.append("also")) as nodes:
        assert order == []
        go.set()
        raise ValueError("elsewhere")
    assert order == ["started", "also", "stopped, thread alive: True"]
    with starting_session() as nodes:
        assert nodes() == [{"CPU": 2.0}]


@pytest.mark.slow
def test_the_doctor_on_this_machine(ray_here, tmp_path, monkeypatch):
    """The whole command: what is wrong here is the storage only."""
    for name in [name for name in os.environ if name.startswith("IPCNN_")] + ["MLFLOW_TRACKING_URI"]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "file").touch()
    monkeypatch.setenv("IPCNN_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("IPCNN_STORAGE", str(tmp_path / "file" / "runs"))
    done = run_command("doctor", "--json", code=1)
    told = {line["check"]: line["state"] for line in json.loads(done.stdout)["checks"] if line["check"] != "disk"}
    assert told == {
        "versions": "ok",
        "authentication": "ok",
        "nodes": "ok",
        "clocks": "ok",
        "storage": "wrong",
        "MLflow": "ok",
        "data": "note",
        "weights": "note",
    } | {name: "ok" for name in ("GPUs",) if name in told}
    assert not (tmp_path / "file").is_dir()


@pytest.mark.slow
def test_what_ray_prints_goes_to_the_log(ray_here, capsys, caplog):
    caplog.set_level("INFO", logger=ray_session.__name__)
    ray_session.ray_worker.print_to_stdstream({"lines": ["A worker died"], "pid": "raylet", "is_err": False}, False)
    assert capsys.readouterr().out == ""
    assert "A worker died" in caplog.text


@pytest.mark.parametrize(("own", "expected"), [(None, "0"), ("7", "7")])
def test_the_niceness_of_embedded_workers_is_zero_unless_the_user_sets_it(monkeypatch, own, expected):
    monkeypatch.delenv(ray_session.NICENESS, raising=False)
    if own is not None:
        monkeypatch.setenv(ray_session.NICENESS, own)
    assert ray_session._embedded_variables()["RAY_worker_niceness"] == expected
    assert "RAY_worker_niceness" not in ray_session.RAY_VARIABLES  # a cluster keeps its own


def test_the_environment_is_restored(monkeypatch):
    monkeypatch.setenv("IPCNN_TEST_THERE", "before")
    with ray_session.environment_variables({"IPCNN_TEST_THERE": "now", "IPCNN_TEST_NEW": "now"}):
        assert os.environ["IPCNN_TEST_THERE"] == os.environ["IPCNN_TEST_NEW"] == "now"
    assert os.environ["IPCNN_TEST_THERE"] == "before"
    assert "IPCNN_TEST_NEW" not in os.environ


@pytest.mark.parametrize(
    ("compute", "gpus", "nodes", "fit"),
    [
        (Compute(), 0, LAPTOP, 2),
        (Compute(workers=2), 0, LAPTOP, 1),
        (Compute(cpus_per_worker=2), 0, LAPTOP, 1),
        (Compute(concurrent_runs=1), 0, LAPTOP, 1),
        (Compute(workers=3), 1, TWO_GPU_NODES, 1),
        (Compute(), 0.5, TWO_GPU_NODES, 8),
        (Compute(cpus_per_worker=3), 0, [{"CPU": 4.0}, {"CPU": 4.0}], 2),  # 8 cores, but a worker is on one node
    ],
)
def test_max_concurrent_runs(compute, gpus, nodes, fit):
    assert max_concurrent_runs(compute, gpus, nodes) == fit


@pytest.mark.parametrize(
    ("compute", "gpus", "message"),
    [
        (
            Compute(workers=3),
            0,
            "a run asks for 3 workers of 1 core; it would wait for ever\n"
            "This cluster has 1 node of 2 cores and 0 GPUs: room for 2 such workers.\n"
            "Ways out: --set compute.workers=2, or more nodes.",
        ),
        (
            Compute(cpus_per_worker=2, gpus_per_worker=1),
            1,
            "a run asks for 1 worker of 2 cores and 1 GPU; it would wait for ever\n"
            "This cluster has 1 node of 2 cores and 0 GPUs: room for 0 such workers.\n"
            "Ways out: --set compute.gpus_per_worker=0, or more nodes.",
        ),
        (
            Compute(concurrent_runs=5),
            0,
            "compute.concurrent_runs = 5, each run of 1 worker of 1 core\n"
            "This cluster has 1 node of 2 cores and 0 GPUs: room for 2 such workers. "
            "At the same time 2 such runs can go on.\n"
            "Ways out: --set compute.concurrent_runs=2, or null for as many as fit.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_ways_out(compute, gpus, message):
    with pytest.raises(ResourceError) as refused:
        max_concurrent_runs(compute, gpus, LAPTOP)
    assert str(refused.value) == message


def test_an_experiment_that_cannot_run_here_is_refused_before_anything_is_written(bench):
    too_many = 2 * int(this_machine()[0]["CPU"])
    spec = tiny("infeasible", train={"batch_size": too_many}, compute={"workers": too_many})
    with pytest.raises(ResourceError, match="it would wait for ever"):
        bench.submit(spec)
    assert not bench.folder(spec).parent.exists()
    assert bench.recorded(spec) == {}


def test_a_bucket_that_lets_nobody_in_is_refused(bench, tmp_path, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    paths = Paths.from_environment({"IPCNN_HOME": str(tmp_path), "IPCNN_STORAGE": "s3://bucket/runs"})
    with pytest.raises(IpcnnError, match=r"Unable to locate credentials\nSet AWS_ACCESS_KEY_ID"):
        run_experiment(tiny("nowhere"), paths, bench.tracker, listener=EventLog())
