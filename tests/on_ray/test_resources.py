"""How many runs fit on which nodes, and the messages for those that do not fit."""

from __future__ import annotations

import pytest
from ray_bench import EventLog, tiny

from ipcnn_ray.errors import IpcnnError, ResourceError
from ipcnn_ray.on_ray.resources import gpus_per_worker, max_concurrent_runs, this_machine
from ipcnn_ray.spec.training import Compute
from ipcnn_ray.utils.paths import Paths

LAPTOP = [{"CPU": 2.0}]
TWO_GPU_NODES = [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 4.0}]


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


def test_gpus_per_worker_follow_the_cluster_unless_the_spec_says_so():
    assert gpus_per_worker(Compute(), LAPTOP) == 0
    assert gpus_per_worker(Compute(), TWO_GPU_NODES) == 1
    assert gpus_per_worker(Compute(gpus_per_worker=0), TWO_GPU_NODES) == 0


def test_too_many_workers_are_refused_with_ways_out():
    with pytest.raises(ResourceError) as refused:
        max_concurrent_runs(Compute(workers=3), 0, LAPTOP)
    assert str(refused.value) == (
        "a run asks for 3 workers of 1 core; it would wait for ever\n"
        "This cluster has 1 node of 2 cores and 0 GPUs: room for 2 such workers.\n"
        "Ways out: --set compute.workers=2, or more nodes."
    )


def test_gpus_that_are_not_there_are_refused():
    with pytest.raises(ResourceError, match=r"1 worker of 2 cores and 1 GPU; it would") as refused:
        max_concurrent_runs(Compute(cpus_per_worker=2, gpus_per_worker=1), 1, LAPTOP)
    assert str(refused.value).endswith("Ways out: --set compute.gpus_per_worker=0, or more nodes.")


def test_more_concurrent_runs_than_fit_are_refused():
    with pytest.raises(ResourceError, match=r"concurrent_runs = 5.*\n.*2 such runs can go on.*\n.*concurrent_runs=2"):
        max_concurrent_runs(Compute(concurrent_runs=5), 0, LAPTOP)


def test_an_experiment_that_cannot_run_here_is_refused_before_anything_is_written(bench):
    too_many = 2 * int(this_machine()[0]["CPU"])
    spec = tiny("infeasible", train={"batch_size": too_many}, compute={"workers": too_many})
    with pytest.raises(ResourceError, match="it would wait for ever"):
        bench.submit(spec)
    assert not bench.folder(spec).parent.exists()
    assert bench.recorded(spec) == {}


def test_a_bucket_that_lets_nobody_in_is_refused(bench, tmp_path, monkeypatch):
    from ipcnn_ray.on_ray.submission import run_experiment

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    paths = Paths.from_environment({"IPCNN_HOME": str(tmp_path), "IPCNN_STORAGE": "s3://bucket/runs"})
    with pytest.raises(IpcnnError, match=r"Unable to locate credentials\nSet AWS_ACCESS_KEY_ID"):
        run_experiment(tiny("nowhere"), paths, bench.tracker, listener=EventLog())
