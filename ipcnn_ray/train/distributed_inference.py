"""What a look at every item finds, spread over the workers and merged exactly."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ipcnn_ray.data.batches import Batch
from ipcnn_ray.data.split import Items
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.train.feature_cache import InputPipeline
from ipcnn_ray.train.runtime import Runtime

Look = Callable[[Batch, NDArray[np.int64]], dict[str, Tensor]]
"""Finds [b, ...] tensors in a batch; the second argument numbers its rows among the items. Numbers from the count of
items on are padding: what is found there is dropped after the merge."""


@torch.no_grad()
def item_rows(
    inputs: InputPipeline,
    items: Items,
    runtime: Runtime,
    look: Look,
    *,
    epoch: int,
    batch_size: int,
    crops: bool = False,
) -> dict[str, Tensor]:
    """What `look` finds of all items, in their order, as [I, ...] tensors on the CPU of every rank.

    The network of `inputs` is in evaluation mode while `look` is called. The items are dealt out to the workers in
    turn. batch_size: of one worker. crops: the batches hold the crops themselves, for `Inputs.changed_rows`.
    Raises TrainingError when something that was found is infinite or NaN.
    """
    count = len(items)
    numbers = np.arange(runtime.rank, count + -count % runtime.world_size, runtime.world_size)
    cuts = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    found: dict[str, list[Tensor]] = {}
    inputs.net.eval()
    try:
        with (inputs.images if crops else inputs.loader)([items[cut % count] for cut in cuts]) as loader:
            for batch, cut in zip(loader, cuts, strict=True):
                runtime.report_progress(f"evaluating epoch {epoch}", int(cut[0]), count, "images")
                for name, rows in look(batch, cut).items():
                    found.setdefault(name, []).append(rows)
    finally:
        inputs.net.train()
    merged = {
        name: runtime.gather(torch.cat(tensors)).transpose(0, 1).flatten(0, 1)[:count].cpu()
        for name, tensors in found.items()
    }
    if not all(bool(tensor.isfinite().all()) for tensor in merged.values()):
        raise TrainingError(
            f"the network's outputs are not finite after epoch {epoch}: lower train.learning_rate, "
            "or loss.filter.weight if there is a filter loss"
        )
    return merged
