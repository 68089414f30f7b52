"""Seeds derived from names and numbers: the same in every process and on every machine."""

from __future__ import annotations

import hashlib

import torch


def mix(*parts: int | str) -> int:
    """Return a 56-bit seed from numbers and names."""
    text = "/".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def generator(*parts: int | str) -> torch.Generator:
    """Return a CPU generator with the seed `mix(*parts)`."""
    return torch.Generator().manual_seed(mix(*parts))
