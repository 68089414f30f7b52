"""`train.precision: auto` on processors: which have bfloat16, what a run in it gives, and that it keeps its precision.

The processor of the tests need not have it: torch computes the same there, slowly.
"""

from __future__ import annotations

import logging
import threading
from types import MappingProxyType

import pytest
import torch
from fakes.training import Bench, OnReport, Runtime, as_threads, copy_of, tiny
from safetensors.torch import load

from ipcnn_ray.train import checkpoint, trainer
from ipcnn_ray.train.filter_term import filter_terms
from ipcnn_ray.train.runtime import StopRun
from ipcnn_ray.train.speed import has_bfloat16
from ipcnn_ray.train.train_epoch import step_loss
from ipcnn_ray.train.trainer import Trainer

AUTO, FLOAT32 = (tiny(train={"precision": precision}) for precision in ("auto", "float32"))
ROUNDING = 2.0**-8
"""Largest relative error of a number that is rounded to bfloat16."""
BOUND = 4 * ROUNDING
"""Relative, of the losses in training in the first epoch of a tiny run. Later a peak that has moved by one cell, or a
filter that has taken another step, is more than rounding."""
LOSSES = ("train_loss", "filter_loss")


@pytest.fixture
def processor(monkeypatch):
    """A function that says whether the processor has bfloat16."""

    def has(it):
        monkeypatch.setattr(trainer, "has_bfloat16", lambda device: it)

    return has


@pytest.fixture(scope="module")
def in_bfloat16(tmp_path_factory, crops):
    """Weights and history of a run of AUTO in bfloat16 that nothing interrupted."""
    bench = Bench(tmp_path_factory.mktemp("bfloat16"), crops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "has_bfloat16", lambda device: True)
        bench.run(AUTO)
    assert bench.record.tags["ipcnn.precision"] == "bfloat16 autocast"
    return bench.weights(), bench.record.history


@pytest.fixture(scope="module")
def in_float32(tmp_path_factory, crops):
    """The same in float32, asked for."""
    bench = Bench(tmp_path_factory.mktemp("float32"), crops)
    bench.run(FLOAT32)
    return bench.weights(), bench.record.history


@pytest.mark.parametrize(
    ("capabilities", "has"),
    [
        ({"avx2": True, "avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, False),
    ],
    ids=["avx512 alone", "avx512-bf16", "amx", "arm"],
)
def test_processors_with_bfloat16(monkeypatch, capabilities, has):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: MappingProxyType(capabilities))
    assert has_bfloat16(torch.device("cpu")) is has


def test_torch_reports_the_capabilities_by_these_names():
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"):
        assert {"avx512_bf16", "amx_bf16"} <= set(torch.cpu.get_capabilities())


def test_where_there_is_none_and_where_float32_is_asked_for_the_run_is_in_float32(bench, in_float32, processor):
    for it, spec in ((False, AUTO), (True, FLOAT32)):
        processor(it)
        bench.run(spec, str(it))
        assert bench.record.tags["ipcnn.precision"] == "float32"
        assert (bench.weights(str(it)), bench.record.history) == in_float32


def test_the_first_epoch_in_bfloat16_is_that_in_float32_up_to_rounding(in_bfloat16, in_float32):
    (weights, (one, *_)), (weights32, (other, *_)) = in_bfloat16, in_float32
    assert weights != weights32
    assert {name: one[name] for name in LOSSES} == pytest.approx({name: other[name] for name in LOSSES}, rel=BOUND)
    assert all(tensor.dtype == torch.float32 for tensor in load(weights).values())


def test_a_run_in_bfloat16_ends_nearer_to_that_in_float32_than_another_seed(bench, in_bfloat16, in_float32):
    bench.run(FLOAT32.model_copy(update={"seed": 1}))
    end, end32, other = in_bfloat16[1][-1], in_float32[1][-1], bench.record.history[-1]
    for name in ("filter_loss", "val_loss", "instability"):
        assert abs(end[name] - end32[name]) < abs(other[name] - end32[name]), name


def stop_after(epoch):
    def stop(reported):
        if reported == epoch:
            raise StopRun("asked to", resumable=True)

    return OnReport(stop)


@pytest.mark.parametrize("there", [True, False], ids=["resumed where there is bfloat16", "and where there is none"])
def test_a_run_that_began_in_bfloat16_ends_as_if_nothing_had_interrupted_it(
    bench, in_bfloat16, processor, caplog, there
):
    processor(True)
    bench.run(AUTO, runtime=stop_after(2))
    processor(there)
    with caplog.at_level(logging.WARNING):
        bench.run(AUTO)
    assert (bench.weights(), bench.record.history) == in_bfloat16
    assert bench.record.tags["ipcnn.precision"] == "bfloat16 autocast"
    assert ("began in bfloat16" in caplog.text) is not there


def test_a_run_that_began_in_float32_goes_on_in_it_where_there_is_bfloat16(bench, in_float32, processor):
    processor(False)
    bench.run(AUTO, runtime=stop_after(1))
    processor(True)
    bench.run(AUTO)
    assert bench.record.tags["ipcnn.precision"] == "float32"
    assert (bench.weights(), bench.record.history) == in_float32


def test_a_checkpoint_of_an_earlier_version_goes_on_in_float32(bench, in_float32, processor, monkeypatch):
    save = checkpoint.save

    def without_precision(folder, origin, history, state):
        save(folder, origin, history, {key: part for key, part in state.items() if key != "bfloat16"})

    processor(False)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", without_precision)
        bench.run(AUTO, runtime=stop_after(1))
    processor(True)
    bench.run(AUTO)
    assert bench.record.tags["ipcnn.precision"] == "float32"
    assert (bench.weights(), bench.record.history) == in_float32


@pytest.mark.parametrize("ranks_with", [{0}, {1}, {0, 1}])
def test_workers_agree(bench, monkeypatch, ranks_with):
    rank = threading.local()
    monkeypatch.setattr(trainer, "has_bfloat16", lambda device: rank.number in ranks_with)

    def work(runtime):
        rank.number = runtime.rank
        return Trainer(bench.request(AUTO), runtime).bfloat16

    assert as_threads(2, work) == [ranks_with == {0, 1}] * 2


@pytest.mark.parametrize("world", [2, 4])
def test_gradients_of_workers_in_bfloat16_average_to_those_of_one(bench, world):
    """Each worker's gradient is rounded to bfloat16 before the mean is taken."""
    spec = tiny(loss={"filter": {"weight": 30.0}})
    inputs = bench.inputs(spec)
    terms = filter_terms(spec, spec.template, inputs.net, torch.tensor([0.5]))
    images_83SS = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    label_8 = torch.tensor([0, -1, 0, 0, -1, -1, 0, -1])

    def gradients(runtime):
        net, local = copy_of(inputs).net.train(), 8 // runtime.world_size
        rows = slice(runtime.rank * local, (runtime.rank + 1) * local)
        net.set_step(0, 2, 1, runtime.rank * local, 8)
        with torch.autocast("cpu", torch.bfloat16):
            output = net(images_83SS[rows], full=True)
        assert output.maps["conv5"].dtype == torch.bfloat16
        step_loss(output, label_8[rows], terms, 2, 8, runtime).total.backward()
        return torch.cat([parameter.grad.flatten() for parameter in net.parameters()])

    mean = torch.stack(as_threads(world, gradients)).mean(0)
    alone = gradients(Runtime())
    assert 0 < (mean - alone).norm() <= 2 * ROUNDING * alone.norm()
