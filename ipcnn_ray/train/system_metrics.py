"""System metrics of a worker: processor, memory, disk, network and GPU of its machine, and those of its own process.

A thread of each worker takes a sample every `SAMPLE_S` seconds. At the end of an epoch the sums of all workers go to
rank 0 in one collective of a few numbers, which records their means since it did so last, as `system/rank_0/...` with
the epoch as the step. So they take the same way to the record as all other metrics, buffered while its server is
unreachable, and workers need no connection of their own. They are no part of a run's history, result or checkpoints.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
import torch
from torch import Tensor

from ipcnn_ray.train.run_metadata import RunRequest
from ipcnn_ray.train.runtime import Runtime

SAMPLE_S = 5.0
"""Seconds between two samples."""
RECORD_S = 10.0
"""Least seconds between two records; the last epoch is always recorded."""
PREFIX = "system/"
"""MLflow shows metrics with this prefix on a page of their own."""
MEANS = (
    "cpu_utilization_percentage",
    "system_memory_usage_megabytes",
    "system_memory_usage_percentage",
    "disk_usage_percentage",
    "process_cpu_percentage",
    "process_memory_megabytes",
    "gpu_utilization_percentage",
    "gpu_memory_usage_megabytes",
    "gpu_memory_usage_percentage",
    "gpu_power_usage_watts",
)
"""Means over the samples; the names that MLflow uses, where it has one. 100 % of `process_cpu` are one core; the GPU is
that of the worker, the disk that of the cache."""
TOTALS = ("network_receive_megabytes", "network_transmit_megabytes")
"""Of the machine since the worker started."""


class SystemMetrics:
    """Samples of one worker. A context manager, within which the thread runs."""

    def __init__(self, device: torch.device, disk: Path) -> None:
        """
        Args:
            device: Device of the worker.
            disk: A folder on the disk whose usage is measured.
        """
        self.device = device
        self.disk = next(folder for folder in (disk, *disk.absolute().parents) if folder.exists())
        self._process = psutil.Process()
        self._network = psutil.net_io_counters()
        self._sums = torch.zeros(len(MEANS), dtype=torch.float64)
        self._counts = torch.zeros(len(MEANS), dtype=torch.float64)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        psutil.cpu_percent()  # the first call has nothing to compare with
        self._process.cpu_percent()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(SAMPLE_S):
            self.sample()

    def sample(self) -> None:
        """Take a sample."""
        memory = psutil.virtual_memory()
        values = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_megabytes": memory.used / 1e6,
            "system_memory_usage_percentage": 100 * memory.used / memory.total,
            "disk_usage_percentage": psutil.disk_usage(str(self.disk)).percent,
            "process_cpu_percentage": self._process.cpu_percent(),
            "process_memory_megabytes": self._process.memory_info().rss / 1e6,
            **self._gpu(),
        }
        with self._lock:
            for index, name in enumerate(MEANS):
                if name in values:
                    self._sums[index] += values[name]
                    self._counts[index] += 1

    def _gpu(self) -> dict[str, float]:
        """What NVML says of the worker's GPU; nothing without a GPU, or where its driver does not answer."""
        if self.device.type != "cuda":
            return {}
        values: dict[str, float] = {}
        total = torch.cuda.get_device_properties(self.device).total_memory
        readers: dict[str, Callable[[], float]] = {
            "gpu_memory_usage_megabytes": lambda: torch.cuda.device_memory_used(self.device) / 1e6,
            "gpu_memory_usage_percentage": lambda: 100 * torch.cuda.device_memory_used(self.device) / total,
            "gpu_utilization_percentage": lambda: torch.cuda.utilization(self.device),
            "gpu_power_usage_watts": lambda: torch.cuda.power_draw(self.device) / 1000,
        }
        for name, read in readers.items():
            try:
                values[name] = float(read())
            except Exception:  # NVML has errors of its own, and some GPUs do not tell everything
                continue
        return values

    def totals(self) -> Tensor:
        """Return the sums and counts of all samples so far, one more included, and the network's totals, [V]."""
        self.sample()
        now = psutil.net_io_counters()
        network = [now.bytes_recv - self._network.bytes_recv, now.bytes_sent - self._network.bytes_sent]
        with self._lock:
            return torch.cat([self._sums, self._counts, torch.tensor(network, dtype=torch.float64) / 1e6])


@contextmanager
def system_metrics(request: RunRequest, runtime: Runtime) -> Iterator[SystemMetricsRecorder | None]:
    """Take samples within the block; None if the spec switches them off."""
    if not request.spec.compute.system_metrics:
        yield None
        return
    with SystemMetrics(runtime.device, request.paths.cache) as metrics:
        yield SystemMetricsRecorder(metrics, runtime)


class SystemMetricsRecorder:
    """Means over the samples of all ranks since the last record. Every rank has one and calls it after each epoch."""

    def __init__(self, metrics: SystemMetrics, runtime: Runtime) -> None:
        self.metrics, self.runtime = metrics, runtime
        self._before: Tensor | None = None
        self._recorded = time.monotonic()

    def collect(self, *, last: bool) -> dict[str, float]:
        """Return the metrics of all ranks by name; nothing on another rank than 0, or if the last record is recent."""
        all_RV = self.runtime.gather(self.metrics.totals().to(self.runtime.device)).cpu()
        if self.runtime.rank or not (last or time.monotonic() - self._recorded >= RECORD_S):
            return {}
        since_RV = all_RV - self._before if self._before is not None else all_RV
        self._before, self._recorded = all_RV, time.monotonic()
        values: dict[str, float] = {}
        for rank, (since_V, now_V) in enumerate(zip(since_RV.tolist(), all_RV.tolist(), strict=True)):
            sums, counts = since_V[: len(MEANS)], since_V[len(MEANS) : 2 * len(MEANS)]
            means = {name: total / count for name, total, count in zip(MEANS, sums, counts, strict=True) if count}
            for name, value in {**means, **dict(zip(TOTALS, now_V[-2:], strict=True))}.items():
                values[f"{PREFIX}rank_{rank}/{name}"] = round(value, 1)
        return values
