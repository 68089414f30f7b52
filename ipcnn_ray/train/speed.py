"""What makes a step fast: bfloat16 (`train.precision`), and what `compute.speed` of a spec chooses, the kernels of
cuDNN and how the numbers of a network lie in memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import cast

import torch

from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.experiment import ExperimentSpec


def has_bfloat16(device: torch.device) -> bool:
    """Return whether a device computes in bfloat16 itself: GPUs by torch's word, processors with AVX512-BF16 or AMX.

    On other processors bfloat16 is emulated, which takes over ten times as long as float32.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


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
