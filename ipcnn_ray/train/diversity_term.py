"""The diversity loss of the interpretable layers, as a term of the loss of a training step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ipcnn_ray.core.diversity import largest_overlap, overlap
from ipcnn_ray.spec.training import Loss
from ipcnn_ray.train.runtime import Runtime


@dataclass(frozen=True)
class DiversityTerm:
    weight: float
    form: Literal["overlap", "largest"]
    margin: float
    power: float = 1.0

    def __call__(self, maps: Mapping[str, Tensor], label_N: Tensor, runtime: Runtime) -> tuple[Tensor, Tensor]:
        """Return (loss to differentiate, diversity loss of the global batch): the mean over images that show an object,
        0 if none does, summed over layers.

        The gradient of the first, with the weight, is that of the global loss with respect to the local images.

        Args:
            maps: Of each layer after ReLU, before the mask, [N, C, n, n].
            label_N: Categories of the local images, -1 for none.
        """
        shown_N = label_N >= 0
        layers = [self._sum(x_NCHW, shown_N, select=not x_NCHW.is_cuda) for x_NCHW in maps.values()]
        local = torch.stack(layers).sum()
        sums_W, shown_W = runtime.gather(torch.stack([local.detach(), shown_N.sum().to(local.dtype)])).unbind(1)
        images = shown_W.sum().clamp(min=1)
        return self.weight * local / images, sums_W.sum() / images

    def _sum(self, x_NCHW: Tensor, shown_N: Tensor, *, select: bool) -> Tensor:
        """The sum over images that show an object. select: leave out the others, rather than weigh them with 0; for
        their number, the CPU would have to wait for a GPU."""
        if select:
            return self._of_images(x_NCHW[shown_N].float()).sum()
        return torch.where(shown_N, self._of_images(x_NCHW.float()), 0).sum()

    def _of_images(self, x_NCHW: Tensor) -> Tensor:
        if self.form == "overlap":
            return overlap(x_NCHW, power=self.power)
        return largest_overlap(x_NCHW, self.margin, power=self.power)


def diversity_term(loss: Loss) -> DiversityTerm | None:
    """Return the diversity term of a spec; None without one."""
    section = loss.diversity
    return None if section is None else DiversityTerm(section.weight, section.form, section.margin, section.power)
