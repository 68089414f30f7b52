"""The embedded Ray: who may talk to it, and what its workers know."""

from __future__ import annotations

import os
import urllib.error
import urllib.request

import pytest
import ray

from ipcnn_ray.on_ray import ray_session as sessions
from ipcnn_ray.on_ray.ray_session import session

pytestmark = pytest.mark.usefixtures("ray_here")


@ray.remote(num_cpus=1)
def look_around() -> tuple[str, str, int]:
    from ray.util.state import list_nodes

    import ipcnn_ray

    return os.environ["TUNE_FUNCTION_THREAD_TIMEOUT_S"], ipcnn_ray.__version__, len(list_nodes())


def test_workers_know_the_package_the_settings_and_their_ray():
    """The last one is what frees the cores of a stopped run of several workers, also beside another Ray."""
    import ipcnn_ray

    assert ray.get(look_around.remote()) == ("30", ipcnn_ray.__version__, 1)


def test_without_the_token_nobody_gets_in():
    url = f"http://{ray.get_runtime_context().worker.node.webui_url}/api/version"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=10)
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {os.environ['RAY_AUTH_TOKEN']}"})
    assert urllib.request.urlopen(request, timeout=10).status == 200


def test_a_ray_that_is_there_is_used_and_left():
    with session() as nodes:
        assert [int(node["CPU"]) for node in nodes] == [os.cpu_count()]
    assert ray.is_initialized()


def test_what_ray_prints_goes_to_the_log(capsys, caplog):
    caplog.set_level("INFO", logger=sessions.__name__)
    sessions.ray_worker.print_to_stdstream({"lines": ["A worker died"], "pid": "raylet", "is_err": False}, False)
    assert capsys.readouterr().out == ""
    assert "A worker died" in caplog.text


def test_the_environment_is_put_back():
    os.environ["IPCNN_TEST_THERE"] = "before"
    with sessions._environment({"IPCNN_TEST_THERE": "now", "IPCNN_TEST_NEW": "now"}):
        assert os.environ["IPCNN_TEST_THERE"] == os.environ["IPCNN_TEST_NEW"] == "now"
    assert os.environ.pop("IPCNN_TEST_THERE") == "before"
    assert "IPCNN_TEST_NEW" not in os.environ
