"""Distances between peaks: of two filters in one image, and of one filter over its images.

Symbols: N images, C filters, P cells; positions are (row, col) in pixels.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ipcnn_ray.core.metrics.filter_metric import FilterMetric, check_shape

CHUNK = 1 << 22
"""Maximum number of distances that are held at once."""


class PeakDistance(FilterMetric):
    """Mean distance from a filter's peak to the peaks of the other filters in the same image.

    0: all filters fire at the same place. A layer of one filter cannot be measured.

    Source: none; it is the distinctness that the diversity loss of Zheng et al., "Learning Multi-Attention
    Convolutional Neural Network for Fine-Grained Image Recognition", ICCV 2017, asks for, in units of the image.
    """

    name = "peak_distance"
    unit = "share of the image's side"
    better = "higher"
    description = "mean distance between the peaks of two filters in one image; 0: all fire at one place"
    images = "objects"

    def compute(self, peaks_NC2: Tensor) -> Tensor:
        field = self.layer.field
        cell_NC2 = ((peaks_NC2 - field.first_center) / field.stride).round().long()
        return mean_peak_distance(cell_NC2, self.layer.map_side) * field.stride / self.layer.image_size


class PeakSpread(FilterMetric):
    """Root mean square distance of a filter's peak from its mean position over its strongest images.

    0: the peak never moves. Over the `eval.top_images` images with the strongest activation (ties: the earlier image).
    Neither a large nor a small value is a merit by itself: a filter that follows a landmark spreads as the landmark
    does, and a filter with random peaks spreads more.
    """

    name = "peak_spread"
    unit = "share of the image's side"
    better = "higher"
    description = "RMS distance of the peak from its mean over the strongest images; 0: it never moves"

    def compute(self, peaks_NC2: Tensor, activation_NC: Tensor) -> Tensor:
        N, C = activation_NC.shape
        check_shape("peaks_NC2", peaks_NC2, (N, C, 2))
        order_CN = activation_NC.T.contiguous().argsort(dim=1, descending=True, stable=True)[:, : self.layer.top_images]
        peaks_CV2 = peaks_NC2.double().transpose(0, 1).gather(1, order_CN[:, :, None].expand(-1, -1, 2))
        from_mean_CV2 = peaks_CV2 - peaks_CV2.mean(1, keepdim=True)
        return from_mean_CV2.square().sum(2).mean(1).sqrt() / self.layer.image_size


def mean_peak_distance(cell_NC2: Tensor, n: int) -> Tensor:
    """Mean over images and other filters of the distance between two peaks, [C] float64, in cells; NaN for C = 1.

    cell_NC2: (row, col) of each peak, of n x n cells. With more filters than cells the filters are counted by cell,
    and the counts multiplied with the table of distances of all cells: O(N P^2) in place of O(N C^2).
    """
    N, C, P = *cell_NC2.shape[:2], n * n
    if C < 2:
        return torch.full((C,), torch.nan).double()
    total_C = torch.zeros(C, dtype=torch.float64)
    if C <= P:
        for part_MC2 in torch.split(cell_NC2.double(), max(1, CHUNK // C**2)):
            total_C += torch.cdist(part_MC2, part_MC2, compute_mode="donot_use_mm_for_euclid_dist").sum((0, 2))
    else:
        at_n = torch.arange(n, dtype=torch.float64)
        place_P2 = torch.cartesian_prod(at_n, at_n)
        distance_PP = torch.cdist(place_P2, place_P2, compute_mode="donot_use_mm_for_euclid_dist")
        for part_MC2 in torch.split(cell_NC2, max(1, CHUNK // P)):
            index_MC = part_MC2[:, :, 0] * n + part_MC2[:, :, 1]
            count_MP = torch.zeros(len(index_MC), P, dtype=torch.float64)
            count_MP.scatter_add_(1, index_MC, torch.ones_like(index_MC, dtype=torch.float64))
            total_C += (count_MP @ distance_PP).gather(1, index_MC).sum(0)
    return total_C / (N * (C - 1))
