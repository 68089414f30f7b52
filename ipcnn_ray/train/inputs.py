"""What enters the trained part of a network: normalised crops, or the outputs of its frozen layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from ipcnn_ray.data.batches import Batch, Read, batches, crops_reader, to_input
from ipcnn_ray.data.split import Items
from ipcnn_ray.data.store import CropStore
from ipcnn_ray.models.net import InterpretableNet

Batches = closing  # a generator whose reading thread ends with the block, whatever happens in it


class Inputs:
    """Batches of a store on the device, ready for `net(rows, from_features=True)`.

    Frozen layers run here, in float32 whatever the precision of training, so that reading their outputs from a
    cache gives the same numbers.
    """

    def __init__(self, store: CropStore, net: InterpretableNet, scale: float, device: torch.device) -> None:
        self.store = store
        self.net = net
        self.device = device
        self.scale = scale
        self.mean_3SS = torch.from_numpy(store.mean_3SS).to(device)
        self._crops = crops_reader(store.images_N3SS)
        self._features: Read | None = None
