"""Checks of the layers and weights of torchvision networks, and of weight files, before a run starts.

`spec/` does not know what torchvision has.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from ipcnn_ray.errors import Issue, SpecError
from ipcnn_ray.models.backbones import BackboneCutError, backbone_blocks
from ipcnn_ray.models.build import assemble
from ipcnn_ray.models.named_weights import UnknownWeightsError, named_weights
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.pretrained_weights import load_pretrained
from ipcnn_ray.models.timm_networks import UnknownNetworkError
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import Loaded
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.runs import grid_runs, named_runs, run_for
from ipcnn_ray.spec.search import SpaceSearch, points
from ipcnn_ray.spec.section import FieldIssue, Loc, value_issue
from ipcnn_ray.spec.template import NoTemplate
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean

PLAIN = NoTemplate(shape="none")


def backbone_issues(model: Model, freeze_through: str | None = None) -> list[FieldIssue]:
    """Check the layers of a torchvision network that a spec names; no issues for networks of the table.

    The network is built on torch's meta device, so the check is fast and takes no memory.
    """
    trunk = model.table.trunk
    if trunk is None:
        return []
    try:
        layers = backbone_blocks(trunk, model.table.image_size)
    except BackboneCutError as error:
        return [model.issue("cut", str(error))]
    except UnknownNetworkError as error:
        return [model.issue("network", str(error))]
    learning = [layer.name for layer in layers if layer.has_parameters]
    appended = [model.table.appended.name] if model.appended_layer else []
    allowed = [layer.name for layer in layers if layer.ends_in_relu or layer is layers[-1]] + appended
    order = [layer.name for layer in layers] + appended
    issues = list(_check_interpretable(model, allowed, order))
    for index, name in enumerate((model.weights and model.weights.layers) or ()):
        issues += _check_known(("model", "weights", "layers", index), name, learning, "to be loaded")
    if not issues:
        issues += _check_statistics(assemble(model, PLAIN, device="meta"), model)
        if freeze_through is not None:
            issues += _check_frozen(model, freeze_through, learning, order)
    return issues


def _check_known(loc: Loc, name: str, names: list[str], purpose: str) -> Iterator[FieldIssue]:
    if name not in names:
        advice = f"is no layer {purpose}; there are {', '.join(names)}.{did_you_mean(name, names)}".removesuffix(".")
        yield value_issue(loc, name, advice)


def _check_interpretable(model: Model, allowed: list[str], order: list[str]) -> Iterator[FieldIssue]:
    loc, names = ("model", "interpretable_layers"), model.interpretable_layers or ()
    for index, name in enumerate(names):
        if name == model.table.appended.name and not model.appended_layer:
            yield value_issue((*loc, index), name, "is the appended layer, and model.appended_layer is false")
        elif name in order and name not in allowed:
            advice = (
                "ends in no ReLU, and one in its place would change what the layers above it see; "
                f"take {', '.join(allowed)}"
            )
            yield value_issue((*loc, index), name, advice)
        else:
            yield from _check_known((*loc, index), name, allowed, "to be interpretable")
    known = [name for name in dict.fromkeys(names) if name in order]
    if known != (ordered := sorted(known, key=order.index)):
        yield value_issue(loc, names, f"must be listed lowest first: {ordered}")


def _check_statistics(net: InterpretableNet, model: Model) -> Iterator[FieldIssue]:
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
        yield model.issue("network", advice)


def _check_frozen(model: Model, name: str, learning: list[str], order: list[str]) -> Iterator[FieldIssue]:
    loc = ("train", "freeze_through")
    if name not in learning:
        yield from _check_known(loc, name, learning, "to be frozen")
        return
    below = order[: order.index(name) + 1]
    interpretable = [layer for layer in model.interpretable_layers or order[-1:] if layer in below]
    if interpretable:
        advice = f"would keep the interpretable layer {interpretable[0]} from learning; freeze through a lower layer"
        yield value_issue(loc, name, advice)
    loaded = (model.weights and model.weights.layers) or learning
    random = [layer for layer in below if layer in learning and layer not in loaded]
    if random:
        advice = f"would freeze random weights in {', '.join(random)}; add them to model.weights.layers"
        yield value_issue(loc, name, advice)


def _name_issues(model: Model) -> Iterator[FieldIssue]:
    try:
        named_weights(model)
    except UnknownWeightsError as error:
        assert model.weights is not None
        yield model.weights.issue("timm" if model.weights.timm else "torchvision", str(error))
    except UnknownNetworkError:
        pass  # told by `backbone_issues`


def _runs(spec: ExperimentSpec) -> dict[str, ExperimentSpec]:
    """Return the specs of all runs that an experiment may have, by the prefix of their messages."""
    specs = {f"in run {run.label}, ": run.spec for run in (*named_runs(spec), *grid_runs(spec))}
    if isinstance(spec.search, SpaceSearch):
        for corner in points(spec.search):
            run = run_for(spec, corner)
            specs[f"in a run that can be drawn ({run.label}), "] = run.spec
    return {"": spec, **specs}


def _distinct_models(spec: ExperimentSpec) -> list[tuple[str, ExperimentSpec]]:
    """Return one spec of each combination of model and frozen layers."""
    distinct: list[tuple[str, ExperimentSpec]] = []
    for label, run in _runs(spec).items():
        key = (run.model, run.train.freeze_through)
        if key not in [(other.model, other.train.freeze_through) for _, other in distinct]:
            distinct.append((label, run))
    return distinct


def check_backbones(loaded: Loaded) -> None:
    """Check the layers of torchvision networks, and the names of its weights, in all runs of an experiment. Raises
    SpecError with all issues."""
    label_of: dict[FieldIssue, str] = {}
    for label, run in _distinct_models(loaded.spec):
        for issue in (*_name_issues(run.model), *backbone_issues(run.model, run.train.freeze_through)):
            label_of.setdefault(issue, label)
    if label_of:
        raise SpecError(
            [Issue(loaded.source.at(issue.loc), label + issue.what, issue.advice) for issue, label in label_of.items()]
        )


def models_of(spec: ExperimentSpec) -> list[Model]:
    """Return the models of all runs that an experiment may have, each once."""
    return list(dict.fromkeys(run.model for _, run in _distinct_models(spec)))


def check_weights(spec: ExperimentSpec, paths: Paths) -> list[str]:
    """Check all weight files that the runs of an experiment load, and return their reports. Nothing is copied. Raises
    DataError if a file does not fit its network."""
    reports: dict[str, None] = {}
    for model in models_of(spec):
        report = load_pretrained(assemble(model, PLAIN, device="meta"), model, paths) if model.weights else None
        if report:
            reports[report.text] = None
    return list(reports)
