"""`ipcnn ui`: checks, a server that ends with its process, and the view of an experiment in a browser."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakes.browser import PATIENCE_MS, chromium
from fakes.commands import run_command
from mlflow import MlflowClient

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


def recorded_experiment(home: Path) -> MlflowTracker:
    """Two runs of an experiment, of which the second is the better one, and a run of an earlier experiment."""
    tracker = MlflowTracker(f"sqlite:///{home}/mlflow.db", str(home / "artifacts"))
    tracker.prepare("shapes")
    for digest, runs in (("11111111", {"old": 0.5}), ("22222222", {"plain": 1.0, "narrow": 0.625})):
        parent = tracker.open_parent("shapes", f"shapes-{digest}")
        for label, combined in runs.items():
            run = tracker.open_child("shapes", f"shapes-{digest}-{label}", parent.handle)
            run.set_tags({"ipcnn.label": label, "ipcnn.origin": "named", "ipcnn.template": f"template {label}"})
            numbers = {"combined": combined, "val_error": 0.25, "instability": 0.125, "instability_center": 0.0625}
            run.log_metrics([{"epoch": 1.0, **numbers}])
    return tracker


def test_the_view_of_an_experiment_is_saved_with_it(home, monkeypatch):
    tracker = recorded_experiment(home)
    monkeypatch.setattr("ipcnn_ray.cli.ui.os.execve", lambda *words: None)
    monkeypatch.setattr("ipcnn_ray.cli.ui.os.chdir", lambda folder: None)
    client = MlflowClient(tracker.uri)
    saved = []
    for name in ("shapes", "shapes", "shapes-11111111"):
        ran = run_command("ui", name, "--port", free_port())
        entry = client.get_experiment_by_name("shapes")
        key = "11111111" if name.endswith("1") else "22222222"
        assert f"/#/experiments/{entry.experiment_id}/runs?viewStateShareKey={key} " in ran.stdout
        assert ("submitted several times; this is shapes-22222222" in ran.stderr) == (name == "shapes")
        saved.append(entry.tags[f"mlflow.sharedViewState.{key}"])
    assert saved[0] == saved[1] != saved[2]
    view = json.loads(saved[0])
    assert view["name"] == "shapes-22222222" and json.loads(view["state"]).items() <= view.items()
    metrics = [f"metrics.`{name}`" for name in ("combined", "val_error", "instability", "instability_center")]
    assert view["selectedColumns"] == ["tags.`ipcnn.template`", *metrics]  # only what the runs have
    newest = tracker.find("shapes", "shapes-22222222")[0].handle
    assert view["searchFilter"] == f"tags.`mlflow.parentRunId` = '{newest}'"
    assert (view["orderByKey"], view["orderByAsc"]) == ("metrics.`combined`", True)


def test_an_experiment_that_is_not_recorded(home):
    recorded_experiment(home)
    with pytest.raises(IpcnnError, match=r"no experiment and no run is recorded as 'shape'\nDid you mean 'shapes'"):
        run("shape")


class Server:
    """`ipcnn ui shapes` in a process of its own."""

    def __init__(self, home: Path) -> None:
        # A process that a shell starts in the background ignores Ctrl-C.
        heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
        script = f"{heed}; import typer; from ipcnn_ray.cli.ui import ui; typer.run(ui)"
        command = [sys.executable, "-c", script, "shapes", "--port", free_port()]
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("IPCNN_", "MLFLOW_"))}
        env = {**kept, "IPCNN_HOME": str(home)}
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env)
        self.opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @functools.cached_property
    def page(self) -> str:
        """Address of the page of the view, once the server responds."""
        assert self.process.stdout is not None
        page = self.process.stdout.readline().split()[0]
        wait_until_healthy(self.opener, page.partition("/#")[0], self.process)
        return page

    @property
    def url(self) -> str:
        return self.page.partition("/#")[0]

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Server]:
    home = tmp_path_factory.mktemp("served")
    recorded_experiment(home)
    server = Server(home)
    yield server
    server.kill()


@pytest.mark.slow
def test_the_browser_shows_the_view(served):
    """MLflow's own server and page: the columns, their numbers, and the runs from good to bad, not folded."""
    with chromium() as browser:
        page = browser.new_page(viewport={"width": 2000, "height": 900})
        page.set_default_timeout(PATIENCE_MS)
        page.goto(served.page)
        page.wait_for_selector(".ag-center-cols-container .ag-row:nth-child(2)")
        names = ["Run Name", "ipcnn.template", "combined", "val_error", "instability", "instability_center"]
        heads = [text for text in left_to_right(page.locator(".ag-header-cell").all()) if text in names]
        assert heads == names
        rows = page.locator(".ag-center-cols-container .ag-row").all()
        rows.sort(key=lambda row: int(row.get_attribute("row-index")))
        assert [[text for text in left_to_right(row.locator(".ag-cell").all()) if text][-5:] for row in rows] == [
            ["template narrow", "0.625", "0.25", "0.125", "0.0625"],
            ["template plain", "1", "0.25", "0.125", "0.0625"],
        ]


def left_to_right(elements: list[object]) -> list[str]:
    """Texts of elements of a page, in the order in which they stand on it."""
    return [each.inner_text().strip() for each in sorted(elements, key=lambda each: each.bounding_box()["x"])]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return str(probe.getsockname()[1])


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
def test_the_ui_serves_the_record_and_ends_with_its_process(served, home):
    """The server of the browser ends with SIGTERM, which is why this test comes after that one; another with Ctrl-C."""
    tracker = recorded_experiment(home)
    other = Server(home)
    try:
        for number, server in {signal.SIGTERM: served, signal.SIGINT: other}.items():
            assert b"<title>MLflow</title>" in server.opener.open(server.url, timeout=30).read()
            remote = MlflowTracker(server.url)
            assert remote.experiments() == tracker.experiments() == ["shapes"]
            narrow, *_ = remote.find("shapes", "shapes-22222222-narrow")
            before = narrow.metrics
            for _ in range(2):
                remote.attach(narrow.handle).log_metrics([{"epoch": 2.0, "val_loss": 0.5}])
            now = remote.find("shapes", "shapes-22222222-narrow")[0].metrics
            assert now == {**before, "epoch": 2.0, "val_loss": 0.5}
            process = server.process
            family = [process.pid, *children(process.pid)]
            process.send_signal(number)
            process.wait(60)
            assert [pid for pid in family if Path(f"/proc/{pid}").exists()] == []
            with pytest.raises(OSError, match="refused"):
                server.opener.open(server.url, timeout=5)
    finally:
        other.kill()


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
