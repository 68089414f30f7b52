"""Pretrained layers into a network, all or the listed ones, and a report that says which. Nothing is ever unpickled."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.models.weight_files import SUFFIXES, WeightFile, read_weights
from ipcnn_ray.spec.model import Weights, channels_of, pixels_of
from ipcnn_ray.spec.networks import Conv, Network, Pool
from ipcnn_ray.utils.files import sha256_of

STD = (0.229, 0.224, 0.225)
"""By which torchvision divides its inputs of 0 to 1, red, green, blue."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    """What came from the file."""

    loaded: tuple[str, ...]
    """Layers that hold the file's weights, lowest first."""
    random: tuple[str, ...]
    """Layers of the body that keep their random weights, lowest first."""
    digest: str
    """SHA-256 of the file."""
    original: tuple[str, ...]
    """Layers of the original network that have weights, without the appended one."""
    text: str = ""
    """What was and was not loaded, and what was made of the preprocessing, in a few lines."""

    @property
    def partial(self) -> bool:
        """Whether some layer of the original network was not loaded."""
        return not set(self.original) <= set(self.loaded)


def weights_tags(report: LoadReport | None) -> dict[str, str]:
    """Return the tags of a tracked run about its pretrained weights; None: it has none."""
    return {
        "model.weights": ", ".join(report.loaded) if report else "none",
        "model.weights_report": report.text if report else "",
        "model.weights_digest": report.digest if report else "",
        "model.partial_weights": str(report is not None and report.partial).lower(),
    }


def load_weights(net: InterpretableNet, network: Network, weights: Weights, folder: Path | None) -> LoadReport:
    """Copies the listed layers, weights, biases and statistics, from a file into `net`.

    network: the row that `net` was built from. folder: where the file lies (IPCNN_WEIGHTS).

    Networks see RGB, (pixel in 0..255 - mean) * input_scale. What the file's first layer saw is folded into its
    weights: channels of BGR are turned round, and each input channel is scaled, for torchvision by
    1 / (255 * std * input_scale). The layer then computes of an image less a mean what it computed of that image less
    that mean in its own preprocessing, padding included, since both pad with the mean.

    Errors: DataError with every layer that is missing, has another shape or holds no finite numbers, and for a file
    that contradicts the stated channel order; then no parameter was changed.
    Deviations: the mean is that of the training split's images (as in the released code), not the file's.
    """
    path = _locate(weights, folder)
    original = tuple(name for name in net.convs if name != network.appended.name)
    layers = weights.layers or original
    schemes = _schemes(net, network, path.suffix)
    keys = [(layer, key) for layer in net.convs for key in _tensors(net, layer)]
    file = read_weights(path, {scheme(*key) for scheme in schemes for key in keys})
    listed = [(layer, key) for layer in layers if layer in net.convs for key in _tensors(net, layer)]
    name_of = max(schemes, key=lambda scheme: sum(scheme(*key) in file.names for key in listed))
    issues = _issues(net, layers, path, file, name_of) + _contradictions(weights, path, file)
    if issues:
        raise DataError(issues)
    first = _first(net)
    with torch.no_grad():
        for layer, key in listed:
            array = file.arrays[name_of(layer, key)]
            if (layer, key) == first:
                array = _folded(array.float(), weights, network)
            _tensors(net, layer)[key].copy_(array.reshape(_tensors(net, layer)[key].shape))
    loaded = tuple(name for name in net.convs if name in layers)
    random = tuple(name for name in net.convs if name not in layers)
    used = {name_of(*key) for key in listed}
    text = _text(weights, network, loaded, random, [name for name in file.names if name not in used], file)
    log.info("%s", text)
    return LoadReport(loaded, random, sha256_of(path), original, text)


def _locate(weights: Weights, folder: Path | None) -> Path:
    if folder is None:
        raise DataError(
            [
                Issue(
                    "IPCNN_WEIGHTS",
                    f"model.weights.file = {weights.file!r}, and IPCNN_WEIGHTS is not set",
                    "Set IPCNN_WEIGHTS to the folder that holds the file, on every machine that trains.",
                )
            ]
        )
    path = folder / weights.file
    if not path.is_file():
        here = sorted(p.name for p in folder.glob("*") if p.suffix in SUFFIXES) if folder.is_dir() else []
        raise DataError(
            [
                Issue(
                    str(path),
                    f"model.weights.file = {weights.file!r}: no such file",
                    f"IPCNN_WEIGHTS = {folder} holds {', '.join(here) or 'no .npz or .safetensors file'}.",
                )
            ]
        )
    return path


def _tensors(net: InterpretableNet, layer: str) -> dict[str, Tensor]:
    """What a layer has to be loaded: parameters and statistics by their names in it."""
    state = net.layer(layer).state_dict(keep_vars=True)
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _first(net: InterpretableNet) -> tuple[str, str]:
    """Layer and name in it of the weight that the image meets."""
    layer = net.convs[0]
    inside = next(name for name, module in net.layer(layer).named_modules() if isinstance(module, nn.Conv2d))
    return layer, f"{inside}.weight" if inside else "weight"


Scheme = Callable[[str, str], str]
"""From a layer and the name of a tensor in it to the name of an array in a file. One file follows one scheme."""


def _schemes(net: InterpretableNet, network: Network, suffix: str) -> list[Scheme]:
    """The ways in which files name arrays, the likeliest for a file of this kind first."""

    def arrays(layer: str, key: str) -> str:
        inside, _, kind = key.rpartition(".")
        short = {"weight": "w", "bias": "b"}.get(kind, kind)
        return f"{layer}.{inside}_{short}" if inside else f"{layer}_{short}"

    def state(layer: str, key: str) -> str:
        return f"{layer}.{key}"

    features = _torchvision_features(network)
    fires = {name: f"fire{i}" for i, name in enumerate((n for n in net.names if net.kind(n) == "Fire"), start=2)}

    def torchvision(layer: str, key: str) -> str:
        return f"{features.get(layer, layer)}.{key}"

    def caffe(layer: str, key: str) -> str:
        inside = key.replace("squeeze.", "squeeze1x1.")
        return arrays("conv1" if layer == net.convs[0] else fires.get(layer, layer), inside)

    found: list[Scheme] = [torchvision, state, arrays] if suffix in (".pth", ".pt") else [arrays, state, torchvision]
    return [*found, caffe] if fires else found


def _torchvision_features(network: Network) -> dict[str, str]:
    """Names that torchvision gives the convolutions of a plain network: `features.` and their place, ReLUs counted."""
    place, found = 0, {}
    for layer in network.layers:
        if isinstance(layer, Conv):
            found[layer.name] = f"features.{place}"
        place += {Conv: 2, Pool: 1}.get(type(layer), 0)
    return found


def _folded(weight: Tensor, weights: Weights, network: Network) -> Tensor:
    """The first layer's weights for images as the network sees them."""
    if (weights.channels or channels_of(weights.file)) == "bgr":
        weight = weight.flip(1)
    if (weights.pixels or pixels_of(weights.file)) == "torchvision":
        return weight / (255 * network.input_scale * torch.tensor(STD)).reshape(1, 3, 1, 1)
    # `compact` is known by its own files only, which were trained on what it sees.
    return weight / network.input_scale if network.trunk else weight


def _issues(
    net: InterpretableNet, layers: tuple[str, ...], path: Path, file: WeightFile, name_of: Scheme
) -> list[Issue]:
    usable = [la for la in net.convs if all(name_of(la, key) in file.names for key in _tensors(net, la))]
    issues: list[Issue] = []

    def problem(what: str, advice: str) -> None:
        issues.append(Issue(str(path), what, advice))

    for layer in layers:
        if layer not in net.convs:
            close = difflib.get_close_matches(layer, net.convs, n=1)
            advice = f"It has {', '.join(net.convs)}." + (f" Did you mean {close[0]!r}?" if close else "")
            problem(f"model.weights.layers has {layer!r}: the network has no such convolution", advice)
            continue
        for key, wanted in _tensors(net, layer).items():
            name = name_of(layer, key)
            array = file.arrays.get(name)
            if array is None:
                problem(
                    f"model.weights.layers has {layer!r}: the file has no array {name}",
                    f"Complete in the file: {', '.join(usable) or 'no layer of this network'}. Leave {layer!r} out of "
                    "model.weights.layers (the run is then tagged as using partial weights), or name another file.",
                )
            elif array.shape != wanted.shape:
                axes = " (out, in / groups, rows, columns)" if wanted.ndim == 4 else ""
                problem(
                    f"{name} has shape {tuple(array.shape)}",
                    f"The network's is {tuple(wanted.shape)}{axes}: another network's file?",
                )
            elif not array.is_floating_point() or not torch.isfinite(array).all():
                kind = str(array.dtype).removeprefix("torch.")
                problem(f"{name} ({kind}) is not all finite floating-point numbers", "Write it as finite float32.")
    return issues


def _contradictions(weights: Weights, path: Path, file: WeightFile) -> list[Issue]:
    """A stated channel order that the file itself denies."""
    stated = weights.channels or channels_of(weights.file)
    if file.order in (None, stated):
        return []
    advice = f"Say channels: {file.order}, or name the file that was meant."
    return [Issue(str(path), f"model.weights.channels = {stated!r}, but {file.because}", advice)]


def _text(
    weights: Weights,
    network: Network,
    loaded: tuple[str, ...],
    random: tuple[str, ...],
    unused: list[str],
    file: WeightFile,
) -> str:
    order, pixels = weights.channels or channels_of(weights.file), weights.pixels or pixels_of(weights.file)
    scaling = "0..1 less a mean, over torchvision's standard deviations" if pixels == "torchvision" else "0..255"
    scaled = pixels == "torchvision" or (network.trunk is not None and network.input_scale != 1)
    changes = [*(["channels turned round"] if order == "bgr" else []), *(["scaled"] if scaled else [])]
    folded = " and ".join(changes) or "as they are"
    checked = f" (confirmed: {file.because})" if file.order else " (as stated; the file does not say)"
    shown = [*unused[:8], *([f"{len(unused) - 8} more"] if len(unused) > 8 else [])]
    lines = [
        f"loaded from {weights.file}: {', '.join(loaded)}",
        f"not loaded, random at first: {', '.join(random) or 'nothing'}, and the head",
        f"in the file and not used: {', '.join(shown) or 'nothing'}",
        f"the file's first layer saw {order.upper()}{checked}, {scaling}; its weights: {folded}; "
        "images are centred on the training split's own mean",
    ]
    return "\n".join(lines)
