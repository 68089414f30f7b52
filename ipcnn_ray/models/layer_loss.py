"""The filter loss of one interpretable layer, as a term of the loss of a training step.

N images of this worker, C filters, T templates, L categories.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from ipcnn_ray.core.filter_loss import Form, filter_loss, filter_weight, mean_sums
from ipcnn_ray.core.released import (
    Centroids,
    centroids,
    groups,
    released_gradient,
    strengths,
    updated_magnitude,
    width_gradient,
)
from ipcnn_ray.core.workers import Workers
from ipcnn_ray.models.layers import CentroidMask, LearnedBetaMask, MaskOutput, ReleasedMask

Schedule = Literal["paper", "constant", "epoch"]


class StepContext(NamedTuple):
    """Input that is common to the filter terms of all layers in one training step."""

    class_N: Tensor
    """Category of each local image, -1 for none."""
    epoch: int
    batch_size: int
    """Size of the global batch."""
    runtime: Workers


class TermValue(NamedTuple):
    loss: Tensor
    """Loss to differentiate: its gradient is that of the global loss with respect to the local images."""
    filter_loss: Tensor | None
    """Filter loss of the global batch, nats, summed over filters; None for the released form, which has none."""


class FilterTerm(ABC):
    """The filter loss of a layer."""

    weight: float
    """lambda before its schedule."""
    has_value: ClassVar[bool]
    """False for a form that defines only a gradient."""
    average_name: ClassVar[str]
    """Key of `average_CL` in a checkpoint."""
    average_CL: Tensor | None = None
    """Moving average over batches of the activation of each filter in the images of each category."""

    @abstractmethod
    def __call__(self, maps_NCHW: Tensor, masked: MaskOutput | None, step: StepContext) -> TermValue:
        """maps_NCHW: after ReLU, before the mask, float32. masked: output of the mask, if the layer has one."""

    @abstractmethod
    def set_templates(self, unit_Pnn: Tensor, bank_Tnn: Tensor) -> None:
        """Replace the templates by others: the positive ones divided by tau, and all of them."""

    @abstractmethod
    def after_backward(self, runtime: Workers) -> None:
        """Called after the backward pass, before the step of the optimizer."""

    def state(self) -> dict[str, Tensor]:
        """Return what a checkpoint has to hold."""
        return {} if self.average_CL is None else {self.average_name: self.average_CL}

    def restore(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Load the result of `state`."""
        if self.average_name in state:
            self.average_CL = state[self.average_name].to(device)


@dataclass(eq=False)
class InformationTerm(FilterTerm):
    """The paper's filter loss, in a form with any of its gradients."""

    bank_Tnn: Tensor
    """Templates, the negative one last."""
    log_prior_T: Tensor
    weight: float
    schedule: Schedule
    form: Form = "exact"
    learned: LearnedBetaMask | None = None
    """If given, each filter has its own positive templates with a learned beta, and only the height of `bank_Tnn` is
    used."""
    categories: int = 1
    """Number L. With several, the form `single` assigns each filter the category whose images activate it most, by a
    moving average over batches."""
    has_value = True
    average_name = "sums_CL"
    _log_beta_C: Tensor | None = field(default=None, init=False)

    def __call__(self, maps_NCHW: Tensor, masked: MaskOutput | None, step: StepContext) -> TermValue:
        gather = step.runtime.gather
        lambda_C = filter_weight(maps_NCHW, self.weight, step.epoch, self.schedule, gather=gather)
        loss_C = self.per_filter(maps_NCHW, self._bank(), step)
        return TermValue((lambda_C * loss_C).sum(), loss_C.detach().sum())

    def per_filter(self, maps_NCHW: Tensor, bank_Tnn: Tensor, step: StepContext) -> Tensor:
        """Return the filter loss of each filter over the global batch, nats, [C]: see `core.filter_loss.filter_loss`.

        Updates the moving average.
        """
        return filter_loss(
            maps_NCHW,
            bank_Tnn,
            self.log_prior_T,
            form=self.form,
            positive_NC=self._positive(maps_NCHW, step) if self.form == "single" else None,
            gather=step.runtime.gather,
        )

    def set_templates(self, unit_Pnn: Tensor, bank_Tnn: Tensor) -> None:
        self.bank_Tnn.copy_(bank_Tnn)

    def _bank(self) -> Tensor:
        if self.learned is None:
            return self.bank_Tnn
        self._log_beta_C = self.learned.log_beta_C.detach().clone().requires_grad_()
        return self.learned.bank(self._log_beta_C, self.bank_Tnn[-1:])

    def _positive(self, maps_NCHW: Tensor, step: StepContext) -> Tensor:
        """Whether each image is of the filter's category, [N, C] or [N, 1] bool."""
        if self.categories == 1:
            return (step.class_N >= 0)[:, None]
        gather = step.runtime.gather
        sums_BC = gather(maps_NCHW.detach().sum((2, 3))).flatten(0, 1)
        sums_CL = mean_sums(sums_BC, gather(step.class_N).flatten(), self.categories)
        if self.average_CL is not None:
            averaged_CL = torch.where(self.average_CL.isnan(), sums_CL, 0.9 * self.average_CL + 0.1 * sums_CL)
            sums_CL = torch.where(sums_CL.isnan(), self.average_CL, averaged_CL)
        self.average_CL = sums_CL
        return step.class_N[:, None] == sums_CL.nan_to_num(nan=-math.inf).argmax(1)

    def after_backward(self, runtime: Workers) -> None:
        if self.learned is not None and self._log_beta_C is not None and self._log_beta_C.grad is not None:
            self.learned.log_beta_C.grad = runtime.gather(self._log_beta_C.grad).mean(0)
            self._log_beta_C = None


@dataclass(eq=False)
class ReleasedTerm(FilterTerm):
    """The gradient of the authors' released code, which has no loss value."""

    mask: CentroidMask | ReleasedMask
    """The layer's mask, or its own where the layer has none at the centroid."""
    density_L: Tensor
    """Share of all items that are of each category."""
    weight: float
    """`mag` in the released code, 0.1."""
    schedule: Literal["constant", "epoch"]
    learns: bool
    """Whether the widths of a `ReleasedMask` are learned."""
    has_value = False
    average_name = "magnitude_CL"
    _width_grad_C: Tensor | None = field(default=None, init=False)

    def __call__(self, maps_NCHW: Tensor, masked: MaskOutput | None, step: StepContext) -> TermValue:
        added_NCHW = self.added_gradient(maps_NCHW, masked, step)
        return TermValue((maps_NCHW * added_NCHW).sum() / step.batch_size, None)

    def added_gradient(self, maps_NCHW: Tensor, masked: MaskOutput | None, step: StepContext) -> Tensor:
        """Return what is added to the gradient of the summed loss at the maps, [N, C, n, n].

        Updates the moving average, and computes the gradient of learned widths for `after_backward`.
        """
        gather, N = step.runtime.gather, len(maps_NCHW)
        if masked is not None and masked.mask_NCHW is not None and masked.mu is not None:
            mu, mask_NCHW = masked.mu, masked.mask_NCHW
        else:
            mu = centroids(maps_NCHW.detach())
            mask_NCHW = self.mask.mask(mu)
        across = mu
        if step.runtime.world_size > 1:  # the released code pairs image b with the mask of image B - 1 - b
            other = step.runtime.world_size - 1 - step.runtime.rank
            across = Centroids(*(gather(part)[other] for part in mu))
        partner_NCHW = mask_NCHW if across is mu else self.mask.mask(across)
        strength = strengths(maps_NCHW, mask_NCHW, partner_NCHW, gather=gather)
        class_B = gather(step.class_N).flatten()
        group = groups(class_B, maps_NCHW.shape[1], self.average_CL, self.density_L)
        weight = self.weight / step.epoch if self.schedule == "epoch" else self.weight
        added_NCHW = released_gradient(mask_NCHW, strength, group, weight, first=step.runtime.rank * N)
        if self.learns:
            assert isinstance(self.mask, ReleasedMask)
            sigma_BC = gather(mu.sigma_NC).flatten(0, 1)
            self._width_grad_C = width_gradient(self.mask.width_C, sigma_BC, strength, group) / step.batch_size
        if len(self.density_L) > 1:
            peak_BC = gather(maps_NCHW.detach().amax((2, 3))).flatten(0, 1)
            self.average_CL = updated_magnitude(self.average_CL, peak_BC, class_B, len(self.density_L))
        return added_NCHW

    def set_templates(self, unit_Pnn: Tensor, bank_Tnn: Tensor) -> None:
        assert isinstance(self.mask, CentroidMask)
        self.mask.unit_Pnn.copy_(unit_Pnn)

    def after_backward(self, runtime: Workers) -> None:
        if self._width_grad_C is not None:
            assert isinstance(self.mask, ReleasedMask)
            self.mask.width_C.grad, self._width_grad_C = self._width_grad_C, None
