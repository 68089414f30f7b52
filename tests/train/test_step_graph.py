"""Steps that a graph replays equal the steps, with recorded operators in place of CUDA graphs."""

from __future__ import annotations

import pytest
import torch
from fakes.recorded_graph import RecordedGraphs
from fakes.training import timeless, tiny

from ipcnn_ray.core import filter_loss, released
from ipcnn_ray.train import diversity_term, step_graph
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.step_graph import WARM_UP, StepGraph
from ipcnn_ray.train.trainer import Trainer

TWO = {"data": {"category": ["cow", "dog"]}}
CASES = {
    "exact": {},
    "plain": {"template": {"shape": "none"}},
    "learned beta": {"loss": {"filter": {"learn_beta": True}}},
    "zconst, AdamW": {"loss": {"filter": {"form": "zconst"}}, "train": {"optimizer": "adamw", "learning_rate": 1e-3}},
    "single, two categories": {**TWO, "loss": {"filter": {"form": "single"}}},
    "released": {"template": {"shape": "released"}},
    "released, two categories": {**TWO, "template": {"shape": "released"}},
    "paper's schedule": {"loss": {"filter": {"schedule": "paper"}}},
    "diversity": {"loss": {"diversity": {"form": "overlap"}}},
    "augmented": {"data": {"augment": {"mirror": True, "crop": [0.6, 1.0], "color": 0.3}}},
    "frozen": {
        "model": {"weights": {"file": "w.npz", "layers": ["conv1", "conv2"]}},
        "train": {"freeze_through": "conv2"},
    },
    "narrowing": {"template": {"shape": "gradient", "narrowing": {"scale": 2.0, "epochs": 2}}},
}


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Weigh images with 0 rather than select them: a graph has no numbers of images."""
    mean = filter_loss.mean_over
    for module in (filter_loss, released):
        monkeypatch.setattr(module, "mean_over", lambda x, of, *, select: mean(x, of, select=False))
    add = diversity_term.DiversityTerm._sum
    monkeypatch.setattr(diversity_term.DiversityTerm, "_sum", lambda *args, select: add(*args, select=False))


EPOCHS = 2


def trained(bench, spec, graphs):
    """The trainer, its graph and the metrics of each epoch."""
    trainer = Trainer(bench.request(spec), Runtime())
    graph = graphs and StepGraph(trainer.net, trainer.optimizer, trainer.filter_terms, graphs)
    trainer.graph = graph
    trainer.model = trainer.net
    metrics = [trainer._train_epoch(epoch) for epoch in range(1, EPOCHS + 1)]
    return trainer, graph, metrics


def states(trainer):
    optimizer = [value for state in trainer.optimizer.state.values() for value in state.values()]
    averages = [term.average_CL for term in trainer.filter_terms.values()]
    tensors = [*trainer.net.state_dict().values(), *optimizer, *averages]
    return [tensor for tensor in tensors if isinstance(tensor, torch.Tensor)]


def spec_of(sections, speed="fast"):
    train = {"batch_size": 4, "learning_rate": 0.01, "final_learning_rate": 1e-3, **sections.get("train", {})}
    return tiny(**{**sections, "train": train, "compute": {"speed": speed}})


def same(one, other):
    return len(states(one)) == len(states(other)) and all(map(torch.equal, states(one), states(other)))


@pytest.mark.parametrize("sections", CASES.values(), ids=CASES.keys())
def test_replayed_steps_are_the_steps(bench, sections):
    bench.pretrained(["conv1", "conv2"])
    spec, graphs = spec_of(sections), RecordedGraphs()
    one, _, metrics = trained(bench, spec, None)
    other, graph, of_graph = trained(bench, spec, graphs)
    steps = EPOCHS * (len(one.store.train_items) // 4)
    assert not graph.given_up and graphs.captures == EPOCHS
    assert graph.replayed == steps - WARM_UP - 1 > EPOCHS
    assert same(one, other) and timeless(metrics) == timeless(of_graph)


def test_a_fast_run_on_a_gpu_has_a_graph(bench, monkeypatch):
    """And none with several workers, whose collectives wait for each other, or with exact kernels."""
    made = []
    monkeypatch.setattr(step_graph, "CudaGraphs", lambda device: made.append(device) or RecordedGraphs())
    trainer = Trainer(bench.request(spec_of({})), Runtime())
    arguments = trainer.net, trainer.optimizer, trainer.filter_terms
    gpu, two = Runtime("cuda"), Runtime("cuda")
    two.world_size = 2
    assert step_graph.step_graph(spec_of({}), gpu, *arguments) is not None and made == [gpu.device]
    for spec, runtime in ((spec_of({}), Runtime()), (spec_of({}), two), (spec_of({}, "exact"), gpu)):
        assert step_graph.step_graph(spec, runtime, *arguments) is None


class Broken(RecordedGraphs):
    """Captures that fail, or graphs that do not do what they should."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def capture(self, call):
        replay, numbers = super().capture(call)
        if self.fault == "stops":
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        if self.fault == "idle":
            return lambda: numbers.copy_(torch.zeros_like(numbers)), numbers
        before = [parameter.detach().clone() for parameter in self.parameters]

        def without_update():
            replay()
            torch._foreach_copy_([parameter.detach() for parameter in self.parameters], before)

        return without_update, numbers


@pytest.mark.parametrize(
    ("fault", "case"),
    [
        ("idle", "exact"),
        ("stops", "learned beta"),
        ("stops", "single, two categories"),
        ("no update", "released, two categories"),
    ],
)
def test_a_graph_that_fails_is_given_up_without_a_trace(bench, fault, case, caplog, monkeypatch):
    spec, graphs = spec_of(CASES[case]), Broken(fault)
    one, _, metrics = trained(bench, spec, None)
    make = StepGraph.__init__

    def with_parameters(self, net, *arguments):
        graphs.parameters = [parameter for parameter in net.parameters() if parameter.requires_grad]
        make(self, net, *arguments)

    monkeypatch.setattr(StepGraph, "__init__", with_parameters)
    other, graph, of_graph = trained(bench, spec, graphs)
    assert graph.given_up and graph.replayed == 0 and caplog.text.count("goes on without") == 1
    assert same(one, other) and timeless(metrics) == timeless(of_graph)


def test_adamw_that_went_on_from_an_exact_run_is_not_captured(bench, caplog):
    """Its state is on the CPU: that of an optimizer that is not fused."""
    spec, graphs = spec_of(CASES["zconst, AdamW"], "exact"), RecordedGraphs()
    one, _, metrics = trained(bench, spec, None)
    other, graph, of_graph = trained(bench, spec, graphs)
    assert "capturable" in graph.given_up and same(one, other) and timeless(metrics) == timeless(of_graph)
    assert not any(group["capturable"] for group in other.optimizer.param_groups)
