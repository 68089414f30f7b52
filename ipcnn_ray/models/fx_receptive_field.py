"""What one cell behind a torch module sees of the module's input, read off the module's own graph.

A module with inner branches (a Fire module, a residual block) is, as far as receptive fields go, one window: the
hull of what its branches see. Where a branch averages over the whole map (squeeze-and-excitation, attention) a cell
sees everything and has no receptive field.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional as F

from ipcnn_ray.core.receptive_field import Window

POINTWISE = (
    nn.ReLU,
    nn.ReLU6,
    nn.GELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Identity,
    nn.Dropout,
    nn.BatchNorm2d,
    nn.LocalResponseNorm,
)
"""Modules that compute each cell from the same cell, over all channels or one."""
OF_TORCHVISION = {"torchvision.models.convnext.LayerNorm2d", "torchvision.ops.stochastic_depth.StochasticDepth"}
"""Such modules by name: importing torchvision takes as long as torch itself, and most runs do without."""
JOINS = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
ACTIVATIONS = {F.relu, torch.relu, F.relu6, F.gelu, F.silu, torch.sigmoid, F.dropout}
RELUS = {F.relu, torch.relu}


class NoField(ValueError):
    """A cell has no receptive field, or none that can be told; the text says which operation is to blame."""


@dataclass(frozen=True)
class _Reach:
    """Along one axis: cell i sees cells stride * i + low to stride * i + high of the module's input."""

    stride: int = 1
    low: int = 0
    high: int = 0

    def through(self, kernel: int, stride: int, pad: int, dilation: int) -> _Reach:
        last = dilation * (kernel - 1)
        return _Reach(self.stride * stride, self.low - self.stride * pad, self.high + self.stride * (last - pad))


@dataclass(frozen=True)
class _Seen:
    """What a cell of a tensor sees, over rows and columns."""

    rows: _Reach = _Reach()
    cols: _Reach = _Reach()
    channels_last: bool = False

    def through(self, kernel: Any, stride: Any, pad: Any, dilation: Any = 1) -> _Seen:
        k, s, p, d = (_pair(value) for value in (kernel, stride, pad, dilation))
        rows, cols = (reach.through(k[i], s[i], p[i], d[i]) for i, reach in enumerate((self.rows, self.cols)))
        return replace(self, rows=rows, cols=cols)


class _Tracer(fx.Tracer):
    """torch's own modules are leaves, and the two of torchvision's that are looked at as a whole."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _of_torchvision(m) or super().is_leaf_module(m, module_qualified_name)


def _of_torchvision(module: nn.Module) -> bool:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}" in OF_TORCHVISION


def graph_of(module: nn.Module) -> fx.Graph:
    """The operations of a module in evaluation mode.

    Errors: NoField where they depend on numbers that are not known beforehand.
    """

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.held = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, self.held(x))

    holder = Holder().eval()
    try:
        return _Tracer().trace(holder)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise NoField(f"its operations cannot be followed ({error})") from error


def window_of(module: nn.Module) -> Window:
    """The window through which a cell behind `module` sees the module's input: the hull over channels and branches.

    Errors: NoField.
    """
    seen: dict[fx.Node, _Seen | None] = {}
    for node in graph_of(module).nodes:
        if node.op == "placeholder":
            seen[node] = _Seen()
        elif node.op == "get_attr":
            seen[node] = None  # a parameter, the same for every cell
        elif node.op == "output":
            found = seen[node.args[0]]
            if found is None or found.channels_last or found.rows != found.cols:
                raise NoField("it does not put out a map whose cells see squares")
            reach = found.rows
            return Window(reach.high - reach.low + 1, reach.stride, -reach.low)
        else:
            seen[node] = _step(module, node, seen)
    raise AssertionError("a graph without an output")


def _step(module: nn.Module, node: fx.Node, seen: dict[fx.Node, _Seen | None]) -> _Seen:
    inputs = [found for one in node.all_input_nodes if (found := seen[one]) is not None]
    if node.op == "call_module":
        name = _inside(node)
        return _module(module.get_submodule(name), name, inputs[0])
    target = node.target
    if target is torch.permute or target == "permute":
        return _permuted(node, inputs[0])
    if target in JOINS or (target is torch.cat and _axis(node) == 1):
        return _joined(inputs)
    if target in ACTIVATIONS or target in ("relu", "relu_", "sigmoid", "contiguous", "add_", "mul_"):
        return _joined(inputs)
    if target in (F.max_pool2d, F.avg_pool2d):
        return _pooled(node, inputs[0])
    raise NoField(f"the operation {getattr(target, '__name__', target)} has no receptive field that is known here")


def _module(module: nn.Module, name: str, seen: _Seen) -> _Seen:
    if isinstance(module, nn.Conv2d):
        if isinstance(module.padding, str):
            raise NoField(f"{name} pads by {module.padding!r}")
        return seen.through(module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, nn.MaxPool2d):
        return seen.through(module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, nn.AvgPool2d):
        return seen.through(module.kernel_size, module.stride, module.padding)
    if _of_torchvision(module):
        return seen
    over_channels = isinstance(module, nn.Linear) or (
        isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    )
    if isinstance(module, POINTWISE) or (over_channels and seen.channels_last):
        return seen
    kind, what = type(module).__name__, "has no receptive field that is known here"
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        what = "takes in the whole map (squeeze-and-excitation or global pooling)"
    raise NoField(f"{name} ({kind}) {what}" if name else f"{kind} {what}")


def _joined(inputs: list[_Seen]) -> _Seen:
    first, *others = inputs
    for other in others:
        if (other.rows.stride, other.cols.stride) != (first.rows.stride, first.cols.stride):
            raise NoField("its branches have different strides")
        if other.channels_last != first.channels_last:
            raise NoField("its branches have their channels in different places")
        first = replace(first, rows=_hull(first.rows, other.rows), cols=_hull(first.cols, other.cols))
    return first


def _hull(a: _Reach, b: _Reach) -> _Reach:
    return _Reach(a.stride, min(a.low, b.low), max(a.high, b.high))


def _permuted(node: fx.Node, seen: _Seen) -> _Seen:
    given = node.args[1:] or (node.kwargs.get("dims"),)
    axes = tuple(cast(Any, given[0] if isinstance(given[0], list | tuple) else given))
    expected = (0, 3, 1, 2) if seen.channels_last else (0, 2, 3, 1)
    if axes != expected:
        raise NoField(f"it permutes axes by {axes}")
    return replace(seen, channels_last=not seen.channels_last)


def _pooled(node: fx.Node, seen: _Seen) -> _Seen:
    names = ("input", "kernel_size", "stride", "padding")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    kernel = given["kernel_size"]
    if given.get("dilation", 1) not in (1, (1, 1), [1, 1]):
        raise NoField("it pools with a dilation")
    return seen.through(kernel, given.get("stride") or kernel, given.get("padding", 0))


def _axis(node: fx.Node) -> Any:
    return node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)


def _inside(node: fx.Node) -> str:
    """Name of the node's target below the traced module."""
    return str(node.target).removeprefix("held").removeprefix(".")


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def before_relu(module: nn.Module) -> nn.Module | None:
    """The module without the ReLUs that its output comes from, so that relu(before_relu(m)(x)) is m(x).

    None where the output is not a ReLU's (or a concatenation of ReLUs'). Parameters keep their names.
    """
    try:
        graph = graph_of(module)
    except NoField:
        return None
    output = next(node for node in graph.nodes if node.op == "output")
    ends: list[fx.Node] = []
    waiting: list[Any] = [output.args[0]]
    while waiting:
        node = waiting.pop()
        if isinstance(node, fx.Node) and node.target is torch.cat and len(node.users) == 1:
            waiting += node.all_input_nodes
        elif _is_relu(module, node) and len(node.users) == 1:
            ends.append(node)
        else:
            return None
    bare = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in ends:
            values[node] = values[node.all_input_nodes[0]]
            continue
        values[node] = bare.node_copy(node, lambda one: values[one])
        if node.op in ("call_module", "get_attr"):
            values[node].target = _inside(node)
    return fx.GraphModule(module, bare, class_name=type(module).__name__)


def _is_relu(module: nn.Module, node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        name = _inside(node)
        return type(module.get_submodule(name)) is nn.ReLU
    return (node.op == "call_function" and node.target in RELUS) or (node.op == "call_method" and node.target == "relu")
