"""The optimizers of torch, without its compiler."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

WRAPPED = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
"""Methods that torch wraps in a function that imports its compiler, to exclude them from what that compiles."""


def make_optimizer(kind: type[Optimizer], groups: Sequence[Mapping[str, Any]], **settings: Any) -> Optimizer:
    """Return an optimizer that computes the same bytes as `kind`.

    `torch.optim` imports torch's compiler, `torch._dynamo`, when an optimizer is made. That takes each process of a run
    three seconds, and nothing here is compiled.
    """
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in WRAPPED}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))  # what else the wrapper of `step` does
    without_compiler: Any = type(kind.__name__, (kind,), methods)
    made: Optimizer = without_compiler([dict(group) for group in groups], **settings)
    return made
