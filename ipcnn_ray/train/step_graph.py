"""Training steps that a CUDA graph replays, for `compute.speed: fast`.

A step is 300 to 600 kernels. Behind frozen layers and in small networks the GPU is done with each of them before the
CPU has launched the next. A graph launches all kernels of a step at once. It repeats them on the memory that they had:
what changes from step to step is copied there or drawn there before, and what a number of Python has decided, such as
the learning rate, stays as it was. So each epoch has a graph of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor

from ipcnn_ray.models.layer_loss import FilterTerm
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.train.runtime import Runtime

Step = Callable[[Tensor, Tensor], Tensor]
"""(input of the first trained layer, labels) -> numbers of the step; updates the parameters."""
WARM_UP = 3
"""Steps of a process before its first capture. In them kernels are chosen, and the optimizer makes its state."""
BOUND = 0.25
"""Largest difference of the first replayed step from the step itself, relative to the update of each parameter. A wrong
step is off by about 1; fast kernels, which round differently each time, by about a thousandth in bfloat16."""

log = logging.getLogger(__name__)


class Graphs(Protocol):
    """Captures calls on a device."""

    def beside(self, call: Callable[[], Tensor]) -> Tensor:
        """Run a call where calls are captured, as the warm-up that a capture needs."""

    def capture(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record a call, without running it. Returns a function that runs it, and the tensor that then holds its
        result. Raises RuntimeError if the call does what a graph cannot hold."""


class CudaGraphs:
    """CUDA graphs, captured on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def beside(self, call: Callable[[], Tensor]) -> Tensor:
        current = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = call()
        current.wait_stream(self.stream)
        return result

    def capture(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        graph = torch.cuda.CUDAGraph()
        # Not `global`: the next batch is copied to pinned memory, and to the device, in another thread.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            result = call()
        return graph.replay, result


class StepGraph:
    """Runs the training steps of one worker, those of an epoch after the first by replaying that one.

    The first replayed step of a process is compared with the same step without a graph. If they differ, a step cannot
    be captured, or memory is short, a warning says so, and this and all later steps run without a graph.

    Args:
        net: The trained network.
        optimizer: Of its parameters.
        terms: Its filter losses; a replayed step updates their moving averages, too.
    """

    def __init__(
        self,
        net: InterpretableNet,
        optimizer: torch.optim.Optimizer,
        terms: Mapping[str, FilterTerm],
        graphs: Graphs,
    ) -> None:
        self.net, self.optimizer, self.terms, self.graphs = net, optimizer, terms, graphs
        self.given_up = ""
        """Why steps run without a graph; empty as long as they do not."""
        self.replayed = 0
        """Steps that were replayed."""
        self._warm_ups = 0
        self._checked = False
        self._replay: Callable[[], None] | None = None
        self._rows = self._label_N = self._numbers = torch.empty(0)
        """Input and result of the captured step."""

    @contextmanager
    def epoch(self, step: Step) -> Iterator[Step]:
        """Yield what to call in place of a step, all of them with inputs of one shape, for the length of the block."""

        def run(rows: Tensor, label_N: Tensor) -> Tensor:
            if self._replay is not None:
                self._rows.copy_(rows)
                self._label_N.copy_(label_N)
                return self._replayed(self._replay)
            if self.given_up:
                return step(rows, label_N)
            if self._warm_ups < WARM_UP:
                self._warm_ups += 1
                return self.graphs.beside(lambda: step(rows, label_N))
            inputs = self._rows, self._label_N = rows.clone(), label_N.clone()
            return self._first(lambda: step(*inputs))

        try:
            yield run
        finally:
            self._forget()

    def _first(self, step: Callable[[], Tensor]) -> Tensor:
        """Capture the step, and run it."""
        averages = {layer: term.average_CL for layer, term in self.terms.items()}

        def in_place() -> Tensor:
            numbers = step()
            for layer, term in self.terms.items():
                if (average_CL := averages[layer]) is not None and term.average_CL is not None:
                    average_CL.copy_(term.average_CL)
                    term.average_CL = average_CL
            return numbers

        self.net.draw_ahead(True)
        try:
            with _capturable(self.optimizer):
                self._replay, self._numbers = self.graphs.capture(in_place)
        except (RuntimeError, AssertionError) as error:  # the latter of an optimizer whose state is not on the device
            for layer, term in self.terms.items():
                term.average_CL = averages[layer]
            self._give_up(f"a training step cannot be captured in a CUDA graph ({str(error).splitlines()[0]})")
            return step()
        if self._checked:
            return self._replayed(self._replay)
        self._checked = True
        try:
            compared = _Compared(self.optimizer, [average for average in averages.values() if average is not None])
        except torch.OutOfMemoryError:
            self._give_up("there is no memory to compare a step that a CUDA graph replays with the step")
            return step()
        self._replay()
        compared.keep_update()
        numbers = self.graphs.beside(in_place)
        if not (difference := compared.difference()) <= BOUND:
            self._give_up(f"a step that a CUDA graph replays is not the step: its update is off by {difference:.2g}")
        return numbers

    def _replayed(self, replay: Callable[[], None]) -> Tensor:
        replay()
        self.replayed += 1
        return self._numbers.clone()

    def _give_up(self, reason: str) -> None:
        self.given_up = reason
        log.warning("%s; training goes on without", reason)
        self._forget()

    def _forget(self) -> None:
        """Release the graph and its memory, in which the gradients are."""
        if self._replay is not None:
            self.optimizer.zero_grad(set_to_none=True)
        self._replay = None
        self._rows = self._label_N = self._numbers = torch.empty(0)
        self.net.draw_ahead(False)


class _Compared:
    """A replayed step and, from the same state, the step itself."""

    def __init__(self, optimizer: torch.optim.Optimizer, averages: list[Tensor]) -> None:
        self.parameters = [parameter.detach() for group in optimizer.param_groups for parameter in group["params"]]
        of_optimizer = [value for state in optimizer.state.values() for value in state.values()]
        self.others = [*averages, *(value for value in of_optimizer if isinstance(value, Tensor))]
        self.before = [tensor.clone() for tensor in (*self.parameters, *self.others)]
        self.replayed = [tensor.clone() for tensor in self.parameters]

    def keep_update(self) -> None:
        """Keep what a step that was replayed has made of the parameters, and return to the state before it."""
        torch._foreach_copy_(self.replayed, self.parameters)
        torch._foreach_copy_([*self.parameters, *self.others], self.before)

    def difference(self) -> float:
        """Return by how much the replayed update of a parameter is off, now that the step itself has run, relative to
        the update; the largest of all parameters."""
        off = torch._foreach_norm(torch._foreach_sub(self.parameters, self.replayed))
        update = torch._foreach_norm(torch._foreach_sub(self.parameters, self.before[: len(self.parameters)]))
        share = torch.stack(off) / torch.stack(update)
        return float(torch.where(torch.stack(off) == 0, 0.0, share).max())


@contextmanager
def _capturable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let AdamW be captured, which asks for a flag. Its state is on the device, since it is fused."""
    groups = [group for group in optimizer.param_groups if "capturable" in group]
    before = [group["capturable"] for group in groups]
    for group in groups:
        group["capturable"] = True
    try:
        yield
    finally:
        for group, flag in zip(groups, before, strict=True):
            group["capturable"] = flag


def step_graph(
    spec: ExperimentSpec,
    runtime: Runtime,
    net: InterpretableNet,
    optimizer: torch.optim.Optimizer,
    terms: Mapping[str, FilterTerm],
) -> StepGraph | None:
    """Return the graph of a run's steps: for a run of one worker on a GPU with `compute.speed: fast`, else None."""
    if spec.compute.speed != "fast" or runtime.device.type != "cuda" or runtime.world_size > 1:
        return None
    return StepGraph(net, optimizer, terms, CudaGraphs(runtime.device))
