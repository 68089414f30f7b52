"""InterpretableLayer: the mask and the filter loss of one layer as a module, for networks and training loops of others.

N images of this worker, C filters, n x n cells, L categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ipcnn_ray.core.filter_loss import Form as InformationForm
from ipcnn_ray.core.templates import LEARNED, check_positive, log_prior, part_templates, template_bank
from ipcnn_ray.core.workers import Workers, current_workers
from ipcnn_ray.models.layer_loss import InformationTerm, ReleasedTerm, StepContext
from ipcnn_ray.models.layers import CentroidMask, LearnedBetaMask, PeakMask, make_mask

Form = Literal[InformationForm, "released"]
Mask = Literal["peak", "centroid", "none"]


class InterpretableLayer(nn.Module):
    """Pushes every filter of a convolution to fire on one object part, without part labels.

    Put it behind the ReLU of a convolution. `forward` masks each map by a part template around its peak; `filter_loss`
    is a term for the loss of the training, minus the mutual information between maps and templates::

        layer = InterpretableLayer(n=14, shape="gradient", norm="l2", beta=10)
        y = layer(torch.relu(conv(x)))                               # [N, C, 14, 14] -> [N, C, 14, 14]
        loss = criterion(head(y), target) + 0.01 * layer.filter_loss()

    It has no parameters unless `learn_beta` is set, and nothing in its state dict unless it has a moving average (forms
    `single` and `released` with several categories). Templates follow from the arguments.

    The maps of the last `forward` in training mode are kept for `filter_loss`; copies, pickles and exported programs do
    not hold them. Where torch.distributed is initialised, the loss is that of the global batch, on every rank, and its
    gradient averaged over the ranks (as DistributedDataParallel does) is that of the global loss.

    Args:
        n: Side of a map, cells.
        shape: Shape of the template: `gradient` and `uniform` (with `norm`, `beta`; `uniform` also with `gamma`),
            `released` (`width`), `gaussian` (`sigma`), `ellipse` (`beta`, `aspect`, `angle` in degrees), `ring`
            (`radius`, `width`), `mask` (`values`, a square table in [-1, 1], and `extent`); or ``module:function``, a
            function as in `ipcnn_ray.core.templates`. Lengths (`sigma`, `radius`, `extent`, `width` of a ring) are
            shares of n.
        norm: `l1`, `l2`, `linf`, or `lp` with `p`.
        beta: Slope, > 0: the gradient template crosses 0 at a distance of n / beta cells.
        gamma: A uniform template is 1 inside a radius of n * gamma / beta cells, -1 outside.
        mask: Where the template lies that masks a map: around its `peak`, around its activation-weighted `centroid`, or
            `none`: no mask. Default: `centroid` with form `released`, else `peak`.
        form: Gradient of the filter loss: `exact`; `zconst` and `single`, the two lines of equation 4 of the paper; or
            `released`, the gradient of the authors' code, which is that of no loss: `filter_loss` is then 0, with this
            gradient.
        tau: Height of the templates in the filter loss, > 0. Default: 0.5 / n^2.
        learn_beta: Learn `beta` for each filter, starting from its value: a parameter with the gradient of the filter
            loss. With form `exact`, mask `peak` and shape `gradient` or `ellipse`. Needs `filters`.
        filters: Number C of maps. Needed with `learn_beta`, and with several categories in the forms `single` and
            `released`; otherwise any number of maps is accepted.
        categories: Number L of categories of objects that the forms `single` and `released` tell apart. Each filter
            belongs to the category whose images activate it the most, by a moving average over batches.
        density: Only for form `released` with several categories: the share of all images that show each category.
            Default: 1 / L for each.
        sync: Whether the loss is that of the global batch where torch.distributed is initialised. False: each process
            has a network and a loss of its own.
        **parameters: Other parameters of the shape.

    Shapes:
        input [N, C, n, n], not negative, in any floating-point format; output the same shape and format.

    Raises:
        ValueError: An argument is unknown, missing or out of its range; the message names it and what is allowed.

    Source: Zhang et al., Interpretable Convolutional Neural Networks, CVPR 2018; the authors' released code.
    Deviations: those of `core.mask.mask_maps`, `core.filter_loss.filter_loss` and `core.released`. The weight of the
    loss is the caller's; the paper's is (1 / epoch) * mean over images of the map's maximum for each filter, the
    released code's 0.1 / epoch. Learned widths of the released form are left to `ipcnn submit`, because their gradient
    does not scale with the weight.
    """

    average_CL: Tensor | None
    """Moving average of the activation of each filter on the images of each category; NaN before the first batch."""

    def __init__(
        self,
        n: int,
        *,
        shape: str = "gradient",
        norm: str | None = None,
        beta: float | None = None,
        gamma: float | None = None,
        mask: Mask | None = None,
        form: Form = "exact",
        tau: float | None = None,
        learn_beta: bool = False,
        filters: int | None = None,
        categories: int = 1,
        density: Sequence[float] | None = None,
        sync: bool = True,
        **parameters: Any,
    ) -> None:
        super().__init__()
        for name, value in (("n", n), ("filters", filters), ("categories", categories)):
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} = {value!r}: expected a whole number of at least 1")
        _check_choice("form", form, (*get_args(InformationForm), "released"))
        _check_choice("mask", mask, (*get_args(Mask), None))
        given = {"norm": norm, "beta": beta, "gamma": gamma, **parameters}
        for name, value in {**given, "tau": tau}.items():
            if name not in ("norm", "values") and not isinstance(value, int | float | None):
                raise ValueError(f"{name} = {value!r}: expected a number")
        self.n, self.form, self.filters, self.categories = n, form, filters, categories
        self.center: Mask = mask or ("centroid" if form == "released" else "peak")
        self.tau, self.sync = tau, sync
        self.widening = 1.0
        self._arguments = {"shape": shape, **{name: value for name, value in given.items() if value is not None}}
        learned = self._check_learned() if learn_beta else ""
        needs_filters = learn_beta or (categories > 1 and form in ("single", "released"))
        if needs_filters and filters is None:
            what = "learn_beta" if learn_beta else f"form {form!r} with {categories} categories"
            raise ValueError(f"filters = None: {what} needs the number of maps")
        template_bank(n, tau=tau, **self._arguments)  # raises what is wrong with the template, whatever the mask
        self.mask = make_mask(n, filters or 1, self.center, self._arguments, learned=learned)
        self.mask.requires_grad_(learn_beta)
        self._density = self._check_density(density)
        average = torch.full((filters or 1, categories), torch.nan, dtype=torch.float64)
        averages = categories > 1 and form in ("single", "released")
        self.register_buffer("average_CL", average if averages else None)
        self._maps_NCHW: Tensor | None = None
        self._bank_Tnn: Tensor | None = None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """Return the masked maps, [N, C, n, n] in the format of `x_NCHW`.

        x_NCHW: maps after ReLU. No gradient flows through the mask.
        Raises ValueError for maps of another shape.
        """
        self._check_maps("x_NCHW", x_NCHW)
        if not torch.compiler.is_exporting():
            self._maps_NCHW = x_NCHW if self.training else None
        masked: Tensor = self.mask(x_NCHW).maps_NCHW
        return masked.to(x_NCHW.dtype)

    def filter_loss(
        self,
        labels: Tensor | None = None,
        maps_NCHW: Tensor | None = None,
        *,
        reduction: Literal["sum", "mean", "none"] = "sum",
    ) -> Tensor:
        """Return the filter loss of the global batch, in nats: a number, or [C] with reduction `none`.

        Every rank must call it, with the same number of images, unless `sync` is False. It is computed in float32 (or
        float64 for maps in float64), also under autocast.

        Args:
            labels: Category of each image, [N], from 0 to L - 1, -1 for an image without object; or bool, whether it
                shows the object. Needed by the forms `single` and `released`; the others do not use it.
            maps_NCHW: Maps after ReLU, before the mask. Default: those of the last `forward` in training mode.
            reduction: `sum` or `mean` over filters, or `none`.

        Raises:
            RuntimeError: There are no maps: `forward` was not called in training mode.
            ValueError: Labels are missing, or do not fit the maps; the ranks have different numbers of images.
        """
        _check_choice("reduction", reduction, ("sum", "mean", "none"))
        x_NCHW = self._maps_NCHW if maps_NCHW is None else maps_NCHW
        if x_NCHW is None:
            raise RuntimeError(
                "filter_loss: no maps. Call the layer in training mode first, or pass maps_NCHW; the maps of a pass in "
                "evaluation mode are not kept"
            )
        self._check_maps("maps_NCHW", x_NCHW)
        with torch.autocast(x_NCHW.device.type, enabled=False):
            x_NCHW = x_NCHW if x_NCHW.dtype == torch.float64 else x_NCHW.float()
            workers = current_workers() if self.sync else Workers()
            _check_equal_batches(len(x_NCHW), workers, x_NCHW.device)
            class_N = self._classes(labels, x_NCHW)
            loss_C = self._loss(x_NCHW, StepContext(class_N, 1, len(x_NCHW) * workers.world_size, workers))
            # W times the gradient with respect to this rank's images: the mean over ranks is that of the global loss.
            loss_C = loss_C + (workers.world_size - 1) * (loss_C - loss_C.detach())
        return loss_C.sum() if reduction == "sum" else loss_C.mean() if reduction == "mean" else loss_C

    def set_widening(self, widening: float) -> None:
        """Multiply every length of the template by a factor, for training that starts with wide templates.

        widening: > 0; 1 is the template as given. It is not part of the state dict.
        Raises ValueError for a layer with `learn_beta`, whose filters set their own width.
        """
        check_positive("widening", widening)
        if isinstance(self.mask, LearnedBetaMask):
            raise ValueError(f"widening = {widening}: with learn_beta the filters set their own width")
        self.widening, self._bank_Tnn = widening, None
        if isinstance(self.mask, PeakMask | CentroidMask):
            unit_Pnn = part_templates(self.n, **self._arguments, tau=1.0, widening=widening)
            self.mask.unit_Pnn.copy_(unit_Pnn)

    @property
    def betas(self) -> Tensor | None:
        """The learned slope of each filter, [C]; None without `learn_beta`."""
        return self.mask.log_beta_C.detach().exp() if isinstance(self.mask, LearnedBetaMask) else None

    def extra_repr(self) -> str:
        """Return the arguments that are set."""
        parameters = {name: value for name, value in self._arguments.items() if name not in ("shape", "values")}
        words = [f"n={self.n}", f"shape={self._arguments['shape']}", *(f"{k}={v}" for k, v in parameters.items())]
        return ", ".join([*words, f"mask={self.center}", f"form={self.form}"])

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps_NCHW": None, "_bank_Tnn": None}

    def _loss(self, x_NCHW: Tensor, step: StepContext) -> Tensor:
        """Loss of each filter, [C], with the gradient of the global loss with respect to this rank's images."""
        bank_Tnn = self._templates(x_NCHW)
        if self.form == "released":
            mask = self.mask if isinstance(self.mask, CentroidMask) else CentroidMask(bank_Tnn[:-1])
            density_L = x_NCHW.new_tensor(self._density)
            released = ReleasedTerm(mask, density_L, weight=1.0, schedule="constant", learns=False)
            released.average_CL = self._average(x_NCHW)
            added_NCHW = released.added_gradient(x_NCHW, None, step)
            self._set_average(released.average_CL)
            loss_C = (x_NCHW * added_NCHW).sum((0, 2, 3)) / step.batch_size
            return loss_C - loss_C.detach()
        information = InformationTerm(
            bank_Tnn,
            log_prior(self.n, dtype=x_NCHW.dtype, device=x_NCHW.device),
            weight=1.0,
            schedule="constant",
            form=self.form,
            categories=self.categories,
        )
        information.average_CL = self._average(x_NCHW)
        if isinstance(self.mask, LearnedBetaMask):
            bank_Tnn = self.mask.bank(self.mask.log_beta_C.to(x_NCHW.dtype), bank_Tnn[-1:])
        loss_C = information.per_filter(x_NCHW, bank_Tnn, step)
        self._set_average(information.average_CL)
        return loss_C

    def _templates(self, like: Tensor) -> Tensor:
        """All templates on the device and in the format of the maps, [T, n, n]; unit templates for `released`."""
        bank = self._bank_Tnn
        if bank is None or bank.device != like.device or bank.dtype != like.dtype:
            tau = 1.0 if self.form == "released" else self.tau
            bank = template_bank(self.n, tau=tau, **self._arguments, widening=self.widening, dtype=like.dtype)
            self._bank_Tnn = bank = bank.to(like.device)
        return bank

    def _average(self, like: Tensor) -> Tensor | None:
        """The moving average, None before the first batch."""
        if self.average_CL is None or bool(self.average_CL.isnan().all()):
            return None
        return self.average_CL.to(like.device, torch.float64)

    def _set_average(self, average_CL: Tensor | None) -> None:
        if self.average_CL is not None and average_CL is not None and self.training:
            self.average_CL.copy_(average_CL)

    def _check_maps(self, name: str, x_NCHW: Tensor) -> None:
        channels = "C" if self.filters is None else self.filters
        fits = x_NCHW.ndim == 4 and x_NCHW.shape[2] == x_NCHW.shape[3] == self.n
        if not fits or (self.filters is not None and x_NCHW.shape[1] != self.filters):
            raise ValueError(f"{name} has shape {tuple(x_NCHW.shape)}: expected [N, {channels}, {self.n}, {self.n}]")

    def _check_learned(self) -> str:
        """Return the name of the parameter that filters learn."""
        shape = self._arguments["shape"]
        if self.form != "exact":
            more = "; released widths are learned by `ipcnn submit` only" if self.form == "released" else ""
            raise ValueError(f"learn_beta = True: expected form 'exact', got {self.form!r}{more}")
        if shape not in LEARNED:
            raise ValueError(f"learn_beta = True: expected shape {' or '.join(map(repr, LEARNED))}, got {shape!r}")
        if self.center != "peak":
            raise ValueError(f"learn_beta = True: expected mask 'peak', got {self.center!r}")
        return LEARNED[shape]

    def _check_density(self, density: Sequence[float] | None) -> list[float]:
        if density is None:
            return [1 / self.categories] * self.categories
        if self.form != "released" or self.categories == 1:
            raise ValueError(f"density = {list(density)}: it is for form 'released' with several categories")
        if len(density) != self.categories or not all(0 < share < 1 for share in density):
            raise ValueError(f"density = {list(density)}: expected {self.categories} shares between 0 and 1")
        return list(density)

    def _classes(self, labels: Tensor | None, x_NCHW: Tensor) -> Tensor:
        """Category of each image, -1 for none, [N] int64."""
        N = len(x_NCHW)
        if labels is not None and labels.shape != (N,):
            raise ValueError(f"labels has shape {tuple(labels.shape)}: expected [{N}], one for each image of the maps")
        if self.form not in ("single", "released"):
            return torch.zeros(N, dtype=torch.int64, device=x_NCHW.device)
        if labels is None:
            raise ValueError(f"labels = None: form {self.form!r} needs the category of each image")
        if labels.dtype.is_floating_point or labels.dtype.is_complex:
            raise ValueError(f"labels is {labels.dtype}: expected whole numbers, or bool")
        class_N = labels.long() - 1 if labels.dtype == torch.bool else labels.long()
        if bool(((class_N < -1) | (class_N >= self.categories)).any()):
            low, high = int(class_N.min()), int(class_N.max())
            expected = f"-1 (no object) to {self.categories - 1}, as categories = {self.categories}"
            raise ValueError(f"labels from {low} to {high}: expected {expected}; or bool, whether an image shows it")
        return class_N.to(x_NCHW.device)


def _check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} = {value!r}: expected one of {', '.join(map(repr, allowed))}")


def _check_equal_batches(images: int, workers: Workers, device: torch.device) -> None:
    if workers.world_size > 1:
        counts = workers.gather(torch.tensor([images], device=device)).flatten().tolist()
        if len(set(counts)) > 1:
            raise ValueError(
                f"the ranks have batches of {counts} images: expected the same number on all. "
                "Drop the last batch of an epoch (drop_last=True), or pad it"
            )
