"""What enters the trained part of a network: normalised crops, or the outputs of its frozen layers."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor

from ipcnn_ray.data.batches import Batch, Read, batches, crops_reader, to_input
from ipcnn_ray.data.prepare import Progress
from ipcnn_ray.data.split import Items
from ipcnn_ray.data.store import CropStore
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.train.frozen_cache import feature_key, features_reader


class Inputs:
    """Batches of a store, and what of them enters `net(rows, from_features=True)`.

    Frozen layers run here, in float32 whatever the precision of training, so that reading their outputs from disk
    gives the same numbers.
    """

    def __init__(self, store: CropStore, net: InterpretableNet, scale: float, device: torch.device) -> None:
        self.store = store
        self.net = net
        self.scale = scale
        self.device = device
        self.mean_3SS = torch.from_numpy(store.mean_3SS).to(device)
        self._crops = crops_reader(store.images_N3SS)
        self._features: Read | None = None

    def cache(self, folder: Path, items: Items, progress: Progress | None = None) -> None:
        """From now on read the frozen layers' outputs for `items` from `folder`, where they are put if absent."""

        def compute(part: Items) -> Tensor:
            return self._frozen(self._crops(part), torch.from_numpy(part[:, 1] == 1))

        key = feature_key(self.store.digest, self.net, self.scale, self.device.type, items)
        self._features = features_reader(folder, key, items, self.net.feature_shape(), compute, progress)

    def loader(self, parts: list[Items]) -> closing[Generator[Batch, None, None]]:
        """Batches of these items, for a `with` block: their reading thread ends with it, whatever happens there."""
        generator = batches(parts, self.store.labels_N, self._features or self._crops)
        return closing(cast("Generator[Batch, None, None]", generator))

    def rows(self, batch: Batch) -> Tensor:
        """What of a batch enters the first layer that is trained, on the device."""
        if self._features is not None:
            return batch.rows.to(self.device)
        return self._frozen(batch.rows, batch.mirrored)

    def images(self, parts: list[Items]) -> closing[Generator[Batch, None, None]]:
        """As `loader`, but always the crops themselves, for `changed_rows`."""
        generator = batches(parts, self.store.labels_N, self._crops)
        return closing(cast("Generator[Batch, None, None]", generator))

    def changed_rows(self, batch: Batch, added_b3SS: Tensor) -> Tensor:
        """As `rows`, of a batch of `images` with something added to their pixels (0..255)."""
        images = to_input(batch.rows, batch.mirrored, self.mean_3SS, self.scale, self.device)
        return self.net.frozen_features(images + added_b3SS.to(self.device) * self.scale)

    def _frozen(self, crops_u8: Tensor, mirrored: Tensor) -> Tensor:
        return self.net.frozen_features(to_input(crops_u8, mirrored, self.mean_3SS, self.scale, self.device))


def distinct(*items: Items) -> Items:
    """Each (crop, mirrored) pair once, in order."""
    return np.unique(np.concatenate(items), axis=0)
