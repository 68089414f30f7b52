"""Loading of pretrained layers from a file into a network, all or the listed ones, with a report.

Files are read by the name of an array. Only torch's own tensors are ever unpickled.
"""

from __future__ import annotations

import logging
import math
import pickle
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor, nn

from ipcnn_ray.errors import DataError, Issue
from ipcnn_ray.models.named_weights import NamedWeights, named_weights
from ipcnn_ray.models.net import InterpretableNet
from ipcnn_ray.spec.model import Model, Weights, channels_of, pixels_of
from ipcnn_ray.spec.networks import Conv, Network, Pool
from ipcnn_ray.utils.files import sha256_of
from ipcnn_ray.utils.matlab import MatFileError, as_list, read_variables
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import did_you_mean, shortened

STD = (0.229, 0.224, 0.225)
"""Standard deviations that torchvision divides its inputs of 0 to 1 by: red, green, blue."""
Order = Literal["rgb", "bgr"]
MOST_BYTES = 2 << 30
"""Size of the largest array that is read."""
SUFFIXES = (".npz", ".safetensors", ".mat", ".pth", ".pt")
IMAGENET_RGB = (122.7, 116.7, 104.0)
"""Mean of ImageNet's training images, red, green, blue, 0..255."""
MEAN_TOLERANCE = 9.0
"""Channel means within this distance of ImageNet's are taken for them; red and blue differ by twice as much."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadReport:
    loaded: tuple[str, ...]
    """Layers with weights from the file, lowest first."""
    random: tuple[str, ...]
    """Layers of the body with random initial weights, lowest first."""
    digest: str
    """SHA-256 of the file."""
    original: tuple[str, ...]
    """Layers of the original network that have weights, without the appended one."""
    text: str = ""
    """Layers that were and were not loaded, and how the preprocessing was converted, in a few lines."""

    @property
    def partial(self) -> bool:
        """Whether a layer of the original network was not loaded."""
        return not set(self.original) <= set(self.loaded)


def weights_tags(report: LoadReport | None) -> dict[str, str]:
    """Return the tags of a tracked run about its pretrained weights; None: it has none."""
    return {
        "model.weights": ", ".join(report.loaded) if report else "none",
        "model.weights_report": report.text if report else "",
        "model.weights_digest": report.digest if report else "",
        "model.partial_weights": str(report is not None and report.partial).lower(),
    }


def load_pretrained(net: InterpretableNet, model: Model, paths: Paths) -> LoadReport | None:
    """Copy the pretrained layers of a spec into its network, as `load_weights`; None if it has no weights."""
    if model.weights is None:
        return None
    named = named_weights(model)
    folder = named.path(paths).parent if named else paths.weights
    return load_weights(net, model.table, model.weights, folder, named)


def load_weights(
    net: InterpretableNet, network: Network, weights: Weights, folder: Path | None, named: NamedWeights | None = None
) -> LoadReport:
    """Copy the listed layers (weights, biases and statistics) from a file into `net`.

    Our networks take RGB, (pixel in 0..255 - mean) * input_scale. The preprocessing of the file's network is folded
    into the weights of its first layer: BGR channels are flipped, and each input channel is scaled, for torchvision by
    1 / (255 * std * input_scale). For an image minus a mean the layer then computes what it did in its own
    preprocessing with that mean, padding included, since both pad with the mean.

    `network` is the row of the table that `net` was built from, `folder` that of the file (IPCNN_WEIGHTS), `named` the
    published weights if the spec names some in place of a file. Raises DataError with every layer that is missing, has
    another shape or is not finite, and for a file that contradicts the stated channel order or its published hash. No
    parameter is changed then.

    Deviations: for files, the mean is that of the training split's images (as in the released code), not the file's.
    """
    path = _find_file(weights, folder, named)
    if named and not (digest := sha256_of(path)).startswith(named.sha256):
        what = f"has the SHA-256 {digest}; that of {named.label} begins with {named.sha256}"
        raise DataError([Issue(str(path), what, "The file is damaged or another one. Delete it, and submit again.")])
    original = tuple(name for name in net.convs if name != network.appended.name)
    layers = weights.layers or original
    schemes = _schemes(net, network, path.suffix)
    keys = [(layer, key) for layer in net.convs for key in _tensors(net, layer)]
    file = read_weights(path, {scheme(*key) for scheme in schemes for key in keys})
    listed = [(layer, key) for layer in layers if layer in net.convs for key in _tensors(net, layer)]
    name_of = max(schemes, key=lambda scheme: sum(scheme(*key) in file.names for key in listed))
    issues = _issues(net, layers, path, file, name_of) + _channel_order_issues(weights, network, path, file)
    if issues:
        raise DataError(issues)
    first = _first_weight(net)
    with torch.no_grad():
        for layer, key in listed:
            array = file.arrays[name_of(layer, key)]
            if (layer, key) == first:
                array = _fold_preprocessing(array.float(), weights, network, named)
            _tensors(net, layer)[key].copy_(array.reshape(_tensors(net, layer)[key].shape))
    loaded = tuple(name for name in net.convs if name in layers)
    random = tuple(name for name in net.convs if name not in layers)
    used = {name_of(*key) for key in listed}
    unused = [name for name in file.names if name not in used]
    text = _report_text(weights, network, loaded, random, unused, file, named)
    log.info("%s", text)
    return LoadReport(loaded, random, sha256_of(path), original, text)


def _find_file(weights: Weights, folder: Path | None, named: NamedWeights | None) -> Path:
    if named:
        assert folder is not None
        path = folder / named.file
        if not path.is_file():
            advice = f"Put it there from {named.url}, or submit where that address can be reached."
            raise DataError([Issue(str(path), f"{named.label}: no such file", advice)])
        return path
    assert weights.file is not None
    given = f"model.weights.file = {weights.file!r}"
    if folder is None:
        advice = "Set IPCNN_WEIGHTS to the folder that holds the file, on every machine that trains."
        raise DataError([Issue("IPCNN_WEIGHTS", f"{given}, and IPCNN_WEIGHTS is not set", advice)])
    path = folder / weights.file
    if not path.is_file():
        here = sorted(p.name for p in folder.glob("*") if p.suffix in SUFFIXES) if folder.is_dir() else []
        advice = f"IPCNN_WEIGHTS = {folder} holds {', '.join(here) or 'no .npz or .safetensors file'}."
        raise DataError([Issue(str(path), f"{given}: no such file", advice)])
    return path


def _tensors(net: InterpretableNet, layer: str) -> dict[str, Tensor]:
    """Return the tensors of a layer that are loaded: parameters and statistics, by name."""
    state = net.layer(layer).state_dict(keep_vars=True)
    return {key: tensor for key, tensor in state.items() if not key.endswith("num_batches_tracked")}


def _first_weight(net: InterpretableNet) -> tuple[str, str]:
    """Return the layer and tensor name of the weight that is applied to the image."""
    layer = net.convs[0]
    inside = next(name for name, module in net.layer(layer).named_modules() if isinstance(module, nn.Conv2d))
    return layer, f"{inside}.weight" if inside else "weight"


Scheme = Callable[[str, str], str]
"""(layer, name of a tensor in it) -> name of the array in a file. All names in a file follow one scheme."""


def _schemes(net: InterpretableNet, network: Network, suffix: str) -> list[Scheme]:
    """Return the known naming schemes, the most likely for a file of this kind first."""

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

    def earlier_densenet(layer: str, key: str) -> str:
        return re.sub(r"(denselayer\d+\.(?:norm|conv))(\d\.)", r"\1.\2", f"{layer}.{key}")

    schemes: list[Scheme] = [torchvision, state, arrays] if suffix in (".pth", ".pt") else [arrays, state, torchvision]
    return [*schemes, caffe] if fires else [*schemes, earlier_densenet]


def _torchvision_features(network: Network) -> dict[str, str]:
    """Return torchvision's names of the convolutions of a plain network: `features.` and the index, counting ReLUs."""
    index, names = 0, {}
    for layer in network.layers:
        if isinstance(layer, Conv):
            names[layer.name] = f"features.{index}"
        index += {Conv: 2, Pool: 1}.get(type(layer), 0)
    return names


def _order(weights: Weights, network: Network) -> Order:
    return weights.channels or (channels_of(weights.file, _name(network)) if weights.file else "rgb")


def _pixels(weights: Weights, network: Network) -> Literal["raw", "torchvision"]:
    return weights.pixels or pixels_of(weights.file or "", _name(network))


def _name(network: Network) -> str:
    return network.trunk.name if network.trunk else ""


def _fold_preprocessing(weight: Tensor, weights: Weights, network: Network, named: NamedWeights | None) -> Tensor:
    if _order(weights, network) == "bgr":
        weight = weight.flip(1)
    if named:
        return weight / (network.input_scale * torch.tensor(named.std)).reshape(1, 3, 1, 1)
    if _pixels(weights, network) == "torchvision":
        return weight / (255 * network.input_scale * torch.tensor(STD)).reshape(1, 3, 1, 1)
    # Weight files of `compact` are our own, trained with our preprocessing.
    return weight / network.input_scale if network.trunk else weight


def _issues(
    net: InterpretableNet, layers: tuple[str, ...], path: Path, file: WeightFile, name_of: Scheme
) -> list[Issue]:
    usable = [la for la in net.convs if all(name_of(la, key) in file.names for key in _tensors(net, la))]
    issues: list[Issue] = []

    def add(what: str, advice: str) -> None:
        issues.append(Issue(str(path), what, advice))

    for layer in layers:
        if layer not in net.convs:
            advice = f"It has {', '.join(net.convs)}.{did_you_mean(layer, list(net.convs))}"
            add(f"model.weights.layers has {layer!r}: the network has no such convolution", advice)
            continue
        for key, wanted in _tensors(net, layer).items():
            name = name_of(layer, key)
            array = file.arrays.get(name)
            if array is None:
                add(
                    f"model.weights.layers has {layer!r}: the file has no array {name}",
                    f"Complete in the file: {', '.join(usable) or 'no layer of this network'}. Leave {layer!r} out of "
                    "model.weights.layers (the run is then tagged as using partial weights), or name another file.",
                )
            elif array.shape != wanted.shape:
                axes = " (out, in / groups, rows, columns)" if wanted.ndim == 4 else ""
                add(
                    f"{name} has shape {tuple(array.shape)}",
                    f"The network's is {tuple(wanted.shape)}{axes}: another network's file?",
                )
            elif not array.is_floating_point() or not torch.isfinite(array).all():
                kind = str(array.dtype).removeprefix("torch.")
                add(f"{name} ({kind}) is not all finite floating-point numbers", "Write it as finite float32.")
    return issues


def _channel_order_issues(weights: Weights, network: Network, path: Path, file: WeightFile) -> list[Issue]:
    stated = _order(weights, network)
    if file.order in (None, stated):
        return []
    advice = f"Say channels: {file.order}, or name the file that was meant."
    return [Issue(str(path), f"model.weights.channels = {stated!r}, but {file.because}", advice)]


def _report_text(
    weights: Weights,
    network: Network,
    loaded: tuple[str, ...],
    random: tuple[str, ...],
    unused: list[str],
    file: WeightFile,
    named: NamedWeights | None,
) -> str:
    order, source = _order(weights, network), weights.file
    torchvisions = named is None and _pixels(weights, network) == "torchvision"
    scaling = "0..1 less a mean, over torchvision's standard deviations" if torchvisions else "0..255"
    mean = "the training split's own mean"
    scaled = torchvisions or (network.trunk is not None and network.input_scale != 1)
    if named:
        source = f"{named.file} ({named.label})"
        less, over = (", ".join(f"{value:.2f}" for value in values) for values in (named.mean, named.std))
        scaling, mean = f"0..255 less ({less}), over ({over})", "that mean"
        scaled = any(abs(std * network.input_scale - 1) > 1e-6 for std in named.std)
    changes = [*(["channels turned round"] if order == "bgr" else []), *(["scaled"] if scaled else [])]
    folded = " and ".join(changes) or "as they are"
    stated = "as published" if named and order == "rgb" else "as stated; the file does not say"
    checked = f" (confirmed: {file.because})" if file.order else f" ({stated})"
    shown = [*unused[:8], *([f"{len(unused) - 8} more"] if len(unused) > 8 else [])]
    lines = [
        f"loaded from {source}: {', '.join(loaded)}",
        f"not loaded, random at first: {', '.join(random) or 'nothing'}, and the head",
        f"in the file and not used: {', '.join(shown) or 'nothing'}",
        f"the file's first layer saw {order.upper()}{checked}, {scaling}; its weights: {folded}; "
        f"images are centred on {mean}",
    ]
    return "\n".join(lines)


@dataclass(frozen=True)
class WeightFile:
    names: tuple[str, ...]
    """Names of all its arrays."""
    arrays: Mapping[str, Tensor]
    """The requested arrays that it has."""
    order: Order | None = None
    """Channel order of the network's input as the file itself gives it; None if it does not."""
    because: str = ""
    """What in the file gives the order."""


def read_weights(path: Path, wanted: Iterable[str]) -> WeightFile:
    """Read the names of all arrays, and those arrays of `wanted` that the file has. Raises DataError if the file is
    damaged or of another kind than its ending says."""
    reader = {".npz": _npz, ".safetensors": _safetensors, ".mat": _mat}.get(path.suffix, _state_dict)
    try:
        return reader(path, set(wanted))
    except MatFileError as error:
        what, advice = str(error), "A SimpleNN network of MatConvNet is needed."
    except pickle.UnpicklingError as error:
        what = "cannot be read: " + re.split(r"[.\n]", str(error), maxsplit=1)[0]
        advice = (
            "Only tensors are read, never code: save the state dict alone, torch.save(network.state_dict(), file), "
            "or write it as .safetensors."
        )
    except Exception as error:  # numpy and torch have no exceptions of their own for damaged files
        what = f"cannot be read: {shortened(str(error) or type(error).__name__, 400)}"
        advice = f"A whole {path.suffix} file of plain numbers is needed; fetch or write it again."
    raise DataError([Issue(str(path), what, advice)])


def _npz(path: Path, wanted: set[str]) -> WeightFile:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            if info.filename.removesuffix(".npy") in wanted and _claimed_bytes(archive, info) > MOST_BYTES:
                raise ValueError(f"{info.filename} has more than {MOST_BYTES >> 30} GB")
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name]) for name in file if name in wanted}
        meta = str(file["meta"]) if "meta" in file and file["meta"].dtype.kind == "U" else ""
        orders: list[Order] = [order for order in ("rgb", "bgr") if re.search(rf"\b{order}\b", meta, re.IGNORECASE)]
        names = tuple(name for name in file if name != "meta")
    if len(orders) != 1:  # a text that names both decides nothing
        return WeightFile(names, arrays)
    sentence = next(part for part in re.split(r"[.;]\s", meta) if re.search(rf"\b{orders[0]}\b", part, re.IGNORECASE))
    because = f"its `meta` says {shorten(sentence.strip(), 60, placeholder=' ...')!r}"
    return WeightFile(names, arrays, orders[0], because)


def _claimed_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Return the bytes of a compressed .npy file, or those that its header claims, whichever are more."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
    return max(info.file_size, math.prod(shape) * dtype.itemsize)


def _safetensors(path: Path, wanted: set[str]) -> WeightFile:
    with safe_open(path, framework="pt") as file:
        names = tuple(file.keys())
        return WeightFile(names, {name: file.get_tensor(name) for name in names if name in wanted})


def _mat(path: Path, wanted: set[str]) -> WeightFile:
    every, average_image = read_simplenn(path)
    arrays = {name: torch.from_numpy(array) for name, array in every.items() if name in wanted}
    names = tuple(every)
    means = [] if average_image is None else average_image.mean((0, 1)).tolist()
    orders: dict[Order, tuple[float, ...]] = {"rgb": IMAGENET_RGB, "bgr": IMAGENET_RGB[::-1]}
    for order, expected in orders.items() if means else ():
        if all(abs(mean - other) < MEAN_TOLERANCE for mean, other in zip(means, expected, strict=True)):
            shown = ", ".join(f"{mean:.1f}" for mean in means)
            because = f"its averageImage has channel means {shown}, as ImageNet's in that order"
            return WeightFile(names, arrays, order, because)
    return WeightFile(names, arrays)


def _state_dict(path: Path, wanted: set[str]) -> WeightFile:
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        raise ValueError(f"it holds a {type(content).__name__}, not a state dict")
    tensors: dict[str, Any] = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    arrays = {name: tensor for name, tensor in tensors.items() if name in wanted}
    for name, tensor in arrays.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type != "cpu":
            raise ValueError(f"{name} is sparse, quantized or without values")
    return WeightFile(tuple(tensors), arrays)


def read_simplenn(path: Path) -> tuple[dict[str, NDArray[Any]], NDArray[np.float64] | None]:
    """Read a SimpleNN network from a .mat file, v5 or v7.3; its parts are at the top level or in a struct `net`.

    Returns:
        `<layer>_w`, OIHW, and `<layer>_b` of every layer that has both, in the file's order; and the mean training
        image, [rows, columns, 3] or [1, 1, 3], None if the file has none.

    Raises:
        MatFileError: If the file is damaged or holds no such network.
    """
    content = read_variables(path, ("net", "layers", "meta", "normalization", "params"))
    net = content["net"] if isinstance(content.get("net"), dict) else content
    layers = as_list(net.get("layers"))
    if "params" in net:
        raise MatFileError("is a DagNN network of MatConvNet; a SimpleNN one (layers{i}.weights) is needed")
    if not layers:
        raise MatFileError("has no cell array `layers`, at its top or in a struct `net`, as a SimpleNN network has")
    arrays: dict[str, NDArray[Any]] = {}
    for number, layer in enumerate(layers, start=1):
        fields = layer if isinstance(layer, dict) else {}
        pair = as_list(fields.get("weights"))
        if len(pair) < 2:
            pair = [fields[name] for name in ("filters", "biases") if name in fields]
        if len(pair) < 2 or not pair[0].size or pair[0].ndim > 4:
            continue
        filters, biases = pair[:2]
        name = fields.get("name") or f"layers{{{number}}}"
        # MATLAB drops trailing axes of length 1.
        hwio = filters.reshape(*filters.shape, *[1] * (4 - filters.ndim))
        arrays[f"{name}_w"] = np.ascontiguousarray(hwio.transpose(3, 2, 0, 1))
        arrays[f"{name}_b"] = biases.ravel()
    return arrays, _average_image(net)


def _average_image(net: dict[str, Any]) -> NDArray[np.float64] | None:
    for holder in (net.get("meta"), net):
        normalization = holder.get("normalization") if isinstance(holder, dict) else None
        if not isinstance(normalization, dict) or "averageImage" not in normalization:
            continue
        image = np.asarray(normalization["averageImage"], np.float64)
        if image.size == 3:
            return image.reshape(1, 1, 3)
        if image.ndim == 3 and image.shape[2] == 3:
            return image
    return None
