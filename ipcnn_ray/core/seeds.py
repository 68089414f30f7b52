"""Seeds derived from what they are for, the same in every process, on every machine."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """A 56-bit seed from numbers and names."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def generator(*parts: int | str) -> torch.Generator:
    """A CPU generator seeded by `mix(*parts)`."""
    return torch.Generator().manual_seed(mix(*parts))
