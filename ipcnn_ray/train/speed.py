"""What `compute.speed` of a spec chooses: the kernels of cuDNN, and how the numbers of a network lie in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

import torch

from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import ExperimentSpec


def kernels(spec: ExperimentSpec) -> AbstractContextManager[None]:
    """Return a context in which convolutions run on a GPU as `compute.speed` says. Without effect on a CPU.

    `exact`: deterministic kernels, float32 without TF32. `fast`: the fastest kernel for each shape, float32 by TF32.
    Matrix products have no TF32 in either: those of the filter loss need float32, and the others are a small part of a
    step, in bfloat16 wherever `train.precision` says so.
    """
    fast = spec.compute.speed == "fast"
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=fast, deterministic=not fast, allow_tf32=fast)
    return cast("AbstractContextManager[None]", flags)


def laid_out(net: InterpretableNet, spec: ExperimentSpec) -> InterpretableNet:
    """Return the network, with `compute.speed: fast` in the memory format channels_last, which its maps then have."""
    if spec.compute.speed == "fast":
        net.to(memory_format=torch.channels_last)
    return net
