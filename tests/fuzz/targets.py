"""What is fuzzed: each target makes files from a random generator and reads them as the commands do."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
import torch
import yaml
from fakes.datasets import FOX, CubFolder, IlsvrcFolder, voc_folder
from fakes.matlab import cell, write_mat
from fakes.own_photographs import OwnPhotographs
from fuzz.mutations import mutated_bytes, mutated_value
from PIL import Image
from safetensors.torch import save_file

from ipcnn_ray.data.datasets.cub200 import Cub200
from ipcnn_ray.data.datasets.ilsvrc_animal_part import IlsvrcAnimalPart
from ipcnn_ray.models.build import build
from ipcnn_ray.models.pretrained_weights import load_weights
from ipcnn_ray.spec.loader import load, loads
from ipcnn_ray.spec.model import Model, Weights
from ipcnn_ray.spec.networks import NETWORKS
from ipcnn_ray.spec.runs import plan, resolved_yaml
from ipcnn_ray.spec.starter import starter
from ipcnn_ray.spec.template import NoTemplate

ROOT = Path(__file__).resolve().parents[2]
LARGEST_PLAN = 2000
"""Runs of a search that is planned; a valid search may have more, and then takes its time."""


@dataclass
class Target:
    """One kind of file."""

    name: str
    share: int
    """Cases of this kind, in relation to the others."""
    make: Callable[[Random], bytes]
    """Returns the content of a case."""
    file: Path
    """What the content is written to."""
    read: Callable[[], object]
    """Reads the file; IpcnnError is the one exception that it may raise."""


def targets(folder: Path) -> list[Target]:
    """Return all targets; their files are in a folder that exists."""
    return [spec_target(folder), *data_targets(folder), *weight_targets(folder)]


def spec_target(folder: Path) -> Target:
    file = folder / "fuzz.yaml"
    texts = [path.read_bytes() for path in sorted((ROOT / "specs").rglob("*.yaml"))] + [
        starter("mine", "mine.yaml").encode()
    ]
    values = [yaml.safe_load(text) for text in texts]
    bad = yaml.safe_load((ROOT / "tests/spec/bad_specs.yaml").read_bytes())

    def make(random: Random) -> bytes:
        match random.randrange(3):
            case 0:
                return mutated_bytes(random.choice(texts), random)
            case 1:
                value = mutated_value(random.choice(values), [*values, bad], random)
                return yaml.safe_dump(value, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogatepass")
            case _:
                value = mutated_value(random.choice(values), [*values, bad], random)
                return mutated_bytes(yaml.safe_dump(value, sort_keys=False).encode(), random)

    def read() -> None:
        spec = load(file).spec
        again = loads(resolved_yaml(spec), "resolved.yaml").spec
        assert again.digest() == spec.digest(), "the resolved spec has another digest"
        combinations = 1
        for values in getattr(spec.search, "grid", {}).values():
            combinations *= len(values)
        if combinations * (spec.search.repeats if spec.search else 1) < LARGEST_PLAN:
            plan(spec, lambda data: 1000)

    return Target("spec", 50, make, file, read)


def data_targets(folder: Path) -> list[Target]:
    own = OwnPhotographs(folder / "own")
    table, coco = (own.folder / name for name in ("table.csv", "coco.json"))
    csv_bytes, coco_value = table.read_bytes(), own.coco
    root = own.root

    def csv(random: Random) -> bytes:
        if random.random() < 0.5:
            return mutated_bytes(csv_bytes, random)
        rows = mutated_value([line.split(",") for line in csv_bytes.decode().splitlines()], [coco_value], random)
        lines = (",".join(map(str, row)) if isinstance(row, list) else str(row) for row in rows)
        return "\n".join(lines).encode("utf-8", "surrogatepass")

    def as_coco(random: Random) -> bytes:
        text = json.dumps(mutated_value(coco_value, [coco_value], random)).encode()
        return mutated_bytes(text, random) if random.random() < 0.5 else text

    photograph = own.folder / "wren/0.jpg"
    pictures = _pictures(folder)

    def picture(random: Random) -> bytes:
        return mutated_bytes(random.choice(pictures), random)

    def read_picture() -> None:
        own.classes().store_plan(root, 32, None).fill(np.empty((16, 3, 32, 32), np.uint8))

    voc, cub, fox = (folder / name for name in ("voc", "cub", "ilsvrc"))
    voc_made, _, ilsvrc = voc_folder(voc), CubFolder(cub), IlsvrcFolder(fox)
    cow = {"class": "cow", "bbox": (11, 21, 60, 60), "parts": {"head": (15, 25, 40, 50)}}
    for image in ("2008_000000", "2008_000001"):
        voc_made.annotate(image, [cow])
    masked = voc_made.spec(annotation="part_masks", landmarks=["head"])
    truth, masks = voc_made.part_file(1), voc_made.masks / "2008_000000.mat"
    cub_files = [cub / "CUB_200_2011" / name for name in ("images.txt", "bounding_boxes.txt", "parts/part_locs.txt")]
    cub_section = Cub200.model_validate({"kind": "cub200", "min_side": 20, "negatives": 4})
    fox_section = IlsvrcAnimalPart.model_validate(
        {"kind": "ilsvrc_animal_part", "category": FOX, "min_side": 20, "negatives": 4}
    )
    samples = ilsvrc.root / f"{FOX}_obj/img/data.mat"

    def hdf5(random: Random) -> bytes:
        path = folder / "truth73.mat"
        write_mat(path, "v7.3", {"truth": voc_made.truth(1)})
        return mutated_bytes(path.read_bytes(), random)

    def changed(path: Path) -> Callable[[Random], bytes]:
        original = path.read_bytes()
        return lambda random: mutated_bytes(original, random)

    return [
        Target("csv", 8, csv, table, lambda: own.table().read(root)),
        Target("coco", 8, as_coco, coco, lambda: own.table("mine/coco.json").read(root)),
        Target("image", 6, picture, photograph, read_picture),
        Target("landmarks v5", 3, changed(truth), truth, lambda: voc_made.spec().read(voc)),
        Target("landmarks v7.3", 3, hdf5, truth, lambda: voc_made.spec().read(voc)),
        Target("part masks", 3, changed(masks), masks, lambda: masked.read(voc)),
        Target("samples", 3, changed(samples), samples, lambda: fox_section.read(fox)),
        *(Target(path.name, 2, changed(path), path, lambda: cub_section.read(cub)) for path in cub_files),
    ]


def _pictures(folder: Path) -> list[bytes]:
    image = Image.radial_gradient("L").resize((40, 30)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6
    files = []
    for suffix, mode in (("jpg", "RGB"), ("png", "P"), ("gif", "P"), ("bmp", "RGB"), ("tif", "L"), ("webp", "RGB"),
                         ("ppm", "RGB"), ("png", "RGBA")):  # fmt: skip
        path = folder / f"picture.{suffix}"
        image.convert(mode).save(path, **({"exif": exif} if suffix in ("jpg", "png", "webp") else {}))
        files.append(path.read_bytes())
    return files


def weight_targets(folder: Path) -> list[Target]:
    net = build(Model(network="compact"), NoTemplate(shape="none"), 0)
    tensors = {
        f"{layer}.{kind}": getattr(net.layer(layer), kind).detach().clone()
        for layer in net.convs
        for kind in ("weight", "bias")
    }
    arrays = {name.replace(".weight", "_w").replace(".bias", "_b"): tensor.numpy() for name, tensor in tensors.items()}
    where = folder / "weights"
    where.mkdir()
    np.savez(where / "w.npz", **arrays)
    np.savez_compressed(where / "z.npz", **arrays)
    save_file(tensors, where / "w.safetensors")
    torch.save(tensors, where / "w.pth")
    torch.save(tensors, where / "old.pth", _use_new_zipfile_serialization=False)
    layers = cell(
        [
            {"name": layer, "weights": cell([arrays[f"{layer}_w"].transpose(2, 3, 1, 0), arrays[f"{layer}_b"]])}
            for layer in net.convs
        ]
    )
    for version in ("v5", "v7.3"):
        write_mat(where / f"{version}.mat", version, {"layers": layers})

    def changed(*names: str) -> Callable[[Random], bytes]:
        originals = [(where / name).read_bytes() for name in names]

        def make(random: Random) -> bytes:
            content = random.choice(originals)
            if random.random() < 0.6:  # headers are short, and arrays long
                head, tail = content[:400], content[-1500:]
                if random.random() < 0.5:
                    return mutated_bytes(head, random) + content[len(head) :]
                return content[: -len(tail)] + mutated_bytes(tail, random)
            return mutated_bytes(content, random)

        return make

    def pickled(random: Random) -> bytes:
        """A zip of torch.save with a changed pickle, and whole checksums."""
        made = where / "pickled.zip"
        with zipfile.ZipFile(where / "w.pth") as source, zipfile.ZipFile(made, "w") as out:
            for info in source.infolist():
                content = source.read(info)
                out.writestr(info.filename, mutated_bytes(content, random) if "data.pkl" in info.filename else content)
        return made.read_bytes()

    def foreign(random: Random) -> bytes:
        """Plain pickles of other values."""
        values = [1, "text", [1], {"a": 1}, {"state_dict": 3}, {"state_dict": {"conv1.weight": "x"}}, np.zeros(3)]
        return mutated_bytes(pickle.dumps(random.choice(values), random.randrange(5)), random)

    def lying(random: Random) -> bytes:
        """A safetensors file whose header is JSON of another truth."""
        content = (where / "w.safetensors").read_bytes()
        length = int.from_bytes(content[:8], "little")
        header = mutated_value(json.loads(content[8 : 8 + length]), [{"dtype": "F64", "shape": [2**40]}], random)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + content[8 + length :]

    def target(name: str, share: int, make: Callable[[Random], bytes], file: str) -> Target:
        weights = Weights.model_validate({"file": file})
        return Target(name, share, make, where / file, lambda: load_weights(net, NETWORKS["compact"], weights, where))

    return [
        target("npz", 4, changed("w.npz", "z.npz"), "fuzz.npz"),
        target("safetensors", 2, changed("w.safetensors"), "fuzz.safetensors"),
        target("safetensors header", 2, lying, "fuzz.safetensors"),
        target("pth", 2, changed("w.pth"), "fuzz.pth"),
        target("pth pickle", 3, pickled, "fuzz.pth"),
        target("pth of earlier torch", 2, changed("old.pth"), "fuzz.pt"),
        target("pickle", 1, foreign, "fuzz.pth"),
        target("mat v5", 3, changed("v5.mat"), "fuzz.mat"),
        target("mat v7.3", 3, changed("v7.3.mat"), "fuzz.mat"),
    ]
