"""Part interpretability P_f: how often the region of a filter's top activations covers one part.

Symbols: N images, C filters, K parts, n x n maps, S x S pixels; positions are (row, col) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, LayerContext, check_shape
from ipcnn_ray.core.receptive_field import DISC_DIAMETER, discs

IOU = 0.2
"""A region hits a part when their intersection over union is above this."""


class PartInterpretability(FilterMetric):
    """P_f = max over parts of the share of the images with the part in which the filter hits it.

    A filter that is zero everywhere has 0; no filter can be measured where no image has a part. diameter: of the round
    receptive field of a cell, as a share of the image's side.

    Threshold: T_f with p(x > T_f) = 0.005 over all cells of all images. On average 0.005 n^2 cells of an image are
    above it (1 for n = 14, 0.8 for n = 13), so a small n bounds P_f from above.

    Source: Zhang et al., CVPR 2018, section 5.2.1 (the text of arXiv 1710.00935, with its footnote on receptive
    fields), after Bau et al., Network Dissection, CVPR 2017. As there: maps after ReLU and mask, images of the
    category, a round receptive field for each cell above the threshold, their union, the same for plain and
    interpretable networks.
    Deviations: the paper does not say how large a round field is; here its diameter is a share of the image's side,
    72 of 224 pixels, about the size that Zhou et al., ICLR 2015, measured for units of AlexNet's last convolution.
    The paper takes testing images alone; here `eval.images` says which. Where there are no part masks, the box around
    the landmark (`part_boxes`) takes the place of the mask; a box is larger than what is drawn in it, so values are
    not those with masks. With several categories, T_f is taken over the object images of all of them.
    """

    name = "part_interpretability"
    unit = "share of images"
    better = "higher"
    best = 1.0
    description = (
        "how often the filter's strongest region covers its best part, IoU > 0.2 (P_f; Zhang et al., CVPR 2018)"
    )

    def __init__(self, layer: LayerContext, *, diameter: float = DISC_DIAMETER) -> None:
        super().__init__(layer)
        size = layer.image_size
        self._discs_PSS = discs(layer.field, layer.map_side, size, diameter * size).float()

    def update(self, masked_maps_NCHW: Tensor, threshold_C: Tensor, part_masks_NKSS: Tensor) -> Tensor:
        """Whether each filter hits each part, [N, C, K] bool."""
        self._discs_PSS = self._discs_PSS.to(masked_maps_NCHW.device)
        images = zip(masked_maps_NCHW, part_masks_NKSS, strict=True)
        return torch.stack([part_hits(x_CHW, threshold_C, self._discs_PSS, masks_KSS) for x_CHW, masks_KSS in images])

    def compute(self, state: Tensor, parts_shown_NK: Tensor) -> Tensor:
        N, C, K = state.shape
        check_shape("parts_shown_NK", parts_shown_NK, (N, K))
        hits_CK = (state & parts_shown_NK[:, None]).sum(0)
        shown_K = parts_shown_NK.sum(0)
        rate_CK = torch.where(shown_K > 0, hits_CK / shown_K.double(), -1.0)
        best_C = rate_CK.amax(1) if K else torch.full((C,), -1.0, dtype=torch.float64)
        return torch.where(best_C < 0, torch.nan, best_C)


def part_hits(x_CHW: Tensor, threshold_C: Tensor, discs_PSS: Tensor, masks_KSS: Tensor) -> Tensor:
    """Whether each filter's region in one image has an intersection over union above 0.2 with each part, [C, K] bool.

    x_CHW: maps after ReLU and mask. threshold_C: T_f. discs_PSS: of `discs`. masks_KSS: pixels of the parts, of any
    shape. The region is the union of the discs of the cells above the threshold.
    """
    C, n = x_CHW.shape[:2]
    size = discs_PSS.shape[-1]
    check_shape("discs_PSS", discs_PSS, (n * n, size, size))
    check_shape("masks_KSS", masks_KSS, (len(masks_KSS), size, size))
    above_CP = x_CHW.flatten(1) > threshold_C[:, None]
    hit_CK = torch.zeros(C, len(masks_KSS), dtype=torch.bool, device=x_CHW.device)
    live_C = above_CP.any(1)
    region_LX = (above_CP[live_C].float() @ discs_PSS.flatten(1).float() > 0).float()
    part_KX = masks_KSS.flatten(1).float()
    both_LK = region_LX @ part_KX.T
    either_LK = region_LX.sum(1, keepdim=True) + part_KX.sum(1) - both_LK
    hit_CK[live_C] = both_LK.double() > IOU * either_LK.double()
    return hit_CK
