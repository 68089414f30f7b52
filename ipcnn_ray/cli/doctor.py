"""`ipcnn doctor`: does everything that a submission needs work, and if not, what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import typer

from ipcnn_ray import __version__
from ipcnn_ray.cli import output
from ipcnn_ray.cli.exit_codes import RUN_FAILED
from ipcnn_ray.cli.options import AddressOption, JsonOption
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.utils.paths import Paths

Facts = Mapping[str, Any]
State = Literal["ok", "note", "wrong"]
SKEW_S = 5.0
"""Clocks that differ by more order the epochs of a record wrongly; Amazon's S3 refuses a difference of 15 minutes."""
DISK_WRONG, DISK_NOTE = 2 << 30, 10 << 30
SHOWN = 4
"""Names in one line before the rest is counted."""


@dataclass(frozen=True)
class Line:
    """One thing that was looked at."""

    check: str
    state: State
    """`note`: works, but should be known."""
    fact: str
    advice: str = ""
    """What to do; empty where all is well."""


def doctor(address: AddressOption = None, json: JsonOption = False) -> None:
    """Check Ray, the record, the storage, data, weights, clocks and disks of this machine, or of a cluster.

    Without an address it starts the embedded Ray for a moment. It writes to the record and to the storage, reads back,
    and deletes what it wrote. Exit code 0: all is well, 1: something is wrong.
    """
    from ipcnn_ray.on_ray import cluster_probe as visit

    paths = Paths.from_environment()
    output.print_note(
        "asking this machine ..." if address is None else f"asking the nodes at {without_password(address)} ..."
    )
    facts = visit.here(paths) if address is None else visit.there(address)
    lines = judge(facts)
    wrong = any(line.state == "wrong" for line in lines)
    if json:
        output.print_json({"ok": not wrong, "checks": [asdict(line) for line in lines]})
    else:
        _print(lines)
    raise typer.Exit(RUN_FAILED if wrong else 0)


def _print(lines: list[Line]) -> None:
    width = max(len(line.check) for line in lines)
    styles = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    for line in lines:
        output.print_line(
            f"{line.state:<6} {line.check:<{width}}  {line.fact}", styles[line.state] if line.advice else ""
        )
        if line.advice:
            output.print_line(f"{'':<{width + 9}}{line.advice}")


def judge(facts: Facts) -> list[Line]:
    """What the facts come to, in the order in which one would mend it."""
    checks: tuple[Callable[[Facts], Iterator[Line]], ...] = (
        _versions,
        _access,
        _nodes,
        _gpus,
        _clocks,
        _storage,
        _record,
        _data,
        _weights,
        _disks,
    )
    return [line for check in checks for line in check(facts)]


def _answering(facts: Facts) -> list[Facts]:
    return [node for node in facts["nodes"] if not node["error"]]


def _versions(facts: Facts) -> Iterator[Line]:
    seen = {(node["ray"], node["python"].rpartition(".")[0]) for node in _answering(facts)}
    if len(seen) > 1:
        found = ", ".join(f"Ray {ray} on Python {python}" for ray, python in sorted(seen))
        yield Line("versions", "wrong", f"the nodes differ: {found}", "Start every node from the same image.")
    elif facts["version"] != __version__:
        fact = f"ipcnn {facts['version']} there, {__version__} here"
        yield Line("versions", "wrong", fact, "Use the same version on both sides.")
    else:
        yield Line("versions", "ok", f"ipcnn {__version__}, Ray {facts['ray']}, Python {facts['python']}")
    for node in _answering(facts):
        absent = [name for name, version in node["packages"].items() if not version]
        if absent:
            advice = "Use the image of the Dockerfile, or install ipcnn on that node."
            yield Line("versions", "wrong", f"{node['address']} lacks {', '.join(absent)}", advice)


def _access(facts: Facts) -> Iterator[Line]:
    if facts["access"] == "closed":
        yield Line("authentication", "ok", "Ray asks for a token")
    elif facts["access"] == "open":
        advice = (
            "Whoever reaches it can run code. Start every node with RAY_AUTH_MODE=token and the same token: "
            "ray get-auth-token --generate"
        )
        yield Line("authentication", "wrong", "Ray lets everybody in, without a token", advice)
    else:
        yield Line("authentication", "wrong", "the dashboard does not answer", "Restart Ray with its dashboard.")


def _nodes(facts: Facts) -> Iterator[Line]:
    for node in facts["nodes"]:
        if node["error"]:
            advice = "Look at the node's Ray logs; take it out of the cluster or restart it."
            yield Line("nodes", "wrong", f"{node['address']}: {node['error']}", advice)
    fit = _answering(facts)
    cores, gpus = (sum(node[kind] for node in fit) for kind in ("cores", "gpus"))
    workers = [node for node in fit if node["cores"] or node["gpus"]]
    fact = (
        f"{len(fit)} nodes with {cores:g} cores and {gpus:g} GPUs"
        if len(fit) != 1
        else (f"1 node with {cores:g} cores and {gpus:g} GPUs")
    )
    if workers:
        yield Line("nodes", "ok", fact)
    else:
        advice = "Fine where the cluster starts workers by itself when a run asks for them; else start some."
        yield Line("nodes", "note", f"{fact}: no place for a run now", advice)


def _gpus(facts: Facts) -> Iterator[Line]:
    for node in _answering(facts):
        if node["cuda"] is None:
            continue
        offered, seen = node["gpus"], len(node["cuda"])
        where = f"{node['address']}: "
        if offered > seen:
            advice = (
                "Check nvidia-smi on that node, that its driver is new enough for torch's CUDA, and that the container "
                "was started with the NVIDIA runtime."
            )
            yield Line("GPUs", "wrong", f"{where}Ray offers {offered:g}, torch can use {seen}", advice)
        elif seen:
            yield Line("GPUs", "ok", f"{where}{_listed(sorted(set(node['cuda'])))}")


def _clocks(facts: Facts) -> Iterator[Line]:
    skews = {node["address"]: node["skew"] for node in _answering(facts)}
    if "client_skew" in facts:
        # What the cluster's clock is ahead of ours, ours is behind.
        skews["this machine"] = -facts["client_skew"]
    off = {name: skew for name, skew in skews.items() if abs(skew) > SKEW_S}
    for name, skew in off.items():
        fact = f"{name} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        yield Line("clocks", "wrong", fact, "Set its clock by NTP: timedatectl set-ntp true, or chrony.")
    if not off:
        yield Line("clocks", "ok", f"no difference above {SKEW_S:g} s")


def _storage(facts: Facts) -> Iterator[Line]:
    url, nodes = facts["storage"], _answering(facts)
    local = "://" not in url
    fine = True
    for node in nodes:
        if node["storage"]["error"]:
            fine = False
            fact, _, advice = node["storage"]["error"].partition("\n")
            yield Line("storage", "wrong", f"from {node['address']}: {fact}", advice)
    if local and len({node["address"] for node in nodes}) > 1:
        fine = False
        advice = (
            "Fine if it is one file system on every node; else set IPCNN_STORAGE=s3://BUCKET/PREFIX on all of them."
        )
        yield Line("storage", "note", f"{url} is a folder of each of {len(nodes)} nodes", advice)
    if fine:
        slowest = max((node["storage"]["seconds"] for node in nodes), default=0.0)
        yield Line("storage", "ok", f"{without_password(url)}: 1 MiB written, read back, compared ({slowest:.1f} s)")


def _record(facts: Facts) -> Iterator[Line]:
    shown = without_password(facts["tracking_uri"])
    if facts["record"]["error"]:
        fact, _, advice = facts["record"]["error"].partition("\n")
        yield Line("MLflow", "wrong", fact, advice)
    elif facts["tracking_uri"].startswith("sqlite:") and len(facts["nodes"]) > 1:
        advice = "Start a server that every node reaches and set MLFLOW_TRACKING_URI on all of them."
        yield Line("MLflow", "wrong", f"{shown} is a file of one of {len(facts['nodes'])} nodes", advice)
    else:
        seconds = facts["record"]["seconds"]
        yield Line("MLflow", "ok", f"{shown}: a run written, read back, deleted ({seconds:.1f} s)")


def _data(facts: Facts) -> Iterator[Line]:
    for where, data in _per_node(facts, "data"):
        if data["folder"] is None:
            advice = "For real photographs set IPCNN_DATA to the folder that holds voc/."
            yield Line("data", "note", f"{where}only drawn animals: IPCNN_DATA is not set", advice)
        elif not data["there"]:
            advice = "Mount it (of a bucket check the address and the keys), or unset it."
            yield Line("data", "wrong", f"{where}IPCNN_DATA = {data['folder']} is not there", advice)
        elif not data["images"] or not (data["categories"] or data["part_masks"]):
            advice = "It must hold voc/VOCdevkit/VOC2010/JPEGImages, and voc/landmarks or Annotations_Part; see README."
            fact = f"{where}{data['folder']} has {data['images']} photographs and {len(data['categories'])} categories"
            yield Line("data", "wrong", f"{fact} of landmarks", advice)
        else:
            masks = f", {data['part_masks']} part masks" if data["part_masks"] else ""
            fact = f"{data['images']} photographs, {data['negatives']} negatives{masks}"
            yield Line("data", "ok", f"{where}{fact}; landmarks: {_listed(data['categories']) or 'none'}")


def _weights(facts: Facts) -> Iterator[Line]:
    for where, weights in _per_node(facts, "weights"):
        if weights["folder"] is None:
            advice = "For pretrained layers set IPCNN_WEIGHTS to the folder of the weight files."
            yield Line("weights", "note", f"{where}none: IPCNN_WEIGHTS is not set", advice)
            continue
        for name, why in weights["broken"].items():
            yield Line("weights", "wrong", f"{where}{name}: {why}", "Fetch the file again.")
        if not weights["there"] or not weights["files"]:
            fact = f"{where}IPCNN_WEIGHTS = {weights['folder']} {'is empty' if weights['there'] else 'is not there'}"
            yield Line("weights", "wrong", fact, "Put .npz or .safetensors files there, or unset it.")
        elif not weights["broken"]:
            yield Line("weights", "ok", f"{where}{_listed(weights['files'])}")


def _disks(facts: Facts) -> Iterator[Line]:
    found = [(node["address"], *one) for node in _answering(facts) for one in sorted(node["disk"].items())]
    tight = [one for one in found if one[2] is not None and one[2] < DISK_NOTE]
    for address, place, free in tight:
        state: State = "wrong" if free < DISK_WRONG else "note"
        advice = "Make room: decoded crops, frozen outputs and checkpoints are kept there. IPCNN_CACHE may be deleted."
        yield Line("disk", state, f"{address}: {_size(free)} free at {place}", advice)
    if not tight:
        least = min((free for _, _, free in found if free is not None), default=0)
        yield Line("disk", "ok", f"at least {_size(least)} free everywhere")


def _per_node(facts: Facts, kind: str) -> Iterator[tuple[str, Facts]]:
    """What the nodes have, once where they all have the same; the head is left out where it runs nothing."""
    nodes = _answering(facts)
    nodes = [node for node in nodes if node["cores"] or node["gpus"]] or nodes
    if all(node[kind] == nodes[0][kind] for node in nodes):
        yield from (("", node[kind]) for node in nodes[:1])
    else:
        yield from ((f"{node['address']}: ", node[kind]) for node in nodes)


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
