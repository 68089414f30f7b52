"""The estimate of a run's memory against the bytes that torch's allocator gave to a real step and a real evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from fakes.training import tiny
from torch.profiler import ProfilerActivity, profile

from ipcnn_ray.models.build import build
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.device_memory import BENCHMARK, CONTEXT, PeakBytes, RunBytes, run_bytes
from ipcnn_ray.train.evaluate import evaluate
from ipcnn_ray.train.filter_term import filter_terms
from ipcnn_ray.train.runtime import Runtime
from ipcnn_ray.train.train_epoch import step_loss, train_epoch
from ipcnn_ray.train.trainer import Trainer

MEASURES = ("part_interpretability", "activation_entropy", "stability", "ablation_own")
WEIGHTS = {"weights": {"file": "w.npz", "layers": ["conv1", "conv2"]}}
CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    "plain": {"template": {"shape": "none"}},
    "single": {"loss": {"filter": {"form": "single"}}},
    "released": {"template": {"shape": "released"}},
    "learned beta": {"loss": {"filter": {"learn_beta": True}}},
    "mask at the centroid, diversity": {"template": {"mask": "centroid"}, "loss": {"diversity": {"form": "largest"}}},
    "diversity of peaks": {"loss": {"diversity": {"power": 2.0}}},
    "pooled head": {"model": {"head": "average_pool"}},
    "AdamW": {"train": {"optimizer": "adamw"}},
    "four layers": {"model": {"interpretable_layers": ["conv2", "conv3", "conv4", "conv5"]}},
    "metrics": {"eval": {"measures": MEASURES}},
    "augmented": {"data": {"augment": {"mirror": True, "crop": [0.6, 1.0], "color": 0.3}}},
    "frozen": {"model": WEIGHTS, "train": {"freeze_through": "conv2"}},
}


def most_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch's allocator had given out at the same time during a call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def small(case: dict[str, Any]) -> ExperimentSpec:
    """Batches of 32, so that maps are more than weights."""
    sections = {name: dict(section) for name, section in case.items()}
    sections["data"] = {"objects": 40, "negatives": 40, **sections.get("data", {})}
    sections["template"] = {"shape": "gradient", **sections.get("template", {})}
    train = {"batch_size": 32, "precision": "float32", "learning_rate": 1e-4, "final_learning_rate": None}
    return tiny(**{**sections, "train": {**train, **sections.get("train", {})}})


@pytest.mark.parametrize("name", CASES)
def test_the_estimate_is_above_what_a_run_takes_and_not_twice_as_much(bench, name):
    bench.pretrained(["conv1", "conv2"])
    spec = small(CASES[name])
    trainer = Trainer(bench.request(spec), Runtime())
    parts = trainer.net, trainer.inputs, trainer.optimizer, trainer.filter_terms, trainer.runtime, spec
    train_epoch(*parts, 1, diversity=trainer.diversity)  # the optimizer has its state
    trainer.optimizer.zero_grad(set_to_none=True)
    training = most_bytes(lambda: train_epoch(*parts, 2, diversity=trainer.diversity))
    trainer.optimizer.zero_grad(set_to_none=True)
    plan = trainer.evaluation_plan
    evaluation = most_bytes(lambda: evaluate(trainer.inputs, plan, spec, trainer.runtime, epoch=2))

    estimate = run_bytes(spec, len(plan.items))
    assert weights_of(trainer.net, trainer.optimizer) <= estimate.weights
    assert training <= estimate.training
    assert evaluation <= estimate.evaluation
    if name != "frozen":  # which reads features of images; the estimate is that of the images as well
        assert estimate.training <= 2 * training
        assert estimate.evaluation <= 2 * evaluation


def weights_of(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the weights, the templates of the masks, and the state of the optimizer."""
    state = [value for values in optimizer.state.values() for value in values.values() if torch.is_tensor(value)]
    return sum(tensor.nbytes for tensor in (*net.parameters(), *net.buffers(), *state))


@contextmanager
def step_of(spec: ExperimentSpec) -> Iterator[tuple[Callable[[], None], Callable[[], object], int]]:
    """A training step on a batch of noise, a forward pass, and the bytes of weights and state of the optimizer."""
    net = build(spec.model, spec.template, 0, 1, spec.loss.filter).train()
    terms = filter_terms(spec, spec.template, net, torch.tensor([0.5]))
    optimizer = torch.optim.SGD(net.parameter_groups(5e-4), lr=1e-6, momentum=0.9)
    batch, size = spec.train.batch_size, spec.model.table.image_size
    x_N3SS, label_N = torch.randn(batch, 3, size, size), (torch.arange(batch) % 2) - 1

    def step() -> None:
        net.set_step(0, 1, 0, 0, batch)
        loss = step_loss(net(x_N3SS, full=True), label_N, terms, 1, batch, Runtime())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss.total)
        optimizer.step()

    def forward() -> object:
        with torch.no_grad():
            return net.eval()(x_N3SS, full=True)

    step()
    optimizer.zero_grad(set_to_none=True)
    yield step, forward, weights_of(net, optimizer)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "cut", "batch"),
    [
        ("alexnet", None, 16),
        ("vgg_m", None, 4),
        ("vgg_s", None, 4),
        ("vgg16", None, 2),
        ("resnet18", "layer3.1", 4),
        ("densenet121", "features.denseblock3", 2),
        ("squeezenet1_1", "features.12", 4),
    ],
)
def test_networks(network, cut, batch):
    model = {"network": network, "dropout": None, **({"cut": cut} if cut else {})}
    spec = tiny(model=model, train={"batch_size": batch})
    estimate = run_bytes(spec, images=0)
    with step_of(spec) as (step, forward, weights):
        assert weights <= estimate.weights <= 1.05 * weights
        training, evaluation = most_bytes(step), most_bytes(forward)
    assert training <= estimate.training <= 2 * training
    assert evaluation <= estimate.evaluation <= 2.5 * evaluation


def test_bytes_are_counted_while_tensors_exist():
    before = torch.zeros(100, device="meta")
    with PeakBytes([before]) as bytes_:
        before.view(10, 10)  # has the memory of another tensor
        x = before + 1  # 400
        y = x.double()  # 800
        del x
        z = y[:50].clone()  # 400
        z.add_(1)
        del y, z
        before[:10].exp()  # 40
    assert (bytes_.peak, bytes_.largest) == (1200, 800)


def test_the_memory_of_a_process_by_hand():
    assert RunBytes(100, 200, 100).of_process == CONTEXT + 500  # 1.25 * 400
    assert RunBytes(100, 200, 100, replayed=80, workspaces=7).of_process == CONTEXT + 600 + 7


def test_what_takes_more_memory():
    def process(images: int = 100, **sections: Any) -> int:
        return run_bytes(small(sections), images).of_process

    usual = process()
    assert process(train={"batch_size": 64}) > usual
    assert process(train={"optimizer": "adamw"}) > usual
    assert process(images=10_000) > usual
    assert process(compute={"speed": "fast"}) > usual + BENCHMARK
    assert process(template={"shape": "none"}) < usual
    assert process(model=WEIGHTS, train={"freeze_through": "conv2"}) < usual
