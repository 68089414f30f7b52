"""The filter loss of one interpretable layer, as a term of the loss of a training step.

N images of this worker, C filters, T templates, L categories.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
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
from ipcnn_ray.core.templates import log_prior
from ipcnn_ray.models.build import template_banks, unit_template
from ipcnn_ray.models.layers import CentroidMask, LearnedBetaMask, MaskOutput, PeakMask, ReleasedMask
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.template import Template
from ipcnn_ray.train.runtime import Runtime

Schedule = Literal["paper", "constant", "epoch"]


class StepContext(NamedTuple):
    """Input that is common to the filter terms of all layers in one training step."""

    class_N: Tensor
    """Category of each local image, -1 for none."""
    epoch: int
    batch_size: int
    """Size of the global batch."""
    runtime: Runtime


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
    def after_backward(self, runtime: Runtime) -> None:
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
        loss_C = filter_loss(
            maps_NCHW,
            self._bank(),
            self.log_prior_T,
            form=self.form,
            positive_NC=self._positive(maps_NCHW, step) if self.form == "single" else None,
            gather=gather,
        )
        return TermValue((lambda_C * loss_C).sum(), loss_C.detach().sum())

    def set_templates(self, unit_Pnn: Tensor, bank_Tnn: Tensor) -> None:
        self.bank_Tnn.copy_(bank_Tnn)

    def _bank(self) -> Tensor:
        if self.learned is None:
            return self.bank_Tnn
        self._log_beta_C = self.learned.log_beta_C.detach().clone().requires_grad_()
        negative_1nn = self.bank_Tnn[-1:]
        units_CPnn = self.learned.units(self._log_beta_C)
        return torch.cat([-negative_1nn[0, 0, 0] * units_CPnn, negative_1nn.expand(len(units_CPnn), 1, -1, -1)], 1)

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

    def after_backward(self, runtime: Runtime) -> None:
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
        return TermValue((maps_NCHW * added_NCHW).sum() / step.batch_size, None)

    def set_templates(self, unit_Pnn: Tensor, bank_Tnn: Tensor) -> None:
        assert isinstance(self.mask, CentroidMask)
        self.mask.unit_Pnn.copy_(unit_Pnn)

    def after_backward(self, runtime: Runtime) -> None:
        if self._width_grad_C is not None:
            assert isinstance(self.mask, ReleasedMask)
            self.mask.width_C.grad, self._width_grad_C = self._width_grad_C, None


def filter_terms(
    spec: ExperimentSpec, template: Template, net: InterpretableNet, density_L: Tensor
) -> dict[str, FilterTerm]:
    """Build the filter term of every interpretable layer, by name; empty without a filter loss.

    `template` is concrete (a tailored one has been fitted), `net` on its device. `density_L` is the share of all items
    that are of each category.
    """
    loss = spec.loss.filter
    if loss is None:
        return {}
    device = next(net.parameters()).device
    terms: dict[str, FilterTerm] = {}
    for layer, bank_Tnn in template_banks(spec.model, template).items():
        mask = net.mask(layer)
        if loss.form == "released":
            assert loss.schedule != "paper"
            if not isinstance(mask, CentroidMask | ReleasedMask):
                unit_Pnn = unit_template(spec.model, template, layer)
                assert unit_Pnn is not None
                mask = CentroidMask(unit_Pnn.to(device))
            terms[layer] = ReleasedTerm(mask, density_L.to(device), loss.weight, loss.schedule, loss.learn_beta)
        else:
            learned = mask if isinstance(mask, LearnedBetaMask) else None
            bank_Tnn, log_prior_T = bank_Tnn.to(device), log_prior(bank_Tnn.shape[-1]).to(device)
            terms[layer] = InformationTerm(
                bank_Tnn, log_prior_T, loss.weight, loss.schedule, loss.form, learned, len(density_L)
            )
    return terms


def set_widening(
    spec: ExperimentSpec, template: Template, net: InterpretableNet, terms: Mapping[str, FilterTerm], widening: float
) -> None:
    """Widen the template of every mask and filter term by this factor; 1 is the template's own width."""
    for layer, bank_Tnn in template_banks(spec.model, template, widening).items():
        unit_Pnn, mask = unit_template(spec.model, template, layer, widening), net.mask(layer)
        assert unit_Pnn is not None
        if isinstance(mask, PeakMask | CentroidMask):
            mask.unit_Pnn.copy_(unit_Pnn)
        if layer in terms:
            terms[layer].set_templates(unit_Pnn, bank_Tnn)
