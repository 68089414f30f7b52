"""What cannot be right in a spec with a torchvision network: `spec/` does not know its layers, so they are checked
here, before anything starts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import nn

from ipcnn_ray.errors import Issue, SpecError
from ipcnn_ray.models.backbones import BackboneError, blocks
from ipcnn_ray.models.build import assemble
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.weights import load_weights
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import Loaded
from ipcnn_ray.spec.messages import FieldIssue, value_issue
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.runs import grid_runs, named_runs, run_for
from ipcnn_ray.spec.search import SpaceSearch, points
from ipcnn_ray.spec.section import Loc
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.utils.text import did_you_mean

PLAIN = NoTemplate(shape="none")


def backbone_issues(model: Model, freeze_through: str | None = None) -> list[FieldIssue]:
    """What is wrong with the layers that a spec names of a torchvision network; nothing for networks of the table.

    Deterministic, and without memory for parameters: the network is laid out on torch's meta device.
    """
    trunk = model.table.trunk
    if trunk is None:
        return []
    try:
        layers = blocks(trunk, model.table.image_size)
    except BackboneError as error:
        return [value_issue(("model", "cut"), trunk.cut, str(error), ("model.network",))]
    learning = [layer.name for layer in layers if layer.learns]
    appended = [model.table.appended.name] if model.appended_layer else []
    able = [layer.name for layer in layers if layer.relu or layer is layers[-1]] + appended
    order = [layer.name for layer in layers] + appended
    found = list(_interpretable(model, able, order))
    for index, name in enumerate((model.weights and model.weights.layers) or ()):
        found += _unknown(("model", "weights", "layers", index), name, learning, "to be loaded")
    if not found:
        found += _statistics(assemble(model, PLAIN, device="meta"), model)
        if freeze_through is not None:
            found += _frozen(model, freeze_through, learning, order)
    return found


def _unknown(loc: Loc, name: str, names: list[str], what: str) -> Iterator[FieldIssue]:
    if name not in names:
        advice = f"is no layer {what}; there are {', '.join(names)}.{did_you_mean(name, names)}".removesuffix(".")
        yield value_issue(loc, name, advice, ("model.network", "model.cut"))


def _interpretable(model: Model, able: list[str], order: list[str]) -> Iterator[FieldIssue]:
    loc, names = ("model", "interpretable_layers"), model.interpretable_layers or ()
    for index, name in enumerate(names):
        if name == model.table.appended.name and not model.appended_layer:
            yield value_issue((*loc, index), name, "is the appended layer, and model.appended_layer is false")
        elif name in order and name not in able:
            advice = (
                "ends in no ReLU, and one in its place would change what the layers above it see; "
                f"take {', '.join(able)}"
            )
            yield value_issue((*loc, index), name, advice, ("model.cut",))
        else:
            yield from _unknown((*loc, index), name, able, "to be interpretable")
    known = [name for name in dict.fromkeys(names) if name in order]
    if known != sorted(known, key=order.index):
        yield value_issue(
            loc, names, f"must be listed lowest first: {sorted(known, key=order.index)}", ("model.network",)
        )


def _statistics(net: InterpretableNet, model: Model) -> Iterator[FieldIssue]:
    loaded = (model.weights.layers or net.convs) if model.weights else ()
    normalised = [
        name for name in net.convs if any(isinstance(part, nn.BatchNorm2d) for part in net.layer(name).modules())
    ]
    missing = [name for name in normalised if name not in loaded]
    if missing:
        advice = (
            f"batch normalisation keeps the statistics that were loaded, and {', '.join(missing)} would have none; "
            f"{'add them to' if model.weights else 'add'} model.weights{'.layers' if model.weights else ''}"
        )
        yield value_issue(("model", "network"), model.network, advice, ("model.weights",))


def _frozen(model: Model, name: str, learning: list[str], order: list[str]) -> Iterator[FieldIssue]:
    loc = ("train", "freeze_through")
    if name not in learning:
        yield from _unknown(loc, name, learning, "to be frozen")
        return
    below = order[: order.index(name) + 1]
    held = [layer for layer in model.interpretable_layers or order[-1:] if layer in below]
    if held:
        advice = f"would keep the interpretable layer {held[0]} from learning; freeze through a lower layer"
        yield value_issue(loc, name, advice, ("model.interpretable_layers",))
    loaded = (model.weights and model.weights.layers) or learning
    random = [layer for layer in below if layer in learning and layer not in loaded]
    if random:
        advice = f"would freeze random weights in {', '.join(random)}; add them to model.weights.layers"
        yield value_issue(loc, name, advice, ("model.weights.layers",))


def _runs(spec: ExperimentSpec) -> dict[str, ExperimentSpec]:
    """The runs that an experiment can come to, by what to call them; a search's own are told by their settings."""
    found = {f"in run {run.label}, ": run.spec for run in (*named_runs(spec), *grid_runs(spec))}
    if isinstance(spec.search, SpaceSearch):
        for corner in points(spec.search):
            run = run_for(spec, {path: point.value for path, point in corner.items()})
            found[f"in a run that can be drawn ({run.label}), "] = run.spec
    return {"": spec, **found}


def _distinct(spec: ExperimentSpec) -> list[tuple[str, ExperimentSpec]]:
    seen: list[tuple[Model, str | None]] = []
    kept: list[tuple[str, ExperimentSpec]] = []
    for label, run in _runs(spec).items():
        if (run.model, run.train.freeze_through) not in seen:
            seen.append((run.model, run.train.freeze_through))
            kept.append((label, run))
    return kept


def check_backbones(loaded: Loaded) -> None:
    """Raises SpecError with all that is wrong with the layers of torchvision networks in any run of an experiment."""
    told: dict[FieldIssue, str] = {}
    for label, run in _distinct(loaded.spec):
        for finding in backbone_issues(run.model, run.train.freeze_through):
            told.setdefault(finding, label)
    if told:
        raise SpecError([Issue(loaded.source.at(one.loc), label + one.what, one.advice) for one, label in told.items()])


def check_weights(spec: ExperimentSpec, folder: Path | None) -> list[str]:
    """The reports of all weight files that the runs of an experiment load; DataError for what does not fit.

    Nothing is loaded for good: the networks are on torch's meta device.
    """
    reports: dict[str, None] = {}
    for _, run in _distinct(spec):
        if run.model.weights:
            net = assemble(run.model, PLAIN, device="meta")
            reports[load_weights(net, run.model.table, run.model.weights, folder).text] = None
    return list(reports)
