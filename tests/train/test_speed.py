"""`compute.speed: fast`: the same run up to rounding, on a CPU as well."""

from __future__ import annotations

import pytest
import torch
from fakes.training import OnReport, tiny

from ipcnn_ray.spec.training import Compute
from ipcnn_ray.train.run_dir import FILTERS_FILE
from ipcnn_ray.train.runtime import StopRun
from ipcnn_ray.train.speed import kernels
from ipcnn_ray.train.trainer import Trainer

BOUND = 1e-3
"""Relative, of all metrics after three epochs of a tiny run in float32."""


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"train": {"optimizer": "adamw", "learning_rate": 3e-4, "final_learning_rate": 1e-4}},
        {"template": {"shape": "released"}},
    ],
    ids=["sgd", "adamw", "released"],
)
def test_a_fast_run_is_the_exact_one_up_to_rounding(bench, sections):
    exact = tiny(**{**sections, "train": {"precision": "float32", **sections.get("train", {})}})
    fast = exact.model_copy(update={"compute": Compute(speed="fast")})
    assert fast.digest() == exact.digest()
    bench.run(exact, "exact")
    history = bench.record.history
    assert bench.record.tags["ipcnn.speed"] == "exact"
    bench.run(fast, "fast")
    assert bench.record.tags["ipcnn.speed"] == "fast"
    for one, other in zip(bench.record.history, history, strict=True):
        assert one == pytest.approx(other, rel=BOUND, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_maps_are_channels_last_and_the_optimizer_is_fused(bench, optimizer):
    """In a fast run. A fused step has other bytes than torch's default: those of exact runs must stay as they are."""
    states = []
    for speed in ("exact", "fast"):
        spec, fast = tiny(compute={"speed": speed}, train={"optimizer": optimizer}), speed == "fast"
        trainer = Trainer(bench.request(spec), OnReport())
        net = trainer.net.eval()
        states.append(net.state_dict().values())
        assert net.layer("conv2").weight.is_contiguous(memory_format=torch.channels_last) == fast
        assert bool(trainer.optimizer.defaults["fused"]) == fast
        with trainer.inputs.loader([trainer.store.train_items[:2]]) as loader:
            maps = net(trainer.inputs.net_input(next(loader)), from_features=True, full=True).maps
        assert maps["conv4"].is_contiguous(memory_format=torch.channels_last) == fast
    assert all(map(torch.equal, *states))


@pytest.mark.parametrize("first", ["exact", "fast"])
def test_a_run_goes_on_with_the_other_speed(bench, first):
    def stop(epoch):
        if epoch == 2:
            raise StopRun("asked to", resumable=True)

    speeds = (first, "fast" if first == "exact" else "exact")
    for speed, runtime in zip(speeds, (OnReport(stop), OnReport()), strict=True):
        summary = bench.run(tiny(compute={"speed": speed}), "run", runtime)
    assert summary.state == "succeeded" and summary.metrics["epoch"] == 3
    assert (bench.root / "runs" / "run" / FILTERS_FILE).is_file()


def test_exact_kernels_are_deterministic_without_tf32():
    before = (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic)
    for speed, fast in (("exact", False), ("fast", True)):
        with kernels(tiny(compute={"speed": speed})):
            cudnn = torch.backends.cudnn
            assert (cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32) == (fast, not fast, fast)
            assert not torch.backends.cuda.matmul.allow_tf32  # the filter loss needs float32
    assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == before
