"""What a worker knows of the Ray around it, without one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from ipcnn_ray.on_ray import trainables


@pytest.mark.parametrize(
    ("alive", "free", "workers", "spare"),
    [
        ([True], {"CPU": 3.0}, 1, 3),
        ([True], {"CPU": 3.0}, 2, 1),
        ([True], {}, 1, 0),  # all are reserved
        ([True, False], {"CPU": 3.0}, 1, 3),
        ([True, True], {"CPU": 3.0}, 1, 0),
    ],
)
def test_the_free_cores_of_an_embedded_ray_are_shared_by_the_workers_of_a_run(monkeypatch, alive, free, workers, spare):
    monkeypatch.setattr(trainables.ray, "nodes", lambda: [{"Alive": one} for one in alive])
    monkeypatch.setattr(trainables.ray, "available_resources", lambda: free)
    worker = SimpleNamespace(world_size=workers)
    assert trainables._TuneReports.spare_cores(worker) == spare  # type: ignore[arg-type]
