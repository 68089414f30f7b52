"""The layers of a model in words: what `ipcnn plan` and the page of a stored model show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ipcnn_ray.models.build import assemble
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import NoTemplate, Template


@dataclass(frozen=True)
class LayerRow:
    """One layer that has parameters or changes the size of the map."""

    name: str
    kind: str
    """Such as `conv 3x3, 2 groups`, `max pool 3x3`, `fully connected`."""
    channels: int
    side: int
    """Side of the map that it puts out, cells."""
    field: int | None
    """Side of a cell's receptive field, pixels; None in the head, which sees the whole image."""
    stride: int | None
    """Distance of neighbouring cells, pixels; None in the head."""
    trainable: int
    """Parameters that training changes."""
    frozen: int
    """Parameters that keep their loaded values."""
    interpretable: bool


def describe(
    model: Model, template: Template, freeze_through: str | None = None, categories: int = 1
) -> list[LayerRow]:
    """The layers from the image to the output of so many categories, normalisation left out."""
    net = assemble(model, template, categories, device="meta")
    if freeze_through is not None:
        net.freeze_through(freeze_through)
    rows = [_spatial(net, model, name) for name in net.names if _kind(net.layer(name), net.kind(name))]
    channels = rows[-1].channels
    for name, module in net.head.items():
        if isinstance(module, nn.MaxPool2d):
            fed = next(layer for layer in net.head.values() if isinstance(layer, nn.Linear))
            side = round((fed.in_features / channels) ** 0.5)
            rows.append(LayerRow(name, _kind(module), channels, side, None, None, 0, 0, False))
        elif isinstance(module, nn.Linear):
            count = sum(p.numel() for p in module.parameters())
            rows.append(LayerRow(name, _kind(module), module.out_features, 1, None, None, count, 0, False))
    return rows


def _spatial(net: InterpretableNet, model: Model, name: str) -> LayerRow:
    seen, module = layer_receptive_field(model, name), net.layer(name)
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    total = sum(p.numel() for p in module.parameters())
    channels, side, _ = net.shape(name)
    return LayerRow(
        name,
        _kind(module, net.kind(name)),
        channels,
        side,
        seen.size,
        seen.stride,
        trainable,
        total - trainable,
        name in net.interpretable,
    )


def _kind(module: nn.Module, block: str = "") -> str:
    """Empty for a layer that is not worth a row. block: what a layer of several modules is called."""
    if isinstance(module, nn.Conv2d):
        side = module.kernel_size[0]
        return f"conv {side}x{side}" + (f", {module.groups} groups" if module.groups > 1 else "")
    if isinstance(module, nn.MaxPool2d):
        return f"max pool {module.kernel_size}x{module.kernel_size}"
    if isinstance(module, nn.Linear):
        return "fully connected"
    return block if next(module.children(), None) is not None else ""


def loading(model: Model, categories: Sequence[str]) -> str:
    """How a model is loaded from the record and what goes in and comes out; `{uri}` stands for its address."""
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
        "inside. "
        'For any other language: `mlflow models serve -m "{uri}"`.',
    ]
    return "\n".join(lines) + "\n"


def as_markdown(model: Model, template: Template, freeze_through: str | None = None, categories: int = 1) -> str:
    """A heading, what is interpretable, and the table of layers."""
    rows = describe(model, template, freeze_through, categories)
    looked_at = ", ".join(row.name for row in rows if row.interpretable)
    measured = "measured" if isinstance(template, NoTemplate) else "interpretable"
    size = model.table.image_size
    trainable, frozen = sum(row.trainable for row in rows), sum(row.frozen for row in rows)
    lines = [
        f"# {model.network}: {template.describe()}",
        "",
        f"Images of {size} x {size} pixels, RGB. {measured.capitalize()} layers: {looked_at}. "
        f"{trainable:,} parameters are trained, {frozen:,} are frozen.",
        "",
        "| layer | kind | channels | map (cells) | receptive field (px) | stride (px) | trained parameters | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        seen = "whole image" if row.field is None else str(row.field)
        step = "" if row.stride is None else f" {row.stride}"
        note = f" {measured}" if row.interpretable else " frozen" if row.frozen else ""
        lines.append(
            f"| {row.name} | {row.kind} | {row.channels} | {row.side} x {row.side} | {seen} |{step} "
            f"| {row.trainable:,} |{note} |"
        )
    return "\n".join(lines) + "\n"
