"""Description of a model: its layers, receptive fields and parameters, and how to load it. For its page in MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ipcnn_ray.core.receptive_field import map_side
from ipcnn_ray.models.build import assemble
from ipcnn_ray.models.layer_geometry import layer_receptive_field, window
from ipcnn_ray.models.layers import GlobalPool
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import NoTemplate, Template


@dataclass(frozen=True)
class LayerRow:
    """A layer that has parameters or changes the size of the map."""

    name: str
    kind: str
    """Such as `conv 3x3, 2 groups`, `max pool 3x3`, `global average pool`, `fully connected`."""
    channels: int
    side: int
    """Side of the output map, cells."""
    receptive_field: int | None
    """Side of a cell's receptive field, pixels; None in the head, which sees the whole image."""
    stride: int | None
    """Distance of neighbouring cells, pixels; None in the head."""
    trainable: int
    """Number of parameters that are trained."""
    frozen: int
    """Number of frozen parameters."""
    interpretable: bool


def layer_rows(
    model: Model, template: Template, freeze_through: str | None = None, categories: int = 1
) -> list[LayerRow]:
    """Return the layers from the image to the output, without normalisation."""
    net = assemble(model, template, categories, device="meta")
    if freeze_through is not None:
        net.freeze_through(freeze_through)
    rows = [_body_row(net, model, name) for name in net.names if _kind(net.layer(name), net.kind(name))]
    channels = rows[-1].channels
    for name, module in net.head.items():
        if isinstance(module, nn.MaxPool2d | GlobalPool):
            pooled = isinstance(module, nn.MaxPool2d)
            side = map_side(rows[-1].side, [window(model.table.head_pool)]) if pooled else 1
            rows.append(LayerRow(name, _kind(module), channels, side, None, None, 0, 0, False))
        elif isinstance(module, nn.Linear):
            count = sum(p.numel() for p in module.parameters())
            rows.append(LayerRow(name, _kind(module), module.out_features, 1, None, None, count, 0, False))
    return rows


def _body_row(net: InterpretableNet, model: Model, name: str) -> LayerRow:
    field, module = layer_receptive_field(model, name), net.layer(name)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    kind, (channels, side, _) = _kind(module, net.kind(name)), net.shape(name)
    marked = name in net.interpretable
    size = None if field.whole else field.size
    return LayerRow(name, kind, channels, side, size, field.stride, trainable, total - trainable, marked)


def _kind(module: nn.Module, block: str = "") -> str:
    """Return the kind of a layer; empty for one that gets no row. block: kind of a layer of several modules."""
    if isinstance(module, nn.Conv2d):
        side = module.kernel_size[0]
        return f"conv {side}x{side}" + (f", {module.groups} groups" if module.groups > 1 else "")
    if isinstance(module, nn.MaxPool2d):
        return f"max pool {module.kernel_size}x{module.kernel_size}"
    if isinstance(module, GlobalPool):
        return f"global {module.kind.replace('_', ' ')}"
    if isinstance(module, nn.Linear):
        return "fully connected"
    return block if next(module.children(), None) is not None else ""


def usage_markdown(model: Model, categories: Sequence[str]) -> str:
    """Return the Markdown section on loading a model, with its input and output; `{uri}` stands for its address."""
    size = model.table.image_size
    if len(categories) == 1:
        shape, meaning = "[N]", f"positive: the crop shows a {categories[0]}"
    else:
        shape, meaning = f"[N, {len(categories)}]", f"in the order {', '.join(categories)}"
    lines = [
        "",
        "## Load it",
        "",
        "```python",
        "import mlflow, torch",
        "",
        "# MLFLOW_TRACKING_URI names the record; the model is a torch module",
        'model = mlflow.pytorch.load_model("{uri}")',
        f"crops = torch.zeros(2, 3, {size}, {size})  # any number of them, float32 RGB, values 0..255",
        f"logits = model(crops)  # {shape}; {meaning}",
        "```",
        "",
        f"A crop is the bounding box of one object, resized to {size} x {size} pixels; the mean image is taken off "
        'inside. For any other language: `mlflow models serve -m "{uri}"`.',
    ]
    return "\n".join(lines) + "\n"


def model_card_markdown(
    model: Model, template: Template, freeze_through: str | None = None, categories: int = 1
) -> str:
    """Return the Markdown page of a model: its input, interpretable layers and table of layers."""
    rows = layer_rows(model, template, freeze_through, categories)
    interpretable = ", ".join(row.name for row in rows if row.interpretable)
    role = "measured" if isinstance(template, NoTemplate) else "interpretable"
    size = model.table.image_size
    trainable, frozen = sum(row.trainable for row in rows), sum(row.frozen for row in rows)
    lines = [
        f"# {model.network}: {template.describe()}",
        "",
        f"Images of {size} x {size} pixels, RGB. {role.capitalize()} layers: {interpretable}. "
        f"{trainable:,} parameters are trained, {frozen:,} are frozen.{_initial(model)}",
        "",
        "| layer | kind | channels | map (cells) | receptive field (px) | stride (px) | trained parameters | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        field = "whole image" if row.receptive_field is None else str(row.receptive_field)
        step = "" if row.stride is None else f" {row.stride}"
        note = f" {role}" if row.interpretable else " frozen" if row.frozen else ""
        lines.append(
            f"| {row.name} | {row.kind} | {row.channels} | {row.side} x {row.side} | {field} |{step} "
            f"| {row.trainable:,} |{note} |"
        )
    return "\n".join(lines) + "\n"


def _initial(model: Model) -> str:
    """The rule of the new layers' initial weights, if it is set."""
    return f" Initial weights of new layers: {model.new_weights}." if model.new_weights else ""
