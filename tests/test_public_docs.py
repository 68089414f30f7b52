"""Documentation of the Python API: every public name with its arguments, shapes, units and errors; its examples run."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from doc_examples import examples
from torch import nn

import ipcnn_ray
from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext
from ipcnn_ray.core.metrics.streaming import StreamingMetric
from ipcnn_ray.core.templates import Offsets
from ipcnn_ray.data.datasets.dataset import Dataset
from ipcnn_ray.data.photographs import Annotations, PhotographDataset
from ipcnn_ray.spec.extensions import METRICS as SPEC_METRICS
from ipcnn_ray.spec.template import PartTemplate

ROOT = Path(__file__).resolve().parents[1]
PUBLIC = {name: getattr(ipcnn_ray, name) for name in ipcnn_ray._PUBLIC}
EXTENSION_POINTS: dict[str, Any] = {
    value.__name__: value
    for value in (PartTemplate, Offsets, Dataset, PhotographDataset, Annotations, FilterMetric, LayerContext)
}
"""What another package builds on, as in CONTRIBUTING.md."""
METRICS = [value for value in PUBLIC.values() if inspect.isclass(value) and issubclass(value, StreamingMetric)]
SHAPED = re.compile(r"_[A-Z]+[A-Za-z0-9]*$")
"""Names of tensors that say their shape, such as `maps_NCHW`."""


def own_doc(value: Any) -> str:
    """The docstring of a function or class, not that of `object` or of a base outside the package."""
    if inspect.isclass(value):
        bases = [base for base in value.__mro__ if base.__module__.startswith("ipcnn_ray")]
        return inspect.cleandoc(next((base.__doc__ for base in bases if base.__dict__.get("__doc__")), ""))
    return inspect.getdoc(value) or ""


def members(cls: type) -> Iterator[tuple[str, Any]]:
    """Public methods and properties of a class that the package defines."""
    for base in cls.__mro__:
        if base.__module__.startswith("ipcnn_ray"):
            for name, value in vars(base).items():
                if not name.startswith("_") and isinstance(value, FunctionType | property | classmethod):
                    yield f"{base.__name__}.{name}", value
                elif not name.startswith("_") and hasattr(value, "func"):  # a cached property
                    yield f"{base.__name__}.{name}", value.func


def functions(public: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Every public function, constructor and method, and the documentation of its arguments and errors."""
    for name, value in public.items():
        if inspect.isclass(value):
            ours = getattr(value.__init__, "__module__", "").startswith("ipcnn_ray")
            if ours and isinstance(value.__init__, FunctionType) and not dataclasses.is_dataclass(value):
                yield name, value.__init__, own_doc(value)
            for method, member in members(value):
                function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
                yield method, function, own_doc(function)
        else:
            yield name, value, own_doc(value)


def fields(cls: type) -> Iterator[tuple[str, bool]]:
    """Fields of a dataclass, and whether a docstring follows them."""
    for base in cls.__mro__:
        if dataclasses.is_dataclass(base) and base.__module__.startswith("ipcnn_ray"):
            (tree,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
            for statement, after in zip(tree.body, [*tree.body[1:], None], strict=True):
                if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
                    documented = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                    yield f"{base.__name__}.{statement.target.id}", documented


def problems(public: Mapping[str, Any]) -> list[str]:
    """What is missing."""
    found = []
    for name, value in public.items():
        if not own_doc(value):
            found.append(f"{name}: no docstring")
        if inspect.isclass(value):
            found += [f"{field}: no docstring" for field, documented in fields(value) if not documented]
    for name, function, doc in functions(public):
        if not doc.strip():
            found.append(f"{name}: no docstring")
            continue
        signature = inspect.signature(function)
        for parameter in list(signature.parameters.values()):
            if parameter.name in ("self", "cls"):
                continue
            listed = re.search(r"^Args:$", doc, re.MULTILINE)
            described = rf"^ *[*]*{parameter.name}: " if listed else rf"\b{parameter.name}\b"
            if not re.search(described, doc, re.MULTILINE):
                found.append(f"{name}: {parameter.name} is not documented")
            elif "Tensor" in str(parameter.annotation) and not SHAPED.search(parameter.name) and "[N" not in doc:
                found.append(f"{name}: {parameter.name} has no shape")
        if "Tensor" in str(signature.return_annotation) and not re.search(r"\[[A-Z]|number", doc):
            found.append(f"{name}: its result has no shape")
        given = [parameter for parameter in signature.parameters if parameter not in ("self", "cls")]
        returns = function.__name__ != "__init__" and str(signature.return_annotation) not in ("None", "Self")
        if given and returns and not re.search(r"\b([Rr]eturn|Yield|Whether)|->", doc):
            found.append(f"{name}: its result is not documented")
        for error in sorted(raised_by(function)):
            if "Raises" not in doc or error not in doc:
                found.append(f"{name}: {error} is not documented")
    return sorted(set(found))


def raised_by(function: Any) -> set[str]:
    """Names of the exceptions that a function raises itself."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise)]
    names = [call.func if isinstance(call, ast.Call) else call for call in calls]
    return {name.id for name in names if isinstance(name, ast.Name) and name.id[0].isupper()}


def test_every_public_name_is_documented():
    assert problems(PUBLIC) == []


def test_every_extension_point_is_documented():
    assert problems(EXTENSION_POINTS) == []


def test_every_metric_has_its_unit():
    assert [metric.measured.name for metric in METRICS] == list(SPEC_METRICS.built_in)
    for metric in METRICS:
        assert f"{metric.measured.unit}; {metric.measured.better} is better" in metric.__doc__
        assert "pixels" in metric.__doc__


BARE = """
import dataclasses, torch

class Undocumented:
    def __init__(self, size: int) -> None:
        raise ValueError(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        '''Take x.'''
        return x

@dataclasses.dataclass
class Bare:
    '''A result.'''
    mean: float
"""


def test_these_checks_can_fail(tmp_path, monkeypatch):
    (tmp_path / "ipcnn_ray_bare.py").write_text(BARE)
    monkeypatch.syspath_prepend(tmp_path)
    module = import_module("ipcnn_ray_bare")
    assert problems({"Undocumented": module.Undocumented, "Bare": module.Bare}) == [
        "Bare.mean: no docstring",
        "Undocumented.forward: its result has no shape",
        "Undocumented.forward: its result is not documented",
        "Undocumented.forward: x has no shape",
        "Undocumented: no docstring",
    ]
    module.Undocumented.__doc__ = "A layer."
    assert {"Undocumented: ValueError is not documented", "Undocumented: size is not documented"} < set(
        problems({"Undocumented": module.Undocumented})
    )


@pytest.mark.parametrize(
    ("doc", "count"),
    [(ipcnn_ray.__doc__, 2), (ipcnn_ray.InterpretableLayer.__doc__, 1), (ipcnn_ray.FilterMetrics.__doc__, 1)],
)
def test_the_examples_of_the_layer_and_the_metrics_run(doc, count):
    blocks = examples(doc)
    assert len(blocks) == count
    maps, landmarks = torch.rand(4, 3, 14, 14), 224 * torch.rand(4, 2, 2)
    names = {
        **PUBLIC,
        "torch": torch,
        "conv": nn.Conv2d(3, 5, 3, padding=1),
        "head": nn.Sequential(nn.Flatten(), nn.Linear(5 * 14 * 14, 2)),
        "criterion": nn.CrossEntropyLoss(),
        "x": torch.rand(4, 3, 14, 14),
        "target": torch.tensor([0, 1, 0, 1]),
        "features": lambda images: maps,
        "loader": [(None, landmarks), (None, landmarks)],
    }
    exec(blocks[0], names)
    assert "loss" not in names or names["loss"].requires_grad
    assert "results" not in names or names["results"]["landmark_tracking"].per_filter_C.shape == (3,)


def test_the_example_of_specs_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    (example,) = examples(ipcnn_ray.load_spec.__doc__)
    names: dict[str, Any] = {"ipcnn_ray": ipcnn_ray}
    exec(example, names)
    assert names["loaded"].spec.train.epochs == 4
