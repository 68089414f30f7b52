"""The networks of timm, and the weights that it publishes for them. timm is an extra and is imported here only."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.networks import TIMM
from ipcnn_ray.utils.files import published_digits
from ipcnn_ray.utils.text import did_you_mean

HUB = "https://huggingface.co"
"""Address of Hugging Face's hub, unless HF_ENDPOINT names another one."""
HUB_FILE = "model.safetensors"


class UnknownNetworkError(IpcnnError):
    """timm, or the network in it, is not there; the message follows the network's name in a sentence."""


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        advice = f"needs timm, which cannot be imported ({error}): pip install ipcnn-ray[timm]"
        raise UnknownNetworkError(advice) from error
    return timm


def timm_network(network: str) -> nn.Module:
    """Return the network `timm/NAME` on the meta device, which takes no memory. Raises UnknownNetworkError."""
    timm, name = _timm(), network.removeprefix(TIMM)
    if not timm.is_model(name):
        raise UnknownNetworkError(f"is no network of timm {timm.__version__}.{did_you_mean(name, timm.list_models())}")
    with torch.device("meta"):
        built: nn.Module = timm.create_model(name)
    return built


def timm_weights(network: str) -> dict[str, Any]:
    """Return timm's configurations of the weights of `timm/NAME` by tag, those of DEFAULT under that name, too. Raises
    UnknownNetworkError."""
    timm, name = _timm(), network.removeprefix(TIMM)
    if not timm.is_model(name):
        timm_network(network)
    configs = timm.models.get_arch_pretrained_cfgs(name).items()
    tagged = {key.partition(".")[2] or "untagged": config for key, config in configs if config.hf_hub_id or config.url}
    default = timm.models.get_pretrained_cfg(name)
    return tagged | ({"DEFAULT": default} if default and (default.hf_hub_id or default.url) else {})


def address(network: str, config: Any) -> tuple[str, str, str]:
    """Return the address of a configuration's weights, the name of their file on this machine, and the first digits of
    its SHA-256, empty if they are not published (the hub's files are named alike, and without)."""
    if config.hf_hub_id:
        repository, _, revision = str(config.hf_hub_id).partition("@")
        file = config.hf_hub_filename or HUB_FILE
        hub = os.environ.get("HF_ENDPOINT") or HUB
        url = f"{hub}/{repository}/resolve/{revision or 'main'}/{file}"
        suffix = "safetensors" if file.endswith("safetensors") else "pth"
        tag = f".{config.tag}" if config.tag else ""
        return url, f"{network.removeprefix(TIMM)}{tag}.{suffix}", ""
    file = str(config.url).rsplit("/", 1)[-1]
    return str(config.url), file, published_digits(file)
