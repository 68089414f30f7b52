"""System metrics of every worker: their numbers, and how they get into the record."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
import torch
from fakes.training import MemoryRecord, OnReport, tiny

from ipcnn_ray.core.workers import Workers
from ipcnn_ray.train import system_metrics
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.system_metrics import MEANS, TOTALS, SystemMetrics, SystemMetricsRecorder

CPU = torch.device("cpu")


class TwoRanks(Runtime):
    """Rank 0 of two workers; the other one has sent twice as much."""

    world_size = 2

    def gather(self, x):
        return torch.stack([x, 2 * x])


def test_samples_are_those_of_the_machine(tmp_path):
    metrics = SystemMetrics(CPU, tmp_path / "not" / "made" / "yet")
    values = SystemMetricsRecorder(metrics, Runtime()).collect(last=True)
    named = {name.removeprefix("system/rank_0/"): value for name, value in values.items()}
    assert set(named) == {*(name for name in MEANS if not name.startswith("gpu")), *TOTALS}
    memory = psutil.virtual_memory()
    assert named["system_memory_usage_percentage"] == pytest.approx(100 * memory.used / memory.total, abs=10)
    assert named["process_memory_megabytes"] == pytest.approx(psutil.Process().memory_info().rss / 1e6, rel=0.2)
    assert named["disk_usage_percentage"] == pytest.approx(psutil.disk_usage(str(tmp_path)).percent, abs=1)
    assert 0 <= named["cpu_utilization_percentage"] <= 100


def test_means_are_those_since_the_last_record(tmp_path, monkeypatch):
    metrics = SystemMetrics(CPU, tmp_path)
    values = iter([10.0, 20.0, 90.0, 30.0, 50.0])
    monkeypatch.setattr(psutil, "cpu_percent", lambda: next(values))
    recorder, name = SystemMetricsRecorder(metrics, TwoRanks()), "cpu_utilization_percentage"
    metrics.sample(), metrics.sample()
    first = recorder.collect(last=True)  # takes a sample itself
    assert first[f"system/rank_0/{name}"] == first[f"system/rank_1/{name}"] == 40
    assert recorder.collect(last=False) == {}  # too soon after the first; its sample counts for the next
    monkeypatch.setattr(system_metrics, "RECORD_S", 0.0)
    assert recorder.collect(last=False)[f"system/rank_0/{name}"] == 40  # of 30 and 50
    assert {key.split("/")[1] for key in first} == {"rank_0", "rank_1"}


def test_another_rank_records_nothing(tmp_path):
    runtime = TwoRanks()
    runtime.rank = 1
    assert SystemMetricsRecorder(SystemMetrics(CPU, tmp_path), runtime).collect(last=True) == {}


def test_a_thread_takes_samples_until_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr(system_metrics, "SAMPLE_S", 0.01)
    with SystemMetrics(CPU, tmp_path) as metrics:
        end = time.monotonic() + 20
        while metrics._counts[0] < 3 and time.monotonic() < end:
            time.sleep(0.01)
    count = metrics._counts[0].item()
    assert count >= 3 and not metrics._thread.is_alive()


def test_a_gpu_that_does_not_answer_is_left_out(tmp_path, monkeypatch):
    def silent(device):
        raise RuntimeError("NVML: not supported")

    properties = type("Properties", (), {"total_memory": 8e9})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.cuda, "device_memory_used", lambda device: 2e9)
    monkeypatch.setattr(torch.cuda, "utilization", lambda device: 75)
    monkeypatch.setattr(torch.cuda, "power_draw", silent)
    metrics = SystemMetrics(CPU, tmp_path)
    metrics.device = torch.device("cuda")
    assert metrics._gpu() == {
        "gpu_memory_usage_megabytes": 2000,
        "gpu_memory_usage_percentage": 25,
        "gpu_utilization_percentage": 75,
    }


def test_they_are_in_the_record_and_nowhere_else(bench, whole):
    runtime = OnReport()
    result = bench.run(tiny(), runtime=runtime)
    assert 3 in bench.record.system  # the last epoch; others where a slow machine takes 10 s for one
    names = [name for name in bench.record.system[3] if name != "epoch"]
    assert {name.rpartition("/")[0] for name in names} == {"system/rank_0"}
    assert len(names) == len(MEANS) - 4 + len(TOTALS)
    assert not [name for row in (*runtime.reported, result.metrics) for name in row if name.startswith("system")]
    assert (bench.weights(), bench.record.history) == whole
    meta = next((Path(bench.request(tiny()).folder) / "checkpoints").rglob("meta.json")).read_text()
    assert "system/" not in meta


def test_they_can_be_switched_off(bench, whole):
    spec = tiny(compute={"system_metrics": False})
    assert spec.digest() == tiny().digest()
    bench.run(spec)
    assert bench.record.system == {} and (bench.weights(), bench.record.history) == whole


def test_a_resumed_run_records_each_epoch_once(bench, monkeypatch):
    """Lost after epoch 2 was recorded and before its checkpoint was stored: it is trained and recorded again."""
    monkeypatch.setattr(system_metrics, "RECORD_S", 0.0)
    record = MemoryRecord()
    with monkeypatch.context() as patch:
        patch.setattr("ipcnn_ray.train.trainer.Trainer._save_checkpoint", lost_at(2))
        with pytest.raises(RuntimeError, match="lost"):
            bench.run(tiny(), record=record)
    assert sorted(record.system) == [1, 2]
    before = dict(record.system[2])
    bench.run(tiny(), record=record)
    assert sorted(record.system) == [1, 2, 3] and record.system[2] == before


def lost_at(epoch):
    from ipcnn_ray.train.trainer import Trainer

    save = Trainer._save_checkpoint

    def saving(self):
        if self.history[-1]["epoch"] == epoch:
            raise RuntimeError("lost")
        save(self)

    return saving


def test_workers_are_gathered_in_the_order_of_their_ranks():
    assert Workers().gather(torch.ones(3)).shape == (1, 3)
