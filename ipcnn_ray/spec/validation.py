"""Checks across the fields of a run and of a search, each of which can be right by itself.

A check of `CHECKS` takes the sections that it reads as arguments, by name. It runs if these sections are valid,
whatever is wrong with the others, so that all issues of a file are reported at once. The runs that a search can expand
to are checked last (`run_expansion_issues`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.extensions import EVERY_RUN, FOLLOWING, METRICS, RECORDED
from ipcnn_ray.spec.messages import field_issues
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.networks import IN_TORCHVISION, TIMM
from ipcnn_ray.spec.overrides import NotASection, Settings
from ipcnn_ray.spec.search import Choice, Distribution, GridSearch, OneMeasure, Pareto, Search, SpaceSearch, points
from ipcnn_ray.spec.section import (
    FieldIssue,
    Loc,
    Section,
    annotations_at,
    as_yaml,
    dotted,
    field_paths,
    kind_field,
    sections,
    unwrapped,
    value_issue,
)
from ipcnn_ray.spec.template import NoTemplate, PartTemplate, Template
from ipcnn_ray.spec.training import Compute, Diversity, Eval, FilterLoss, Loss, Train
from ipcnn_ray.utils.text import did_you_mean

SHARED_SECTIONS = ("name", "compute", "search")
"""Sections that are the same for all runs of an experiment."""
LAST_SEED = 2**32 - 1


def duplicate_issues(loc: Loc, values: Sequence[object]) -> Iterator[FieldIssue]:
    """Yield an issue for every repetition; 2 and 2.0 are the same, 1 and true are not."""
    keys = [(isinstance(value, bool), value) for value in values]
    for index, value in enumerate(values):
        if keys[index] in keys[:index]:
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
            yield value_issue((*loc, index), name, _no_layer(model, name), "model.network", "model.appended_layer")


def backbone(model: Model) -> Iterator[FieldIssue]:
    """Check the fields of networks of torchvision and timm; `models.model_checks` checks the names of their layers."""
    if model.backbone and not model.cut:
        owner = "timm" if model.network.startswith(TIMM) else "torchvision"
        advice = f"is {owner}'s and needs model.cut: the highest layer that is kept, such as features.12 or layer4.1"
        yield model.issue("network", advice, "cut")
    for name in () if model.backbone else ("cut", "image_size"):
        if getattr(model, name) is not None:
            yield model.issue(name, f"{model.network} is not torchvision's and is fixed; drop this", "network")


def categories(data: Data) -> Iterator[FieldIssue]:
    if isinstance(data.category, str):
        least = data.least_negatives
        if data.negatives < least:
            advice = f"must be at least {least}: a single category is classified against negatives"
            yield data.issue("negatives", advice, "category")
        if getattr(data, "split", "objects") == "items":
            yield data.issue("split", "is for several categories; drop this", "category")
        return
    yield from duplicate_issues(("data", "category"), data.category)
    if len(data.category) < 2:
        yield data.issue("category", "must be a name, or a list of at least two")
    share = getattr(data, "positive_share", None)
    if share is not None and share != type(data).model_fields["positive_share"].default:
        yield data.issue("positive_share", "is for one category against negatives; drop this", "category")


def classification(data: Data, loss: Loss) -> Iterator[FieldIssue]:
    if loss.classification == "softmax" and (len(data.categories) < 2 or data.negatives):
        advice = "is for several categories; list them in data.category"
        if len(data.categories) > 1:
            advice = f"is for images with a category; drop data.negatives ({data.negatives})"
        yield loss.issue("classification", advice, "data.category", "data.negatives")


def layers(model: Model) -> Iterator[FieldIssue]:
    loc, names = ("model", "interpretable_layers"), model.interpretable_layers or ()
    yield from _unknown_layers(model, loc, names)
    yield from duplicate_issues(loc, names)
    known = [name for name in dict.fromkeys(names) if name in model.convs]
    in_order = sorted(known, key=model.convs.index)
    if known != in_order and not model.backbone:
        yield model.issue("interpretable_layers", f"must be listed lowest first: {as_yaml(in_order)}", "network")


def weights(model: Model) -> Iterator[FieldIssue]:
    """Check the fields of pretrained weights; `models.model_checks` checks the names of published ones."""
    loaded = model.weights
    if loaded is None:
        return
    if loaded.layers is not None:
        loc = ("model", "weights", "layers")
        yield from _unknown_layers(model, loc, loaded.layers)
        yield from duplicate_issues(loc, loaded.layers)
    given = loaded.model_dump(include={"file", "torchvision", "timm"}, exclude_none=True)
    if len(given) != 1:
        advice = "must have one of `file`, `torchvision` and `timm` (a name of published weights, such as DEFAULT)"
        yield value_issue(("model", "weights"), given, advice)
        return
    if loaded.file is None and loaded.pixels is not None:
        yield loaded.issue("pixels", "is for files: the preprocessing of published weights is known; drop this")
    of_timm = model.network.startswith(TIMM)
    if loaded.torchvision is not None and (of_timm or not (model.backbone or model.network in IN_TORCHVISION)):
        advice = (
            f"torchvision has no weights for the layers of {model.network}; take `{'timm' if of_timm else 'file'}`, or "
            f"one of {', '.join(IN_TORCHVISION)} and torchvision's networks (squeezenet1_1, resnet50, ...)"
        )
        yield loaded.issue("torchvision", advice, "model.network")
    if loaded.timm is not None and not of_timm:
        advice = f"is for networks of timm, such as {TIMM}resnet18; {model.network} is none"
        yield loaded.issue("timm", advice, "model.network")


def frozen(model: Model, train: Train) -> Iterator[FieldIssue]:
    name = train.freeze_through
    if name is None:
        return
    if not model.backbone and name not in model.convs:
        yield train.issue("freeze_through", _no_layer(model, name), "model.network", "model.appended_layer")
        return
    convs = () if model.backbone else model.convs[: model.convs.index(name) + 1]
    held = [layer for layer in model.interpretable_layers or () if layer in convs]
    if held:
        advice = f"would keep the interpretable layer {held[0]} from learning; freeze through a lower layer"
        yield train.issue("freeze_through", advice, "model.interpretable_layers")
    if model.weights is None:
        advice = "frozen layers need loaded weights; add model.weights or drop this"
        yield train.issue("freeze_through", advice, "model.weights")
        return
    random = [layer for layer in convs if layer not in (model.weights.layers or model.table.convs)]
    if random:
        advice = f"would freeze random weights in {', '.join(random)}; add them to model.weights.layers"
        yield train.issue("freeze_through", advice, "model.weights", "model.weights.layers")


def measured_layer(model: Model, eval: Eval) -> Iterator[FieldIssue]:
    names = list(model.interpretable_layers or ())
    if eval.layer is not None and eval.layer not in names:
        advice = f"must be one of model.interpretable_layers, {', '.join(names)}.{did_you_mean(eval.layer, names)}"
        yield eval.issue("layer", advice.removesuffix("."), "model.interpretable_layers")


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
            if name in RECORDED or name.startswith(FOLLOWING):
                yield value_issue(loc, name, f"of {package} has the name of a number that every run records; rename it")
            try:
                METRICS.load(name)
            except IpcnnError as error:
                yield value_issue(loc, name, str(error))
                return
    if eval.ablation_filters is not None and not any(METRICS.load(name).ablates() for name in eval.measures):
        ablating = [name for name in METRICS.built_in if METRICS.load(name).ablates()]
        advice = f"no filter is ablated; add {' or '.join(ablating)} to eval.measures or drop this"
        yield eval.issue("ablation_filters", advice, "measures")


def landmarks_measured(data: Data, eval: Eval) -> Iterator[FieldIssue]:
    """Check that no metric is asked for that needs landmarks, of data without any. Imports the metrics."""
    yield from _needing_landmarks(data, {name: ("eval", "measures", i) for i, name in enumerate(eval.measures)})


def landmarks_ranked(search: Search, data: Data) -> Iterator[FieldIssue]:
    """Check that runs on data without landmarks are not ranked by, nor constrained in, what needs some."""
    yield from _needing_landmarks(data, _used_metrics(search))


def _needing_landmarks(data: Data, used: Mapping[str, Loc]) -> Iterator[FieldIssue]:
    if data.landmarks:
        return
    for name, loc in used.items():
        if name not in RECORDED and _needs_landmarks(name):
            works = ", ".join(other for other in METRICS.names() if _needs_landmarks(other) is False)
            advice = f"needs landmarks, and data.landmarks lists none. Without landmarks there are {works}"
            if loc[0] == "search":
                advice += ", val_error"
            if loc[1] == "objective":
                advice += "; to rank by val_error alone, take objective: {kind: measure, measure: val_error}"
            yield value_issue(loc, name, advice, "data.landmarks")


def _needs_landmarks(name: str) -> bool | None:
    """Return whether a metric needs landmarks; None for one whose package cannot be imported."""
    try:
        return bool(METRICS.load(name).needs_landmarks())
    except IpcnnError:
        return None


def filter_loss(template: Template, loss: Loss, train: Train) -> Iterator[FieldIssue]:
    if loss.filter is None:
        return
    if isinstance(template, NoTemplate):
        advice = "a network without a template has no filter loss; drop this or choose a template.shape"
        yield value_issue(("loss", "filter"), _given(loss.filter), advice, "template.shape")
    if train.batch_size == 1:
        advice = "the filter loss compares images and is always 0 for one; take at least 2"
        yield train.issue("batch_size", advice, "loss.filter")
    if loss.filter.form == "released" and loss.filter.schedule == "paper":
        advice = "is for the paper's loss; the released form has epoch (weight / epoch, its own) and constant"
        yield loss.filter.issue("schedule", advice, "form")
    if loss.filter.form == "released" and isinstance(template, PartTemplate) and template.tau is not None:
        advice = "the released form has no template height, only loss.filter.weight; drop this"
        yield template.issue("tau", advice, "loss.filter.form")
    yield from _learned_beta(template, loss.filter)


def diversity(loss: Loss) -> Iterator[FieldIssue]:
    section = loss.diversity
    if section and section.form != "largest" and section.margin != Diversity.model_fields["margin"].default:
        yield section.issue("margin", "is for loss.diversity.form: largest; take that, or drop this", "form")


def narrowing(template: Template, loss: Loss, train: Train) -> Iterator[FieldIssue]:
    if isinstance(template, NoTemplate) or template.narrowing is None:
        return
    if template.narrowing.epochs > train.epochs > 0:
        advice = f"must be at most train.epochs = {train.epochs}: the trained network has the template's own width"
        yield template.narrowing.issue("epochs", advice, "train.epochs")
    if loss.filter is not None and loss.filter.learn_beta:
        advice = "learned betas set the width; drop loss.filter.learn_beta or this"
        yield template.issue("narrowing", advice, "loss.filter.learn_beta")


def _learned_beta(template: Template, filter_loss: FilterLoss) -> Iterator[FieldIssue]:
    if filter_loss.learn_beta and isinstance(template, PartTemplate):
        if filter_loss.form not in ("exact", "released"):
            advice = f"the {filter_loss.form} form has no gradient for it; take exact or released, or drop this"
            yield filter_loss.issue("learn_beta", advice, "form", "template.shape")
        elif not template.learned or template.form != filter_loss.form:
            advice = f"the {filter_loss.form} form learns no slope of template.shape {template.shape}; drop this"
            yield filter_loss.issue("learn_beta", advice, "form", "template.shape")
        center = "centroid" if filter_loss.form == "released" else "peak"
        if template.mask not in (None, center):
            advice = f"the {filter_loss.form} form learns the slope of a mask at the {center}; drop one of the two"
            yield filter_loss.issue("learn_beta", advice, "form", "template.mask")
    if not filter_loss.learn_beta and filter_loss.beta_rate != FilterLoss.model_fields["beta_rate"].default:
        advice = "is for learned betas; add loss.filter.learn_beta: true, or drop this"
        yield filter_loss.issue("beta_rate", advice, "learn_beta")


def appended_fields(model: Model) -> Iterator[FieldIssue]:
    """Check the fields that describe the appended layer."""
    for name in () if model.appended_layer else ("appended_mask", "appended_kernel", "appended_filters"):
        if getattr(model, name) != Model.model_fields[name].default:
            advice = "is for the appended layer, and model.appended_layer is false; drop one of the two"
            yield model.issue(name, advice, "appended_layer")


def schedule(train: Train) -> Iterator[FieldIssue]:
    if 0 < train.epochs <= train.warmup_epochs:
        yield train.issue("warmup_epochs", f"must be less than train.epochs = {train.epochs}", "epochs")
    least = train.warmup_epochs + 2
    if train.epochs and train.decay_epochs is not None and not least <= train.decay_epochs <= train.epochs:
        advice = f"must be from {least} (train.warmup_epochs + 2) to train.epochs = {train.epochs}"
        yield train.issue("decay_epochs", advice, "epochs", "warmup_epochs")
    if train.optimizer == "adamw" and train.momentum != Train.model_fields["momentum"].default:
        yield train.issue("momentum", "is for sgd; adamw has fixed momentum. Drop this", "optimizer")


def loaded_biases(model: Model, train: Train) -> Iterator[FieldIssue]:
    for name in ("last_bias_rate", "decay_loaded_biases") if model.weights is None else ():
        if getattr(train, name) != Train.model_fields[name].default:
            yield train.issue(name, "is for pretrained layers; add model.weights, or drop this", "model.weights")


def even_batches(train: Train, compute: Compute) -> Iterator[FieldIssue]:
    if train.batch_size % compute.workers:
        near = max(1, round(train.batch_size / compute.workers)) * compute.workers
        advice = f"must be a multiple of compute.workers = {compute.workers}, such as {near}"
        yield train.issue("batch_size", advice, "compute.workers")


def enough_items(data: Data, train: Train) -> Iterator[FieldIssue]:
    items = data.train_items()
    if items is not None and train.batch_size > items:
        advice = f"is more than the {items} training items: no batch would ever be full"
        yield train.issue("batch_size", advice, "data.objects", "data.negatives")


def dataset(data: Data) -> Iterator[FieldIssue]:
    yield from duplicate_issues(("data", "landmarks"), data.landmarks)
    yield from data.issues()


def augment(data: Data) -> Iterator[FieldIssue]:
    crop = data.augment and data.augment.crop
    if data.augment and crop and crop[0] > crop[1]:
        yield data.augment.issue("crop", "must be the smallest and the largest share of the area, in this order")


def gpus(compute: Compute) -> Iterator[FieldIssue]:
    count = compute.gpus_per_worker
    if count is None or count == int(count):
        return
    if count > 1:
        yield compute.issue("gpus_per_worker", "must be a whole number above 1: Ray shares only single GPUs")
    elif compute.workers > 1:
        advice = f"{compute.workers} workers cannot share a GPU (NCCL); give each a whole one, or take one worker"
        yield compute.issue("gpus_per_worker", advice, "workers")


def nothing_ignored(compute: Compute, search: Search | None) -> Iterator[FieldIssue]:
    if search is None and compute.concurrent_runs is not None:
        yield compute.issue("concurrent_runs", "there is only one run without a search; drop this")


def _settable(root: type[Section], loc: Loc, path: str, value: Any, *, scalar: bool) -> Iterator[FieldIssue]:
    """Check that a path is a field that runs can differ in, and for `scalar` not a section."""
    if path.split(".")[0] in SHARED_SECTIONS:
        yield value_issue(loc, value, f"{path.split('.')[0]} is the same for all runs of an experiment; drop this")
        return
    annotations = annotations_at(root, path)
    if not annotations:
        known = [known for known in field_paths(root) if known.split(".")[0] not in SHARED_SECTIONS]
        yield value_issue(loc, value, f"a spec has no field {path}.{did_you_mean(path, known)}".removesuffix("."))
    elif scalar and any(map(sections, annotations)):
        yield value_issue(loc, value, f"{path} is a section; name one of its fields, or give it to one of search.runs")


def named(search: Search, root: type[Section]) -> Iterator[FieldIssue]:
    names = [run.name for run in search.runs]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield value_issue(("search", "runs", index, "name"), name, "another run has this name")
    control = search.objective.control
    if control not in names:
        advice = f"must be one of search.runs: {', '.join(names)}.{did_you_mean(control, names)}".removesuffix(".")
        yield search.objective.issue("control", advice)
    for index, run in enumerate(search.runs):
        for path, value in run.set.items():
            loc = ("search", "runs", index, "set", path)
            yield from _settable(root, loc, path, value, scalar=False)
            for above in run.set:
                if path.startswith(f"{above}."):
                    yield value_issue(loc, value, f"is inside {above}, which this run sets too; keep one of the two")


def grid(search: Search, root: type[Section]) -> Iterator[FieldIssue]:
    for path, values in search.grid.items() if isinstance(search, GridSearch) else ():
        loc = ("search", "grid", path)
        yield from _settable(root, loc, path, values, scalar=True)
        yield from duplicate_issues(loc, values)


def space(search: Search, root: type[Section]) -> Iterator[FieldIssue]:
    fields = search.space if isinstance(search, SpaceSearch) else {}
    for path, distribution in fields.items():
        loc = ("search", "space", path)
        yield from _settable(root, loc, path, _given(distribution), scalar=True)
        at, values = (*loc, distribution.key), distribution.values
        if isinstance(distribution, Choice):
            yield from duplicate_issues(at, values)
        else:
            if values[0] >= values[1]:
                yield value_issue(at, values, "must go from its lower to its upper end: [lower, upper]")
            if any(unwrapped(annotation) is int for annotation in annotations_at(root, path)):
                yield value_issue(at, values, f"{path} is a whole number and a range draws any; list a choice")
        yield from _needs_condition(fields, path, root)
        for on, value in (distribution.when or {}).items():
            yield from _condition(fields, path, on, value)


def _needs_condition(space: Mapping[str, Distribution], path: str, root: type[Section]) -> Iterator[FieldIssue]:
    """Check that a field which some of the sampled kinds of its section lack has a `when` for the others."""
    above, _, name = path.rpartition(".")
    owners = [owner for annotation in annotations_at(root, above) for owner in sections(annotation).values()]
    kinds = {kind: name in owner.model_fields for owner in owners if (kind := kind_field(owner))}
    for key in {key for key, _ in kinds}:
        sampled = space.get(f"{above}.{key}")
        if not isinstance(sampled, Choice) or f"{above}.{key}" in (space[path].when or {}):
            continue
        without = [value for value in sampled.choice if kinds.get((key, str(value))) is False]
        having = [value for (_, value), has in kinds.items() if has]
        if without and having:
            loc = ("search", "space", path)
            fact = f"{dotted(loc)} is drawn for {above}.{key} = {as_yaml(without[0])} too, which has no {name}"
            drawn = [value for value in sampled.choice if value in having]
            yield FieldIssue(loc, fact, f"add when: {{{above}.{key}: {(drawn or having)[0]}}}")


def _condition(space: Mapping[str, Distribution], path: str, on: str, value: Any) -> Iterator[FieldIssue]:
    loc, other = ("search", "space", path, "when", on), space.get(on)
    if other is None or on == path:
        near = did_you_mean(on, [name for name in space if name != path])
        yield value_issue(loc, value, f"must be another field of the space.{near}".removesuffix("."))
    elif not isinstance(other, Choice):
        yield value_issue(loc, value, f"{on} takes any number of a range; a condition needs the value of a choice")
    elif value not in other.choice:
        yield value_issue(loc, value, f"{on} never takes this value; it takes {', '.join(map(str, other.choice))}")


def circular_conditions(search: Search) -> Iterator[FieldIssue]:
    space = search.space if isinstance(search, SpaceSearch) else {}
    for path in space:
        reached = {on for on in space[path].when or {} if on != path}
        while True:
            further = reached | {on for name in reached if name in space for on in space[name].when or {}}
            if further == reached:
                break
            reached = further
        if path in reached:
            loc = ("search", "space", path, "when")
            yield value_issue(loc, dict(space[path].when or {}), "depends on a field that depends on this one")


def stopped_epochs(search: Search, train: Train) -> Iterator[FieldIssue]:
    if search.early_stopping is not None and search.early_stopping.grace_epochs >= train.epochs:
        advice = f"must be less than train.epochs = {train.epochs}, or no run is ever stopped early"
        yield search.early_stopping.issue("grace_epochs", advice, "train.epochs")


def stopped_evaluations(search: Search, eval: Eval) -> Iterator[FieldIssue]:
    if search.early_stopping is not None and eval.every > 1:
        advice = "early stopping judges a run after every epoch; take 1, or drop search.early_stopping"
        yield eval.issue("every", advice)


def constraints(search: Search) -> Iterator[FieldIssue]:
    seen: set[tuple[str, bool]] = set()
    for index, constraint in enumerate(search.constraints):
        loc: Loc = ("search", "constraints", index)
        bound = (constraint.measure, constraint.at_most is None)
        if (constraint.at_most is None) == (constraint.at_least is None):
            advice = "must have one of at_most and at_least; write two constraints for two bounds"
            yield value_issue(loc, constraint.model_dump(mode="json", exclude_none=True), advice)
        elif bound in seen:
            advice = "is bounded twice on the same side; keep the narrower bound"
            yield value_issue((*loc, "measure"), constraint.measure, advice)
        seen.add(bound)


def pareto(search: Search) -> Iterator[FieldIssue]:
    if isinstance(search.objective, Pareto):
        yield from duplicate_issues(("search", "objective", "measures"), search.objective.measures)
        if search.early_stopping is not None:
            advice = "early stopping ranks runs by one number, and a Pareto search has several; drop one of the two"
            yield search.issue("early_stopping", advice, "search.objective.kind")


def genetic(search: Search) -> Iterator[FieldIssue]:
    if isinstance(search, SpaceSearch) and search.algorithm == "nsga2":
        for path, distribution in search.space.items():
            if distribution.when:
                advice = "nsga2 inherits only fields that every run has, and draws this one at random; take tpe"
                yield value_issue(("search", "space", path, "when"), distribution.when, advice, "search.algorithm")


def last_seed(search: Search, seed: int) -> Iterator[FieldIssue]:
    last = seed + search.repeats - 1
    if search.repeats > 1 and last > LAST_SEED:
        advice = f"the last seed would be {last}; seeds end at {LAST_SEED}"
        yield value_issue(("search", "repeats"), search.repeats, advice, "seed")


def repeats(search: Search) -> Iterator[FieldIssue]:
    if search.repeats == 1:
        return
    if isinstance(search, GridSearch) and search.early_stopping is not None:
        advice = "a repeat that is stopped early leaves its seed without a pair; drop search.early_stopping"
        yield search.issue("repeats", advice, "early_stopping")
    settings: dict[Loc, Mapping[str, Any]] = {("runs", index, "set"): run.set for index, run in enumerate(search.runs)}
    if isinstance(search, GridSearch):
        settings["grid",] = search.grid
    if isinstance(search, SpaceSearch):
        settings["space",] = {path: _given(distribution) for path, distribution in search.space.items()}
    for loc, values in settings.items():
        if "seed" in values:
            advice = "search.repeats gives the runs their seeds; drop one of the two"
            yield value_issue(("search", *loc, "seed"), values["seed"], advice, "search.repeats")


def _given(section: Section) -> dict[str, Any]:
    """Return the fields of a section that differ from their defaults, for a message."""
    return section.model_dump(mode="json", exclude_defaults=True)


def _used_metrics(search: Search) -> dict[str, Loc]:
    """Return the metrics that runs are ranked by and constrained in, and their locations."""
    objective, used = search.objective, dict[str, Loc]()
    if isinstance(objective, OneMeasure):
        used[objective.measure] = ("search", "objective", "measure")
    elif isinstance(objective, Pareto):
        used |= {name: ("search", "objective", "measures", i) for i, name in enumerate(objective.measures)}
    else:
        used[objective.interpretability] = ("search", "objective", "interpretability")
    return used | {bound.measure: ("search", "constraints", i, "measure") for i, bound in enumerate(search.constraints)}


def measured(search: Search, eval: Eval) -> Iterator[FieldIssue]:
    """Check that runs measure what they are ranked by and constrained in."""
    for name, loc in _used_metrics(search).items():
        if name not in {"val_error", *EVERY_RUN, *eval.measures}:
            advice = f"is not measured: add it to eval.measures, {as_yaml(list(eval.measures))}"
            yield value_issue(loc, name, advice, "eval.measures")


CHECKS: tuple[Callable[..., Iterator[FieldIssue]], ...] = (
    backbone, categories, dataset, augment, classification, layers, weights, frozen, measured_layer, shape,
    shape_of_data, measures, landmarks_measured, filter_loss, diversity, narrowing, appended_fields, schedule,
    loaded_biases, even_batches, enough_items, gpus, nothing_ignored,
)  # fmt: skip
SEARCH_CHECKS: tuple[Callable[..., Iterator[FieldIssue]], ...] = (
    named, constraints, pareto, genetic, last_seed, repeats, measured, landmarks_ranked, grid, space,
    circular_conditions, stopped_epochs, stopped_evaluations,
)  # fmt: skip


def cross_field_issues(sections: Mapping[str, Any], root: type[Section]) -> list[FieldIssue]:
    """Return the issues of every check whose sections are given.

    sections: the valid fields of an experiment by name; `search` is None if there is no search. root: the class of the
    experiment.
    """
    arguments, issues = {**sections, "root": root}, list[FieldIssue]()
    for check in CHECKS + (SEARCH_CHECKS if sections.get("search") else ()):
        names = inspect.signature(check).parameters
        if arguments.keys() >= names.keys():
            issues += check(**{name: arguments[name] for name in names})
    return list(dict.fromkeys(issues))


def run_expansion_issues(search: Search, root: type[Section], run_spec: Callable[[Settings], Any]) -> list[FieldIssue]:
    """Return the issues of the runs of a valid search: the named ones and the combinations of `points`.

    root: the class of the experiment. run_spec: its `run_spec`.
    """
    issues: list[FieldIssue] = []
    labels: dict[str, str] = {}
    equal: list[FieldIssue] = []
    for index, run in enumerate(search.runs):
        whole: Loc = ("search", "runs", index, "set")
        try:
            spec = run_spec(run.set)
        except (NotASection, ValidationError) as error:
            issues += _run_issues(error, {path: (*whole, path) for path in run.set}, whole, root)
            continue
        digest = spec.digest()
        issues += landmarks_ranked(search, spec.data)
        if digest in labels:
            fact = f"search.runs.{index}.name = {run.name!r}"
            equal.append(FieldIssue(whole[:-1], fact, f"trains the same as {labels[digest]}; drop one"))
        labels.setdefault(digest, run.name)
    issues = issues or equal
    whole = ("search", "grid" if isinstance(search, GridSearch) else "space")
    for combination in points(search):
        try:
            issues += landmarks_ranked(search, run_spec(combination).data)
        except (NotASection, ValidationError) as error:
            locs = {path: _location(search, path, value) for path, value in combination.items()}
            issues += _run_issues(error, locs, whole, root)
    return list(dict.fromkeys(issues))


def _location(search: Search, path: str, value: Any) -> Loc:
    """Return the location of a value of `points`, which is the same object as in the search."""
    values: tuple[Any, ...] = ()
    loc: Loc = ("search", "grid", path)
    if isinstance(search, SpaceSearch):
        values, loc = search.space[path].values, ("search", "space", path, search.space[path].key)
    elif isinstance(search, GridSearch):
        values = search.grid[path]
    return (*loc, next(index for index, option in enumerate(values) if option is value))


def _run_issues(
    error: NotASection | ValidationError, locs: Mapping[str, Loc], whole: Loc, root: type[Section]
) -> list[FieldIssue]:
    """Return the issues of a run whose settings are at these locations."""
    if isinstance(error, NotASection):
        return [FieldIssue(locs[error.path], dotted(locs[error.path]), str(error))]
    return [_at_setting(issue, locs, whole) for issue in field_issues(error, root)]


def _at_setting(issue: FieldIssue, locs: Mapping[str, Loc], whole: Loc) -> FieldIssue:
    """Move the issue of a run to the setting that causes it."""
    path = dotted(issue.loc)
    for setting, loc in locs.items():
        if path == setting or path.startswith(f"{setting}."):
            rest = path.removeprefix(setting).removeprefix(".")
            full = (*loc, *(rest.split(".") if rest else ()))
            return FieldIssue(full, f"{dotted(full)}{issue.what.removeprefix(path)}", issue.advice)
    loc = next(iter(locs.values())) if len(locs) == 1 else whole
    return FieldIssue(loc, f"{dotted(loc)} gives {issue.what}", issue.advice)
