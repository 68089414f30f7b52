"""A stand-in for CUDA graphs on a CPU: the operators of a call, repeated on the memory that they had."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class RecordedGraphs:
    """As a CUDA graph, a captured call has not run, keeps its numbers of Python, and reads and writes where the
    recorded one did."""

    def __init__(self) -> None:
        self.captures = 0

    def beside(self, call: Callable[[], Tensor]) -> Tensor:
        return call()

    def capture(self, call: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        self.captures += 1
        with _Recorder() as recorder:
            result = call()
        with torch.no_grad():
            for tensor, before in recorder.before.values():
                tensor.copy_(before)
        return recorder.replay, result


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        """Tensors of others that the call has changed, with what was in them."""
        self._own: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        for tensor in _written(func, args, kwargs):
            place = tensor.untyped_storage().data_ptr()
            if place not in self._own and tensor.data_ptr() not in self.before:
                self.before[tensor.data_ptr()] = tensor, tensor.detach().clone()
        inputs = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        result = func(*args, **kwargs)
        self._own |= {tensor.untyped_storage().data_ptr() for tensor in _tensors(result)} - inputs
        self.calls.append((func, args, kwargs, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, result in self.calls:
                again = func(*args, **kwargs)
                for old, new in zip(_tensors(result), _tensors(again), strict=True):
                    if old.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():  # else a view, or in place
                        old.copy_(new)


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    for number, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[number] if number < len(args) else kwargs.get(argument.name))


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
