"""Dropout that does not know how many workers there are."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn


class SampleDropout(nn.Module):
    """Dropout whose mask for a training step is drawn for the whole global batch; a worker takes its own rows.

    p: share of units dropped; the others are divided by 1 - p. `name`: sets the layers of a network apart.
    The mask depends on (seed, epoch, step, name, row of the global batch) and on nothing else: neither on the
    world size nor on torch's global generators, so a resumed run draws what the uninterrupted one would have.

    Errors: RuntimeError when training goes on without `set_step`; ValueError when the rows do not fit the batch.
    Deviations: torch draws on the device of the activations, and CPUs and GPUs draw different masks from one seed.
    """

    def __init__(self, p: float, name: str) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"p = {p}: expected 0 <= p < 1")
        self.p = p
        self.name = name
        self._seed: int | None = None
        self._rows = (0, 0)

    def set_step(self, seed: int, epoch: int, step: int, first_row: int, rows_total: int) -> None:
        """Names the step that comes next, and this worker's first row in its global batch of `rows_total` images."""
        text = f"dropout {seed} {epoch} {step} {self.name}".encode()
        self._seed = int.from_bytes(hashlib.blake2b(text, digest_size=4).digest(), "big")
        self._rows = (first_row, rows_total)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self._seed is None:
            raise RuntimeError(f"dropout of {self.name}: call set_step before every training step")
        first, total = self._rows
        if not 0 <= first <= total - len(x):
            raise ValueError(f"rows {first} to {first + len(x)} are outside a global batch of {total} images")
        generator = torch.Generator(x.device).manual_seed(self._seed)
        drawn = torch.rand((total, *x.shape[1:]), generator=generator, device=x.device)
        keep = drawn[first : first + len(x)] >= self.p
        return x * keep / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
