"""What a run is trained to: a tailored template, fitted to the training split, and the final model.

The final model is the trained network with the input normalisation, as one module.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor, nn

from ipcnn_ray.core.crop_place import CropPlace
from ipcnn_ray.core.explanation import Explanation, ExplanationContext, KnownFilter, explain
from ipcnn_ray.core.template_fit import axes_of_sizes, axes_of_spacing, ellipse_of, table_of_mask
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.crops import ImageFileError, Photograph, crop_with_place
from ipcnn_ray.errors import DataError, Issue, TrainingError
from ipcnn_ray.models.build import assemble
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.models.net import InterpretableNet, NetOutput
from ipcnn_ray.spec.template import COMMON, EllipseTemplate, MaskTemplate, PartTemplate, TailoredTemplate, Template
from ipcnn_ray.train.checkpoint import read_result
from ipcnn_ray.train.run_dir import (
    FILTERS_FILE,
    MEAN_KEY,
    RESULT_FILE,
    TEMPLATE_FILE,
    WEIGHTS_FILE,
    Folder,
    open_run_dir,
    read_file,
)
from ipcnn_ray.train.run_metadata import RunRequest


@dataclass(frozen=True)
class FittedTemplate:
    template: EllipseTemplate | MaskTemplate
    """A concrete template, which a spec may contain as it is."""
    images: int
    """Number of training objects that it was fitted to."""

    def params(self) -> dict[str, str]:
        """Return its fields as params of the tracked run; of a table only the size, the values are in the artifact."""
        fields = self.template.model_dump(exclude_none=True, exclude={"mask", "narrowing"})
        return {
            f"template_fitted.{key}": f"{len(value)}x{len(value)}" if isinstance(value, tuple) else str(value)
            for key, value in fields.items()
        }

    def tags(self) -> dict[str, str]:
        return {"template.fitted": self.template.label(), "template.fitted_objects": str(self.images)}

    def as_json(self) -> str:
        return json.dumps(self.template.model_dump(mode="json"))


def fit_template(template: Template, store: CropStore) -> FittedTemplate | None:
    """Fit a tailored template to the training objects; None for any other template.

    Numbers are rounded to 6 digits, values of a mask to 3 decimals, so that all machines agree.

    Raises:
        DataError: If the training split lacks what the fit needs.
    """
    if not isinstance(template, TailoredTemplate):
        return None
    k = store.landmark_names.index(template.landmark)
    objects = np.unique(store.train_items[:, 0])
    objects = objects[store.labels_N[objects] >= 0]
    common = {name: getattr(template, name) for name in COMMON}
    try:
        if template.fitted_to == "part_masks":
            seen = ~np.isnan(store.part_sizes_NK2[objects, k]).any(1)
            # A patch extends by one crop to each side.
            values, extent = table_of_mask(torch.from_numpy(store.mean_masks_KGG[k]), 1.0)
            rows = tuple(tuple(round(value, 3) for value in row) for row in values.tolist())
            concrete: EllipseTemplate | MaskTemplate = MaskTemplate(
                shape="mask", values=rows, extent=_round(extent * template.scale), **common
            )
            return FittedTemplate(concrete, int(seen.sum()))
        if template.fitted_to == "part_sizes":
            axes = axes_of_sizes(torch.from_numpy(store.part_sizes_NK2[objects, k]))
        else:
            paths = torch.from_numpy(store.landmarks_NK2[objects] / store.size)
            others = [other for other in range(len(store.landmark_names)) if other != k]
            axes = axes_of_spacing(paths[:, k], paths[:, others])
    except ValueError as error:
        where = f"template.fitted_to = {template.fitted_to}, landmark {template.landmark!r}"
        what = f"cannot be fitted to the {len(objects)} training objects: {error}"
        raise DataError([Issue(where, what, "Take another landmark or another template.fitted_to.")]) from error
    ellipse = ellipse_of(axes)
    concrete = EllipseTemplate(
        shape="ellipse",
        beta=_round(ellipse["beta"] / template.scale),
        aspect=_round(ellipse["aspect"]),
        angle=ellipse["angle"],
        **common,
    )
    return FittedTemplate(concrete, axes.images)


def _round(value: float) -> float:
    return float(f"{value:.6g}")


def trained_template(request: RunRequest) -> Template:
    """Return the template that a run was trained with: that of its spec, or the fitted one in the run's directory.
    Raises TrainingError if a tailored template has not been fitted yet."""
    template = request.spec.template
    if not isinstance(template, TailoredTemplate):
        return template
    raw = read_file(request.folder, TEMPLATE_FILE)
    if raw is None:
        raise TrainingError(
            f"run {request.run_id} has no {TEMPLATE_FILE} in {request.folder}: its template is not fitted yet"
        )
    kind = MaskTemplate if json.loads(raw)["shape"] == "mask" else EllipseTemplate
    return kind.model_validate_json(raw)


class Classifier(nn.Module):
    """Trained network with its input normalisation: RGB crops [N, 3, S, S] float, values 0..255 -> logits [N], or
    [N, L] for several categories. A positive logit means that the crop shows the category.

    mean_3SS: mean of the training images. scale: factor on the difference from it. context: of its explanations, with
    the names of the L categories. upright: whether photographs are turned by their EXIF orientation, as those of the
    training were.
    """

    mean_3SS: Tensor

    def __init__(
        self, net: InterpretableNet, mean_3SS: Tensor, scale: float, context: ExplanationContext, *, upright: bool
    ) -> None:
        super().__init__()
        self.net = net
        self.scale = scale
        self.context = context
        self.categories = tuple(context.categories)
        self.upright = upright
        self.image_size = mean_3SS.shape[-1]
        self.register_buffer("mean_3SS", mean_3SS)

    def forward(self, crops_N3SS: Tensor) -> Tensor:
        logits: Tensor = self.net((crops_N3SS - self.mean_3SS) * self.scale)
        return logits

    def maps(self, crops_N3SS: Tensor) -> dict[str, Tensor]:
        """Return the maps of each interpretable layer, lowest first, before ReLU and mask, [N, C, n, n]: the input of
        the metrics. crops_N3SS: as of `forward`."""
        return self._output(crops_N3SS).scores

    def explain(
        self, image: str | PathLike[str] | Photograph, box: tuple[float, float, float, float] | None = None
    ) -> Explanation:
        """Return what the network says of one photograph: a score for each category, and of each filter that fires
        where it fires and what it followed in training.

        The photograph is scaled to a crop of `image_size` as those of the training were: bilinear, the aspect ratio not
        kept, turned by its EXIF orientation where they were.

        image: A file, an image of PIL, or RGB pixels, uint8 [H, W, 3]. box: The part of it to look at, xmin, ymin,
        xmax, ymax in pixels, 0 the left or upper edge; default: all of it.
        Raises DataError for an image that cannot be read, and a box that is not inside it.
        """
        path = str(image) if isinstance(image, str | PathLike) else ""
        source = Path(image) if isinstance(image, str | PathLike) else image
        try:
            crop_3SS, place = crop_with_place(source, box, self.image_size, upright=self.upright)
        except ImageFileError as error:
            advice = "Give an image file, an image of PIL, or an array [H, W, 3] of uint8, with a box inside it."
            raise DataError([Issue(path or "image", str(error), advice)]) from error
        return self.explain_crops(torch.from_numpy(crop_3SS.copy())[None], [(path, place)])[0]

    @torch.inference_mode()
    def explain_crops(self, crops_N3SS: Tensor, places: Sequence[tuple[str, CropPlace]]) -> list[Explanation]:
        """Return the explanation of each of some crops. crops_N3SS: as of `forward`, of any type. places: path of each
        image, and where its crop lies in it."""
        output = self._output(crops_N3SS.to(self.mean_3SS))
        return explain(output.logits_NL, output.scores, places, self.context)

    def _output(self, crops_N3SS: Tensor) -> NetOutput:
        return cast(NetOutput, self.net((crops_N3SS - self.mean_3SS) * self.scale, full=True))


def final_model(request: RunRequest) -> tuple[Classifier, Tensor]:
    """Return the model of a run that has ended, in evaluation mode on the CPU, and an example batch of two crops.
    Raises TrainingError if the run has not ended."""
    files = open_run_dir(request.folder)
    if not files.exists(WEIGHTS_FILE):
        raise TrainingError(f"run {request.run_id} has no {WEIGHTS_FILE} in {request.folder}: it has not ended yet")
    tensors = load(files.get(WEIGHTS_FILE))
    mean_3SS = tensors.pop(MEAN_KEY)
    spec = request.spec
    template = trained_template(request)
    widening = _last_widening(request, template)
    net = assemble(spec.model, template, len(spec.data.categories), spec.loss.filter, widening=widening)
    net.load_state_dict(tensors)
    fields = {layer: layer_receptive_field(spec.model, layer) for layer in net.interpretable}
    context = ExplanationContext(spec.data.categories, spec.loss.classification, fields, known_filters(request.folder))
    upright = bool(getattr(spec.data, "upright", False))
    model = Classifier(net, mean_3SS, spec.model.table.input_scale, context, upright=upright).eval()
    return model, torch.stack([mean_3SS, mean_3SS.flip(2)]).round()


def known_filters(folder: Folder) -> dict[str, tuple[KnownFilter, ...]]:
    """Return what the filters of each layer of a run follow, from its last evaluation. Runs of earlier versions lack
    offsets, or all of it."""
    raw = read_file(folder, FILTERS_FILE)
    layers = json.loads(raw)["layers"] if raw else {}
    return {layer: tuple(map(_known_filter, rows)) for layer, rows in layers.items()}


def _known_filter(row: Mapping[str, Any]) -> KnownFilter:
    offset, deviation = (
        (pair[0], pair[1]) if (pair := row.get(key)) else None for key in ("offset", "offset_deviation")
    )
    return KnownFilter(row["category"], row["landmark"], row["tracking"], offset, deviation)


def _last_widening(request: RunRequest, template: Template) -> float:
    """Return the factor on the template's lengths in a run's last epoch, which is not 1 if it was stopped early."""
    if not isinstance(template, PartTemplate) or template.narrowing is None:
        return 1.0
    result = read_result(request.folder, request.run)
    if result is None:
        raise TrainingError(f"run {request.run_id} has no {RESULT_FILE} in {request.folder}: it has not ended yet")
    return template.widening(int(result.metrics["epoch"]))
