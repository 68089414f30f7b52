"""Receptive field of a torch module, computed from its torch.fx graph.

A module with branches (a Fire module, a residual block) is one window: the union of the windows of its branches. Graphs
with other operations (squeeze-and-excitation, attention) are measured: see measured_receptive_field.py.
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
"""Modules that compute each cell from the same cell, over one channel or all."""
TORCHVISION_POINTWISE = {"torchvision.models.convnext.LayerNorm2d", "torchvision.ops.stochastic_depth.StochasticDepth"}
"""More such modules, by name: importing torchvision is as slow as importing torch, and most runs do not need it."""
JOINS = {operator.add, operator.iadd, operator.mul, operator.imul, torch.add, torch.mul}
ACTIVATIONS = {F.relu, torch.relu, F.relu6, F.gelu, F.silu, torch.sigmoid, F.dropout}
METHODS = {"relu", "relu_", "sigmoid", "contiguous", "add_", "mul_"}
RELUS = {F.relu, torch.relu}


class NoReceptiveField(ValueError):
    """The module has no receptive field, or none that can be computed; the message names the operation."""


@dataclass(frozen=True)
class _AxisWindow:
    """Receptive field along one axis: output cell i depends on input cells stride * i + low to stride * i + high."""

    stride: int = 1
    low: int = 0
    high: int = 0

    def through(self, kernel: int, stride: int, pad: int, dilation: int) -> _AxisWindow:
        last = dilation * (kernel - 1)
        return _AxisWindow(self.stride * stride, self.low - self.stride * pad, self.high + self.stride * (last - pad))

    def union(self, other: _AxisWindow) -> _AxisWindow:
        return _AxisWindow(self.stride, min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class _FieldOfView:
    """Receptive field of a tensor's cells in the module's input."""

    rows: _AxisWindow = _AxisWindow()
    cols: _AxisWindow = _AxisWindow()
    channels_last: bool = False

    def through(self, kernel: Any, stride: Any, pad: Any, dilation: Any = 1) -> _FieldOfView:
        k, s, p, d = (_pair(value) for value in (kernel, stride, pad, dilation))
        rows, cols = (axis.through(k[i], s[i], p[i], d[i]) for i, axis in enumerate((self.rows, self.cols)))
        return replace(self, rows=rows, cols=cols)


class _Tracer(fx.Tracer):
    """Treats torch's own modules and those in `TORCHVISION_POINTWISE` as leaves."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_torchvision_pointwise(m) or super().is_leaf_module(m, module_qualified_name)


def _is_torchvision_pointwise(module: nn.Module) -> bool:
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}" in TORCHVISION_POINTWISE


def trace_operations(module: nn.Module) -> fx.Graph:
    """Trace the operations of a module in evaluation mode. Raises NoReceptiveField if they depend on values of
    tensors."""

    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return cast(torch.Tensor, self.inner(x))

    holder = Holder().eval()
    try:
        return _Tracer().trace(holder)
    except (fx.proxy.TraceError, TypeError, ValueError, AttributeError, RuntimeError, AssertionError) as error:
        raise NoReceptiveField(f"its operations cannot be followed ({error})") from error


def module_window(module: nn.Module) -> Window:
    """Return the window of a module's input that an output cell depends on: the union over channels and branches.
    Raises NoReceptiveField if there is no such window."""
    fields: dict[fx.Node, _FieldOfView | None] = {}
    for node in trace_operations(module).nodes:
        if node.op == "placeholder":
            fields[node] = _FieldOfView()
        elif node.op == "get_attr":
            fields[node] = None  # a parameter: the same for every cell
        elif node.op == "output":
            field = fields[node.args[0]] if isinstance(node.args[0], fx.Node) else None
            if field is None or field.channels_last or field.rows != field.cols:
                raise NoReceptiveField("it does not put out a map whose cells see squares")
            axis = field.rows
            return Window(axis.high - axis.low + 1, axis.stride, -axis.low)
        else:
            fields[node] = _propagate(module, node, fields)
    raise AssertionError("a graph without an output")


def _propagate(module: nn.Module, node: fx.Node, fields: dict[fx.Node, _FieldOfView | None]) -> _FieldOfView | None:
    inputs = [field for source in node.all_input_nodes if (field := fields[source]) is not None]
    if not inputs:
        return None
    if node.op == "call_module":
        name = _submodule_name(node)
        return _through_module(module.get_submodule(name), name, inputs[0])
    target = node.target
    if target is torch.permute or target == "permute":
        return _through_permute(node, inputs[0])
    concatenates = target is torch.cat and (node.args[1:] or (node.kwargs.get("dim", 0),))[0] == 1
    if concatenates or target in JOINS | ACTIVATIONS | METHODS:
        return _merge(inputs)
    if target in (F.max_pool2d, F.avg_pool2d):
        return _through_pool(node, inputs[0])
    raise NoReceptiveField(
        f"the operation {getattr(target, '__name__', target)} has no receptive field that is known here"
    )


def _through_module(module: nn.Module, name: str, field: _FieldOfView) -> _FieldOfView:
    if isinstance(module, nn.Conv2d) and isinstance(module.padding, str):
        raise NoReceptiveField(f"{name} pads by {module.padding!r}")
    if isinstance(module, nn.Conv2d | nn.MaxPool2d):
        return field.through(module.kernel_size, module.stride, module.padding, module.dilation)
    if isinstance(module, nn.AvgPool2d):
        return field.through(module.kernel_size, module.stride, module.padding)
    over_channels = isinstance(module, nn.Linear) or (
        isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1
    )
    pointwise = isinstance(module, POINTWISE) or _is_torchvision_pointwise(module)
    if pointwise or (over_channels and field.channels_last):
        return field
    kind, reason = type(module).__name__, "has no receptive field that is known here"
    if isinstance(module, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        reason = "takes in the whole map (squeeze-and-excitation or global pooling)"
    raise NoReceptiveField(f"{name} ({kind}) {reason}" if name else f"{kind} {reason}")


def _merge(inputs: list[_FieldOfView]) -> _FieldOfView:
    first, *others = inputs
    for other in others:
        if (other.rows.stride, other.cols.stride) != (first.rows.stride, first.cols.stride):
            raise NoReceptiveField("its branches have different strides")
        if other.channels_last != first.channels_last:
            raise NoReceptiveField("its branches have their channels in different places")
        first = replace(first, rows=first.rows.union(other.rows), cols=first.cols.union(other.cols))
    return first


def _through_permute(node: fx.Node, field: _FieldOfView) -> _FieldOfView:
    given = node.args[1:] or (node.kwargs.get("dims"),)
    axes = tuple(cast(Any, given[0] if isinstance(given[0], list | tuple) else given))
    expected = (0, 3, 1, 2) if field.channels_last else (0, 2, 3, 1)
    if axes != expected:
        raise NoReceptiveField(f"it permutes axes by {axes}")
    return replace(field, channels_last=not field.channels_last)


def _through_pool(node: fx.Node, field: _FieldOfView) -> _FieldOfView:
    names = ("input", "kernel_size", "stride", "padding")
    given = dict(zip(names, node.args, strict=False)) | node.kwargs
    kernel = given["kernel_size"]
    if given.get("dilation", 1) not in (1, (1, 1), [1, 1]):
        raise NoReceptiveField("it pools with a dilation")
    return field.through(kernel, given.get("stride") or kernel, given.get("padding", 0))


def _submodule_name(node: fx.Node) -> str:
    """Return the name of a node's submodule within the traced module."""
    return str(node.target).removeprefix("inner").removeprefix(".")


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


def strip_final_relu(module: nn.Module) -> nn.Module | None:
    """Return the module without the ReLUs of its output, so that relu(strip_final_relu(m)(x)) equals m(x).

    None if the output is not that of a ReLU, or a concatenation of such outputs. Parameters keep their names.
    """
    try:
        graph = trace_operations(module)
    except NoReceptiveField:
        return None
    output = next(node for node in graph.nodes if node.op == "output")
    ends: list[fx.Node] = []
    pending: list[Any] = [output.args[0]]
    while pending:
        node = pending.pop()
        if isinstance(node, fx.Node) and node.target is torch.cat and len(node.users) == 1:
            pending += node.all_input_nodes
        elif _is_relu(module, node) and len(node.users) == 1:
            ends.append(node)
        else:
            return None
    stripped = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if node in ends:
            values[node] = values[node.all_input_nodes[0]]
            continue
        values[node] = stripped.node_copy(node, lambda source: values[source])
        if node.op in ("call_module", "get_attr"):
            values[node].target = _submodule_name(node)
    return fx.GraphModule(module, stripped, class_name=type(module).__name__)


def _is_relu(module: nn.Module, node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_module":
        name = _submodule_name(node)
        return type(module.get_submodule(name)) is nn.ReLU
    return (node.op == "call_function" and node.target in RELUS) or (node.op == "call_method" and node.target == "relu")
