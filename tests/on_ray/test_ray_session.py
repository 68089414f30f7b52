"""The embedded Ray: access, environment and priority of its workers, and what it prints."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

import pytest
import ray

from ipcnn_ray.on_ray import ray_session
from ipcnn_ray.on_ray.ray_session import session

pytestmark = [pytest.mark.usefixtures("ray_here"), pytest.mark.slow]


@ray.remote(num_cpus=1)
def worker_facts() -> tuple[str, str, int, int]:
    from ray.util.state import list_nodes

    import ipcnn_ray

    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    return os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"], ipcnn_ray.__version__, len(list_nodes()), niceness


def test_workers_have_the_package_the_variables_their_ray_and_the_priority_of_the_driver():
    """Ray's Tune finds the embedded Ray by its address to release the cores of a stopped run of several workers."""
    import ipcnn_ray

    niceness = os.getpriority(os.PRIO_PROCESS, 0)
    assert ray.get(worker_facts.remote()) == ("30", ipcnn_ray.__version__, 1, niceness)


@pytest.mark.parametrize(("own", "expected"), [(None, "0"), ("7", "7")])
def test_the_niceness_of_embedded_workers_is_zero_unless_the_user_sets_it(monkeypatch, own, expected):
    monkeypatch.delenv(ray_session.NICENESS, raising=False)
    if own is not None:
        monkeypatch.setenv(ray_session.NICENESS, own)
    assert ray_session._embedded_variables()["RAY_worker_niceness"] == expected
    assert "RAY_worker_niceness" not in ray_session.RAY_VARIABLES  # a cluster keeps its own


def test_access_needs_the_token():
    url = f"http://{ray.get_runtime_context().worker.node.webui_url}/api/version"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=10)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
    assert urllib.request.urlopen(request, timeout=10).status == 200


def test_a_connected_ray_is_used_and_left_running():
    with session() as nodes:
        assert [int(node["CPU"]) for node in nodes] == [os.cpu_count()]
    assert ray.is_initialized()


def test_what_ray_prints_goes_to_the_log(capsys, caplog):
    caplog.set_level("INFO", logger=ray_session.__name__)
    ray_session.ray_worker.print_to_stdstream({"lines": ["A worker died"], "pid": "raylet", "is_err": False}, False)
    assert capsys.readouterr().out == ""
    assert "A worker died" in caplog.text


def test_the_environment_is_restored():
    os.environ["IPCNN_TEST_THERE"] = "before"
    with ray_session.environment_variables({"IPCNN_TEST_THERE": "now", "IPCNN_TEST_NEW": "now"}):
        assert os.environ["IPCNN_TEST_THERE"] == os.environ["IPCNN_TEST_NEW"] == "now"
    assert os.environ.pop("IPCNN_TEST_THERE") == "before"
    assert "IPCNN_TEST_NEW" not in os.environ
