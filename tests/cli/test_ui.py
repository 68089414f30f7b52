"""`ipcnn ui`: checks, and a server that ends with its process."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from fakes.commands import run_command

from ipcnn_ray.errors import IpcnnError, TrackingError
from ipcnn_ray.tracking.mlflow_tracker import MlflowTracker


def run(*words: str) -> str:
    return run_command("ui", *words).stdout


def test_nothing_is_recorded_yet(home):
    with pytest.raises(TrackingError, match=r"nothing is recorded yet in .*\nSubmit an experiment first"):
        run()
    assert not home.exists()


def test_the_command_of_the_ui_stays_on_this_machine(home):
    words = run("--print-command", "--port", "5123").split()
    assert words[1:4] == ["-m", "mlflow", "server"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "5123"
    assert words[words.index("--backend-store-uri") + 1] == f"sqlite:///{home}/mlflow.db"


def test_a_server_has_a_page_of_its_own(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:hidden@mlflow.example.org")
    assert run().endswith("which has its own page: https://mlflow.example.org\n")


def test_a_port_that_is_taken(home):
    home.mkdir()
    (home / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(IpcnnError, match=rf"port {port} on 127.0.0.1 is not free: .*\n.*--port {port + 1}"):
            run("--port", str(port))


def children(pid: int) -> list[int]:
    """Ids of all descendants of a process."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
    direct = [child for child, parent in pairs if parent == pid]
    return [*direct, *(below for child in direct for below in children(child))]


@pytest.mark.slow
def test_the_ui_serves_the_record_and_ends_with_its_process(home, empty_record):
    home.mkdir()
    shutil.copy(empty_record, home)
    tracker = MlflowTracker(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"))
    tracker.prepare("single")
    tracker.open_parent("single", "single-87654321")
    # A process that a shell starts in the background ignores Ctrl-C.
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    script = f"{heed}; import typer; from ipcnn_ray.cli.ui import ui; typer.run(ui)"
    servers = {}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        for number, probe in zip((signal.SIGINT, signal.SIGTERM), probes, strict=True):
            command = [sys.executable, "-c", script, "--port", str(probe.getsockname()[1])]
            probe.close()
            servers[number] = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        for number, child in servers.items():
            assert child.stdout is not None
            url = child.stdout.readline().split()[0]
            wait_until_healthy(opener, url, child)
            assert b"<title>MLflow</title>" in opener.open(url, timeout=30).read()
            remote = MlflowTracker(url)
            assert remote.experiments() == ["single"]
            (run,) = remote.find("single")
            for _ in range(2):
                remote.attach(run.handle).log_metrics([{"epoch": 1.0, "val_error": 0.5}])
            assert remote.find("single")[0].metrics == {"epoch": 1.0, "val_error": 0.5}
            family = [child.pid, *children(child.pid)]
            child.send_signal(number)
            child.wait(60)
            assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []
            with pytest.raises(OSError, match="refused"):
                opener.open(url, timeout=5)
    finally:
        for child in servers.values():
            child.kill()
            child.communicate()


def wait_until_healthy(opener: urllib.request.OpenerDirector, url: str, child: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            opener.open(f"{url}/health", timeout=2).close()
            return
        except OSError:
            assert child.poll() is None, "the server ended"
            assert time.monotonic() < end, "the server does not respond"
            time.sleep(0.2)
