"""Options, marks and processes of the tests; folders of real data, which are never copied into the project."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from check_vectors import ERRORS, SHARED, record_error
from fakes.s3 import fake_s3
from snapshots import Snapshot
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from ipcnn_ray.tracking import mlflow_tracker, tracking_uri
from ipcnn_ray.utils.locks import file_lock

__all__ = ["fake_s3"]

ONE_RAY = "tests/on_ray"
"""Folder whose tests share a Ray, except those of files that start one of their own."""
RAY_OF_THEIR_OWN = ("tests/on_ray/test_credentials.py", "tests/on_ray/test_gpu_share.py")
ALSO_ON_IT = ("tests/examples/test_train_ray.py", "tests/extensions/test_package.py")
"""Files of other folders with tests that use the same Ray."""
STARTS_ACTORS = "tests/on_ray/test_batch_prediction.py"
"""Ray Data leaves three busy actors behind, so these tests are the last ones of their unit."""
LONGEST = (
    ONE_RAY,
    "tests/on_ray/test_credentials.py",
    "tests/test_style.py",
    "tests/examples/test_examples.py",
    "tests/cli/test_ui.py",
    "tests/tracking/test_mlflow_tracker.py",
)
"""Units of work that take more than half a minute, longest first."""


def unit_of(nodeid: str) -> str:
    """Return what `-n` gives to one process as a whole: the file of a test, or ONE_RAY."""
    file = nodeid.partition("::")[0]
    shares = file in ALSO_ON_IT or (file.startswith(f"{ONE_RAY}/") and file not in RAY_OF_THEIR_OWN)
    return ONE_RAY if shares else file


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-snapshots", action="store_true", help="write the snapshots of messages anew")


def _left_out(item: pytest.Item, config: pytest.Config) -> bool:
    """Whether a long test runs another time: neither its file is named, nor the mark."""
    named = (Path(argument.partition("::")[0]).resolve() for argument in config.args)
    return bool(item.get_closest_marker("long")) and "long" not in config.option.markexpr and item.path not in named


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out long tests, mark tests that start clusters as slow, and put the longest units first, then slow tests.

    `-m "not slow"` takes the place of the default `-m "not cluster"`. A long unit that began last would leave the other
    processes idle.
    """
    if left_out := [item for item in items if _left_out(item, config)]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if item.get_closest_marker("cluster"):
            item.add_marker(pytest.mark.slow)
    slow = {unit_of(item.nodeid) for item in items if item.get_closest_marker("slow")}

    def order(item: pytest.Item) -> tuple[int, bool, bool]:
        unit = unit_of(item.nodeid)
        rank = LONGEST.index(unit) if unit in LONGEST else len(LONGEST)
        return rank, unit not in slow, item.nodeid.startswith(STARTS_ACTORS)

    items.sort(key=order)


class UnitScheduling(LoadFileScheduling):
    """One process runs all tests of a unit, so that a module's fixtures, and Ray, are started once."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> UnitScheduling:
    config.option.loadscopereorder = False
    return UnitScheduling(config, log)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the errors of the check vectors from a process of pytest-xdist to the one that prints the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["check_vectors"] = ERRORS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController) -> None:
    for kind, (count, largest) in getattr(node, "workeroutput", {}).get("check_vectors", {}).items():
        record_error(kind, largest, count)


class SharedRay:
    """An embedded Ray, started when a test first needs it. It ends with its tests, since its processes are busy."""

    def __init__(self) -> None:
        self.sessions = ExitStack()
        self.runs = False

    def start(self) -> None:
        from ipcnn_ray.on_ray.ray_session import session

        if not self.runs:
            self.sessions.enter_context(session())
            self.runs = True

    def stop(self) -> None:
        self.sessions.close()
        self.runs = False


SHARED_RAY = SharedRay()


@pytest.fixture
def ray_here() -> None:
    """An embedded Ray: submissions in this process use it, and processes find it by their environment."""
    SHARED_RAY.start()


@pytest.fixture
def no_ray() -> None:
    """No Ray that this process uses: for tests that start one of another kind."""
    SHARED_RAY.stop()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    if nextitem is None or unit_of(nextitem.nodeid) != unit_of(item.nodeid):
        SHARED_RAY.stop()


@pytest.fixture(scope="session")
def fork_server() -> ForkServerContext:
    """Starts processes that have torch, its compiler (which DDP needs) and the package imported, from a server."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ipcnn_ray.train.trainer", "torch._dynamo"])
    return context


@pytest.fixture(scope="session")
def empty_record(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without experiments, made once by all processes of the tests. To make one takes seconds."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
    file = folder / "mlflow.db"
    with file_lock(folder / "mlflow.db.lock"):
        if not file.exists():
            client = mlflow_tracker._mlflow().MlflowClient(f"sqlite:///{folder}/mlflow.new")  # without its messages
            client.search_experiments()
            (folder / "mlflow.new").rename(file)
    return file


@pytest.fixture(scope="session", autouse=True)
def records_are_copies(request: pytest.FixtureRequest) -> Iterator[None]:
    """New records of this process are copies of `empty_record`. `store` in tracking/test_mlflow_tracker.py is none."""

    def create_store(uri: str) -> None:
        file = tracking_uri.sqlite_file(uri)
        there = file is None or file.exists()
        tracking_uri.create_store(uri)
        if file is not None and not there:
            shutil.copyfile(request.getfixturevalue("empty_record"), file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_tracker, "create_store", create_store)
        yield


@pytest.fixture
def snapshot(request: pytest.FixtureRequest) -> Snapshot:
    """Reviewed messages: see tests/snapshots.py."""
    return Snapshot(request.config.getoption("--update-snapshots"))


def _folder(variable: str, default: Path) -> Path | None:
    named = os.environ.get(variable)
    if named:
        path = Path(named).expanduser()
        if not path.is_dir():
            raise pytest.UsageError(f"{variable} = {named!r} is not a folder; unset it or name one that exists")
        return path
    return default if default.is_dir() else None


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with real photographs and landmarks (IPCNN_DATA)."""
    path = _folder("IPCNN_DATA", SHARED / "data")
    if path is None:
        pytest.skip("needs real photographs: set IPCNN_DATA to a folder that holds voc/")
    return path


@pytest.fixture(scope="session")
def real_weights() -> Path:
    """Folder with pretrained layers (IPCNN_WEIGHTS)."""
    path = _folder("IPCNN_WEIGHTS", SHARED / "weights")
    if path is None:
        pytest.skip("needs pretrained layers: set IPCNN_WEIGHTS to their folder")
    return path


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if ERRORS:
        terminalreporter.section("check vectors: largest error, as a share of the largest entry")
        for kind, (count, largest) in sorted(ERRORS.items()):
            terminalreporter.write_line(f"{kind:32} {largest:.1e} in {count} arrays")
