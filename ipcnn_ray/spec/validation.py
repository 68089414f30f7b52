"""Checks across the fields of a run, each of which can be right by itself.

A check takes the sections that it reads as arguments, by name. It runs if these sections are valid, whatever is wrong
with the others, so that all issues of a file are reported at once.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.extensions import METRICS, RECORDED
from ipcnn_ray.spec.messages import FieldIssue, as_yaml, value_issue
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.search import Search
from ipcnn_ray.spec.section import Loc
from ipcnn_ray.spec.template import NoTemplate, PartTemplate, Template
from ipcnn_ray.spec.training import Compute, Eval, FilterLoss, Loss, Train
from ipcnn_ray.utils.text import did_you_mean

NO_WEIGHTS = "frozen layers need loaded weights; add model.weights or drop this"


def duplicates(values: Sequence[object]) -> Iterator[tuple[int, object]]:
    """Yield index and value of every repetition; 2 and 2.0 are the same, 1 and true are not."""
    seen: list[tuple[bool, object]] = []
    for index, value in enumerate(values):
        key = (isinstance(value, bool), value)
        if key in seen:
            yield index, value
        seen.append(key)


def duplicate_issues(loc: Loc, values: Sequence[object]) -> Iterator[FieldIssue]:
    for index, value in duplicates(values):
        yield value_issue((*loc, index), value, "is listed twice; list it once")


def _no_layer(model: Model, name: str) -> str:
    if name == model.table.appended.name:
        return f"{name} is the appended layer, and model.appended_layer is false"
    own = f"{model.table.convs[0]} ... {model.table.last_conv}"
    has = f"{own}, {model.table.appended.name}" if model.appended_layer else own
    return f"{model.network} has no such layer; it has {has}.{did_you_mean(name, list(model.convs))}".removesuffix(".")


def _unknown_layers(model: Model, loc: Loc, names: Sequence[str]) -> Iterator[FieldIssue]:
    for index, name in enumerate(names):
        if not model.backbone and name not in model.convs:
            follows_from = ("model.network", "model.appended_layer")
            yield value_issue((*loc, index), name, _no_layer(model, name), follows_from)


def backbone(model: Model) -> Iterator[FieldIssue]:
    """Check the fields of torchvision networks; `models.model_checks` checks the names of their layers."""
    if model.backbone and not model.cut:
        advice = "is torchvision's and needs model.cut: the highest layer that is kept, such as features.12 or layer4.1"
        yield value_issue(("model", "network"), model.network, advice, ("model.cut",))
    if not model.backbone:
        for name, value in (("cut", model.cut), ("image_size", model.image_size)):
            if value is not None:
                advice = f"{model.network} is not torchvision's and is fixed; drop this"
                yield value_issue(("model", name), value, advice, ("model.network",))


def categories(data: Data) -> Iterator[FieldIssue]:
    loc, category = ("data", "category"), data.category
    if isinstance(category, str):
        least = data.least_negatives
        if data.negatives < least:
            advice = f"must be at least {least}: a single category is classified against negatives"
            yield value_issue(("data", "negatives"), data.negatives, advice, ("data.category",))
        if getattr(data, "split", "objects") == "items":
            advice = "is for several categories; drop this"
            yield value_issue(("data", "split"), "items", advice, ("data.category",))
        return
    yield from duplicate_issues(loc, category)
    if len(category) < 2:
        yield value_issue(loc, category, "must be a name, or a list of at least two")
    share = getattr(data, "positive_share", None)
    if share is not None and share != type(data).model_fields["positive_share"].default:
        advice = "is for one category against negatives; drop this"
        yield value_issue(("data", "positive_share"), share, advice, ("data.category",))


def classification(data: Data, loss: Loss) -> Iterator[FieldIssue]:
    if loss.classification == "softmax":
        advice = ""
        if len(data.categories) < 2:
            advice = "is for several categories; list them in data.category"
        elif data.negatives:
            advice = f"is for images with a category; drop data.negatives ({data.negatives})"
        if advice:
            follows_from = ("data.category", "data.negatives")
            yield value_issue(("loss", "classification"), "softmax", advice, follows_from)


def layers(model: Model) -> Iterator[FieldIssue]:
    loc, names = ("model", "interpretable_layers"), model.interpretable_layers or ()
    yield from _unknown_layers(model, loc, names)
    yield from duplicate_issues(loc, names)
    if model.backbone:
        return
    known = [name for name in dict.fromkeys(names) if name in model.convs]
    in_order = sorted(known, key=model.convs.index)
    if known != in_order:
        yield value_issue(loc, names, f"must be listed lowest first: {as_yaml(in_order)}", ("model.network",))


def weights(model: Model) -> Iterator[FieldIssue]:
    if model.weights is not None and model.weights.layers is not None:
        loc = ("model", "weights", "layers")
        yield from _unknown_layers(model, loc, model.weights.layers)
        yield from duplicate_issues(loc, model.weights.layers)


def frozen(model: Model, train: Train) -> Iterator[FieldIssue]:
    name, loc = train.freeze_through, ("train", "freeze_through")
    if name is None:
        return
    if model.backbone:
        if model.weights is None:
            yield value_issue(loc, name, NO_WEIGHTS, ("model.weights",))
        return
    if name not in model.convs:
        yield value_issue(loc, name, _no_layer(model, name), ("model.network", "model.appended_layer"))
        return
    convs = model.convs[: model.convs.index(name) + 1]
    held = [layer for layer in model.interpretable_layers or () if layer in convs]
    if held:
        advice = f"would keep the interpretable layer {held[0]} from learning; freeze through a lower layer"
        yield value_issue(loc, name, advice, ("model.interpretable_layers",))
    if model.weights is None:
        yield value_issue(loc, name, NO_WEIGHTS, ("model.weights",))
        return
    random = [layer for layer in convs if layer not in (model.weights.layers or model.table.convs)]
    if random:
        advice = f"would freeze random weights in {', '.join(random)}; add them to model.weights.layers"
        yield value_issue(loc, name, advice, ("model.weights", "model.weights.layers"))


def measured_layer(model: Model, eval: Eval) -> Iterator[FieldIssue]:
    names = list(model.interpretable_layers or ())
    if eval.layer is not None and eval.layer not in names:
        advice = f"must be one of model.interpretable_layers, {', '.join(names)}.{did_you_mean(eval.layer, names)}"
        yield value_issue(("eval", "layer"), eval.layer, advice.removesuffix("."), ("model.interpretable_layers",))


def shape(template: Template) -> Iterator[FieldIssue]:
    if isinstance(template, PartTemplate):
        yield from template.issues()


def shape_of_data(template: Template, data: Data) -> Iterator[FieldIssue]:
    if isinstance(template, PartTemplate):
        yield from template.data_issues(data)


def measures(eval: Eval) -> Iterator[FieldIssue]:
    """Check the names of metrics. Those of other packages are imported, and those that could ablate filters."""
    yield from duplicate_issues(("eval", "measures"), eval.measures)
    for index, name in enumerate(eval.measures):
        if package := METRICS.provider(name):
            loc = ("eval", "measures", index)
            if name in RECORDED:
                yield value_issue(loc, name, f"of {package} has the name of a number that every run records; rename it")
            try:
                METRICS.load(name)
            except IpcnnError as error:
                yield value_issue(loc, name, str(error))
                return
    if eval.ablation_filters is not None and not any(METRICS.load(name).ablates() for name in eval.measures):
        ablating = [name for name in METRICS.built_in if METRICS.load(name).ablates()]
        advice = f"no filter is ablated; add {' or '.join(ablating)} to eval.measures or drop this"
        yield value_issue(("eval", "ablation_filters"), eval.ablation_filters, advice, ("eval.measures",))


def filter_loss(template: Template, loss: Loss, train: Train) -> Iterator[FieldIssue]:
    if loss.filter is None:
        return
    if isinstance(template, NoTemplate):
        advice = "a network without a template has no filter loss; drop this or choose a template.shape"
        given = loss.filter.model_dump(mode="json", exclude_defaults=True)
        yield value_issue(("loss", "filter"), given, advice, ("template.shape",))
    if train.batch_size == 1:
        advice = "the filter loss compares images and is always 0 for one; take at least 2"
        yield value_issue(("train", "batch_size"), 1, advice, ("loss.filter",))
    if loss.filter.form == "released" and loss.filter.schedule == "paper":
        advice = "is for the paper's loss; the released form has epoch (weight / epoch, its own) and constant"
        yield value_issue(("loss", "filter", "schedule"), "paper", advice, ("loss.filter.form",))
    if loss.filter.form == "released" and isinstance(template, PartTemplate) and template.tau is not None:
        advice = "the released form has no template height, only loss.filter.weight; drop this"
        yield value_issue(("template", "tau"), template.tau, advice, ("loss.filter.form",))
    yield from _learned_beta(template, loss.filter)


def _learned_beta(template: Template, filter_loss: FilterLoss) -> Iterator[FieldIssue]:
    follows_from, default = ("loss.filter.form", "template.shape"), FilterLoss.model_fields["beta_rate"].default
    if filter_loss.learn_beta and isinstance(template, PartTemplate):
        if filter_loss.form not in ("exact", "released"):
            advice = f"the {filter_loss.form} form has no gradient for it; take exact or released, or drop this"
            yield value_issue(("loss", "filter", "learn_beta"), True, advice, follows_from)
        elif not template.learned or template.form != filter_loss.form:
            advice = f"the {filter_loss.form} form learns no slope of template.shape {template.shape}; drop this"
            yield value_issue(("loss", "filter", "learn_beta"), True, advice, follows_from)
    if not filter_loss.learn_beta and filter_loss.beta_rate != default:
        advice = "is for learned betas; add loss.filter.learn_beta: true, or drop this"
        yield value_issue(("loss", "filter", "beta_rate"), filter_loss.beta_rate, advice, ("loss.filter.learn_beta",))


def appended_mask(model: Model) -> Iterator[FieldIssue]:
    if model.appended_mask == "pooled" and not model.appended_layer:
        advice = "is for the appended layer, and model.appended_layer is false; drop one of the two"
        yield value_issue(("model", "appended_mask"), "pooled", advice, ("model.appended_layer",))


def schedule(train: Train) -> Iterator[FieldIssue]:
    if train.warmup_epochs >= train.epochs:
        advice = f"must be less than train.epochs = {train.epochs}"
        yield value_issue(("train", "warmup_epochs"), train.warmup_epochs, advice, ("train.epochs",))
    least = train.warmup_epochs + 2
    if train.decay_epochs is not None and not least <= train.decay_epochs <= train.epochs:
        advice = f"must be from {least} (train.warmup_epochs + 2) to train.epochs = {train.epochs}"
        follows_from = ("train.epochs", "train.warmup_epochs")
        yield value_issue(("train", "decay_epochs"), train.decay_epochs, advice, follows_from)
    momentum = Train.model_fields["momentum"].default
    if train.optimizer == "adamw" and train.momentum != momentum:
        advice = "is for sgd; adamw has fixed momentum. Drop this"
        yield value_issue(("train", "momentum"), train.momentum, advice, ("train.optimizer",))


def loaded_biases(model: Model, train: Train) -> Iterator[FieldIssue]:
    if model.weights is None:
        for name in ("last_bias_rate", "decay_loaded_biases"):
            value = getattr(train, name)
            if value != Train.model_fields[name].default:
                advice = "is for pretrained layers; add model.weights, or drop this"
                yield value_issue(("train", name), value, advice, ("model.weights",))


def even_batches(train: Train, compute: Compute) -> Iterator[FieldIssue]:
    if train.batch_size % compute.workers:
        near = max(1, round(train.batch_size / compute.workers)) * compute.workers
        advice = f"must be a multiple of compute.workers = {compute.workers}, such as {near}"
        yield value_issue(("train", "batch_size"), train.batch_size, advice, ("compute.workers",))


def enough_items(data: Data, train: Train) -> Iterator[FieldIssue]:
    items = data.train_items()
    if items is not None and train.batch_size > items:
        advice = f"is more than the {items} training items: no batch would ever be full"
        yield value_issue(("train", "batch_size"), train.batch_size, advice, ("data.objects", "data.negatives"))


def dataset(data: Data) -> Iterator[FieldIssue]:
    yield from duplicate_issues(("data", "landmarks"), data.landmarks)
    yield from data.issues()


def gpus(compute: Compute) -> Iterator[FieldIssue]:
    count, loc = compute.gpus_per_worker, ("compute", "gpus_per_worker")
    if count is None or count == int(count):
        return
    if count > 1:
        yield value_issue(loc, count, "must be a whole number above 1: Ray shares only single GPUs")
    elif compute.workers > 1:
        advice = f"{compute.workers} workers cannot share a GPU (NCCL); give each a whole one, or take one worker"
        yield value_issue(loc, count, advice, ("compute.workers",))


def nothing_ignored(compute: Compute, search: Search | None) -> Iterator[FieldIssue]:
    if search is None and compute.concurrent_runs is not None:
        advice = "there is only one run without a search; drop this"
        yield value_issue(("compute", "concurrent_runs"), compute.concurrent_runs, advice)


CHECKS: tuple[Callable[..., Iterator[FieldIssue]], ...] = (
    backbone, categories, dataset, classification, layers, weights, frozen, measured_layer, shape, shape_of_data,
    measures, filter_loss, appended_mask, schedule, loaded_biases, even_batches, enough_items, gpus, nothing_ignored,
)  # fmt: skip


def run_issues(sections: Mapping[str, Any]) -> list[FieldIssue]:
    """Return the issues of every check whose sections are given, by name; `search` is None if there is no search."""
    issues: list[FieldIssue] = []
    for check in CHECKS:
        names = inspect.signature(check).parameters
        if all(name in sections for name in names):
            issues += check(**{name: sections[name] for name in names})
    return list(dict.fromkeys(issues))
