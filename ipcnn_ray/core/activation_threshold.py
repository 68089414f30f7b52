"""The activation threshold T_f of network dissection: the value that a filter's strongest cells are above.

Take `top_values` of one batch after the other with M = `cells_above` + 1; the threshold is the last column.
Source: Bau et al., Network Dissection, CVPR 2017; Zhang et al., CVPR 2018, section 5.2.1.
"""

from __future__ import annotations

import torch
from torch import Tensor

TOP_SHARE = 0.005


def cells_above(images: int, n: int) -> int:
    """Number of cells of a filter's n x n maps that may be above T_f: 0.5 % of those of all images, rounded down."""
    return int(TOP_SHARE * images * n * n + 1e-9)


def top_values(x_NCHW: Tensor, known_CM: Tensor) -> Tensor:
    """The M largest values of `known_CM` and of the cells of `x_NCHW`, largest first, as [C, M]; start from -inf."""
    return torch.cat([known_CM, x_NCHW.transpose(0, 1).flatten(1)], 1).topk(known_CM.shape[1], dim=1).values
