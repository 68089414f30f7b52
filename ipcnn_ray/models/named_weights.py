"""Pretrained weights by the names that torchvision and timm give them: address, hash and preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.models.timm_networks import address, timm_weights
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import TIMM
from ipcnn_ray.utils.files import published_digits
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean

Colour = tuple[float, float, float]
"""Red, green, blue."""
REMAPPED = ("googlenet", "inception_v3")
"""Networks that torchvision converts its normalised images for, to 0..1 minus 0.5, over 0.5, in their first lines."""


class UnknownWeightsError(IpcnnError):
    """There are no weights of this name; the message follows the name in a sentence."""


@dataclass(frozen=True)
class NamedWeights:
    """A published file of weights."""

    label: str
    """Its name, with its publisher's and the network's."""
    url: str
    file: str
    """Name of the file in the folder of weights."""
    sha256: str
    """The first digits of its SHA-256, which its published name carries; empty if it does not."""
    mean: Colour
    """What the network was trained to see is (pixel - mean) / std, of pixels in 0..255."""
    std: Colour

    def path(self, paths: Paths) -> Path:
        """Return where the file is on this machine: in IPCNN_WEIGHTS, or in IPCNN_HOME/weights. If it is missing,
        return where a download of it goes."""
        own = paths.home / "weights" / self.file
        given = paths.weights / self.file if paths.weights else own
        if given.is_file() or own.is_file():
            return given if given.is_file() else own
        return own if paths.weights_url else given


def named_weights(model: Model) -> NamedWeights | None:
    """Return the weights that a spec names; None if it names a file, or no weights. Raises UnknownWeightsError, and
    UnknownNetworkError if timm or its network is not there.

    Imports torchvision or timm if it names some.
    """
    if model.weights is None or not model.weights.published:
        return None
    return (
        _of_timm(model.network, model.weights) if model.weights.timm else _of_torchvision(model.network, model.weights)
    )


def _of_torchvision(network: str, weights: Weights) -> NamedWeights:
    from torchvision.models import get_model_weights

    members = get_model_weights(network).__members__  # has DEFAULT, another name of one of the others
    member = _of_name(weights.torchvision, members, f"torchvision's weights of {network}")
    file, preset, half = member.url.rsplit("/", 1)[-1], member.transforms(), (0.5, 0.5, 0.5)
    mean, std = (half, half) if network in REMAPPED else (preset.mean, preset.std)
    label = f"torchvision's {member.name} of {network}"
    return NamedWeights(label, member.url, file, published_digits(file), _pixels(mean), _pixels(std))


def _of_timm(network: str, weights: Weights) -> NamedWeights:
    config = _of_name(weights.timm, timm_weights(network), f"timm's weights of {network.removeprefix(TIMM)}")
    label = f"timm's {config.tag or 'weights'} of {network.removeprefix(TIMM)}"
    return NamedWeights(label, *address(network, config), _pixels(config.mean), _pixels(config.std))


def _of_name(name: str | None, known: Mapping[str, Any], of: str) -> Any:
    if name is None or name not in known:
        advice = f"{of} are {', '.join(known) or 'not published'}.{did_you_mean(name, list(known))}".removesuffix(".")
        raise UnknownWeightsError(advice)
    return known[name]


def input_mean(model: Model) -> Colour | None:
    """Return the mean that the weights of a spec were trained with, red, green, blue, 0..255; None if they are a file,
    or it has none: images are then centred on the mean image of the training split."""
    named = named_weights(model)
    return named.mean if named else None


def _pixels(of_one: Colour) -> Colour:
    """Return shares of 1 in pixel values, 0..255."""
    red, green, blue = (255 * value for value in of_one)
    return red, green, blue
