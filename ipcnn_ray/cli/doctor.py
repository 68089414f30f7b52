"""`ipcnn doctor`: checks everything that a submission needs and says how to repair what fails."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import typer

from ipcnn_ray import __version__
from ipcnn_ray.cli import output
from ipcnn_ray.cli.options import RUN_FAILED, AddressOption, JsonOption
from ipcnn_ray.tracking.tracking_uri import without_password
from ipcnn_ray.utils.paths import Paths
from ipcnn_ray.utils.text import counted, shortened_list

Facts = Mapping[str, Any]
State = Literal["ok", "note", "wrong"]
Finding = tuple[State, str] | tuple[State, str, str]
"""State, fact and, unless it is ok, advice of one check."""
SKEW_S = 5.0
"""Clock differences above this can reorder recorded epochs. Amazon S3 refuses requests that are 15 minutes off."""
DISK_WRONG, DISK_NOTE = 2 << 30, 10 << 30
"""Free bytes below which a disk is wrong, and below which it gets a note."""
SHOWN = 4
"""Names per line; further ones are only counted."""


@dataclass(frozen=True)
class CheckResult:
    """Result of one check."""

    check: str
    state: State
    """`note`: works, but worth knowing."""
    fact: str
    advice: str = ""
    """What to do; empty for `ok`."""


def doctor(address: AddressOption = None, json: JsonOption = False) -> None:
    """Check everything that a submission needs.

    Checks Ray, the record, the storage, data, weights, clocks and disks of this machine, or of all nodes of a cluster.
    Without an address, the embedded Ray is started for a moment. A test file in the storage and a test run in the
    record are written, read back and deleted. Exit code 0: everything works, 1: something is wrong.
    """
    from ipcnn_ray.on_ray.cluster_probe import probe_cluster, probe_embedded

    paths = Paths.from_environment()
    output.print_note(
        "asking this machine ..." if address is None else f"asking the nodes at {without_password(address)} ..."
    )
    facts = probe_embedded(paths) if address is None else probe_cluster(address)
    results = check_results(facts)
    wrong = any(result.state == "wrong" for result in results)
    if json:
        output.print_json({"ok": not wrong, "checks": [asdict(result) for result in results]})
    else:
        _print_results(results)
    raise typer.Exit(RUN_FAILED if wrong else 0)


def _print_results(results: list[CheckResult]) -> None:
    width = max(len(result.check) for result in results)
    styles = {"ok": "green", "note": "yellow", "wrong": "bold red"}
    for result in results:
        style = styles[result.state] if result.advice else ""
        output.print_line(f"{result.state:<6} {result.check:<{width}}  {result.fact}", style)
        if result.advice:
            output.print_line(f"{'':<{width + 9}}{result.advice}")


def check_results(facts: Facts) -> list[CheckResult]:
    """The results of all checks, in the order in which to repair what is wrong."""
    checks = {
        "versions": _versions,
        "authentication": _access,
        "nodes": _nodes,
        "GPUs": _gpus,
        "clocks": _clocks,
        "storage": _storage,
        "MLflow": _record,
        "data": _data,
        "weights": _weights,
        "disk": _disks,
    }
    return [CheckResult(name, *finding) for name, check in checks.items() for finding in check(facts)]


def _reachable(facts: Facts) -> list[Facts]:
    return [node for node in facts["nodes"] if not node["error"]]


def _versions(facts: Facts) -> Iterator[Finding]:
    seen = {(node["ray"], node["python"].rpartition(".")[0]) for node in _reachable(facts)}
    if len(seen) > 1:
        versions = ", ".join(f"Ray {ray} on Python {python}" for ray, python in sorted(seen))
        yield "wrong", f"the nodes differ: {versions}", "Start every node from the same image."
    elif facts["version"] != __version__:
        fact = f"ipcnn {facts['version']} there, {__version__} here"
        yield "wrong", fact, "Use the same version on both sides."
    else:
        yield "ok", f"ipcnn {__version__}, Ray {facts['ray']}, Python {facts['python']}"
    for node in _reachable(facts):
        absent = [name for name, version in node["packages"].items() if not version]
        if absent:
            advice = "Use the image of the Dockerfile, or install ipcnn on that node."
            yield "wrong", f"{node['address']} lacks {', '.join(absent)}", advice


def _access(facts: Facts) -> Iterator[Finding]:
    if facts["access"] == "closed":
        yield "ok", "Ray asks for a token"
    elif facts["access"] == "open":
        advice = (
            "Whoever reaches it can run code. Start every node with RAY_AUTH_MODE=token and the same token: "
            "ray get-auth-token --generate"
        )
        yield "wrong", "Ray lets everybody in, without a token", advice
    else:
        yield "wrong", "the dashboard does not answer", "Restart Ray with its dashboard."


def _nodes(facts: Facts) -> Iterator[Finding]:
    for node in facts["nodes"]:
        if node["error"]:
            advice = "Look at the node's Ray logs; take it out of the cluster or restart it."
            yield "wrong", f"{node['address']}: {node['error']}", advice
    nodes = _reachable(facts)
    cores, gpus = (sum(node[kind] for node in nodes) for kind in ("cores", "gpus"))
    fact = f"{counted(len(nodes), 'node')} with {cores:g} cores and {gpus:g} GPUs"
    if any(node["cores"] or node["gpus"] for node in nodes):
        yield "ok", fact
    else:
        advice = "Fine where the cluster starts workers by itself when a run asks for them; else start some."
        yield "note", f"{fact}: no place for a run now", advice


def _gpus(facts: Facts) -> Iterator[Finding]:
    for node in _reachable(facts):
        if node["cuda"] is None:
            continue
        offered, seen = node["gpus"], len(node["cuda"])
        where = f"{node['address']}: "
        if offered > seen:
            advice = (
                "Check nvidia-smi on that node, that its driver is new enough for torch's CUDA, and that the container "
                "was started with the NVIDIA runtime."
            )
            yield "wrong", f"{where}Ray offers {offered:g}, torch can use {seen}", advice
        elif seen:
            yield "ok", f"{where}{shortened_list(sorted(set(node['cuda'])), SHOWN)}"


def _clocks(facts: Facts) -> Iterator[Finding]:
    skews = {node["address"]: node["skew"] for node in _reachable(facts)}
    if "client_skew" in facts:
        # client_skew is how far the cluster's clock is ahead of this machine's.
        skews["this machine"] = -facts["client_skew"]
    off = {name: skew for name, skew in skews.items() if abs(skew) > SKEW_S}
    for name, skew in off.items():
        fact = f"{name} is {abs(skew):.1f} s {'ahead' if skew > 0 else 'behind'}"
        yield "wrong", fact, "Set its clock by NTP: timedatectl set-ntp true, or chrony."
    if not off:
        yield "ok", f"no difference above {SKEW_S:g} s"


def _storage(facts: Facts) -> Iterator[Finding]:
    url, nodes = facts["storage"], _reachable(facts)
    local = "://" not in url
    fine = True
    for node in nodes:
        if node["storage"]["error"]:
            fine = False
            fact, _, advice = node["storage"]["error"].partition("\n")
            yield "wrong", f"from {node['address']}: {fact}", advice
    if local and len({node["address"] for node in nodes}) > 1:
        fine = False
        advice = (
            "Fine if it is one file system on every node; else set IPCNN_STORAGE=s3://BUCKET/PREFIX on all of them."
        )
        yield "note", f"{url} is a folder of each of {len(nodes)} nodes", advice
    if not all(node["storage"]["conditional"] for node in nodes):
        fact = f"{without_password(url)}: the server does not know conditional requests (If-None-Match, If-Match)"
        advice = (
            "Runs are safe there, but two submissions of one experiment that start within the same second may both "
            "train it: start one at a time. Amazon S3 and newer versions of MinIO and Ceph know them."
        )
        yield "note", fact, advice
    if fine:
        slowest = max((node["storage"]["seconds"] for node in nodes), default=0.0)
        yield "ok", f"{without_password(url)}: 1 MiB written, read back, compared ({slowest:.1f} s)"


def _record(facts: Facts) -> Iterator[Finding]:
    shown = without_password(facts["tracking_uri"])
    if facts["record"]["error"]:
        fact, _, advice = facts["record"]["error"].partition("\n")
        yield "wrong", fact, advice
    elif facts["tracking_uri"].startswith("sqlite:") and len(facts["nodes"]) > 1:
        advice = "Start a server that every node reaches and set MLFLOW_TRACKING_URI on all of them."
        yield "wrong", f"{shown} is a file of one of {len(facts['nodes'])} nodes", advice
    else:
        seconds = facts["record"]["seconds"]
        yield "ok", f"{shown}: a run written, read back, deleted ({seconds:.1f} s)"


def _data(facts: Facts) -> Iterator[Finding]:
    for where, data in _per_node(facts, "data"):
        if data["folder"] is None:
            advice = "For real photographs set IPCNN_DATA to the folder that holds voc/."
            yield "note", f"{where}only drawn animals: IPCNN_DATA is not set", advice
            continue
        if not data["there"]:
            advice = "Mount it (of a bucket check the address and the keys), or unset it."
            yield "wrong", f"{where}IPCNN_DATA = {data['folder']} is not there", advice
            continue
        if data["empty"]:
            advice = "For real photographs mount the folder that holds them there, such as the parent of voc/."
            yield "note", f"{where}only drawn animals: IPCNN_DATA = {data['folder']} is empty", advice
            continue
        present = {kind: dataset for kind, dataset in data["datasets"].items() if dataset["there"]}
        absent = [kind for kind in data["datasets"] if kind not in present]
        if not present:
            folders = " or ".join(dataset["folder"] for dataset in data["datasets"].values())
            fact = f"{where}{data['folder']} has 0 photographs and 0 categories of landmarks of these datasets"
            advice = (
                f"They need {folders}, see README; your own photographs (data.kind: table, folder) lie anywhere in it."
            )
            yield "note", fact, advice
            continue
        for kind, dataset in present.items():
            fact = f"{where}{kind}: " + ", ".join(
                f"{count} {name}" for name, count in dataset["counts"].items() if count
            )
            fact += f"; landmarks: {shortened_list(dataset['categories'], SHOWN)}" if dataset["categories"] else ""
            if dataset["missing"]:
                advice = f"Runs that need it fail. To fetch it: ipcnn data fetch {kind}"
                yield "note", f"{fact}; without {', '.join(dataset['missing'])}", advice
            else:
                yield "ok", fact
        if absent:
            yield "ok", f"{where}nothing of {', '.join(absent)}"


def _weights(facts: Facts) -> Iterator[Finding]:
    for where, weights in _per_node(facts, "weights"):
        if weights["folder"] is None:
            advice = "For pretrained layers set IPCNN_WEIGHTS to the folder of the weight files."
            yield "note", f"{where}none: IPCNN_WEIGHTS is not set", advice
            continue
        for name, damage in weights["broken"].items():
            yield "wrong", f"{where}{name}: {damage}", "Fetch the file again."
        if not weights["there"]:
            fact = f"{where}IPCNN_WEIGHTS = {weights['folder']} is not there"
            yield "wrong", fact, "Mount it (of a bucket check the address and the keys), or unset it."
        elif not weights["files"]:
            advice = "For pretrained layers mount the folder of the weight files there."
            yield "note", f"{where}none: IPCNN_WEIGHTS = {weights['folder']} holds no weight files", advice
        elif not weights["broken"]:
            yield "ok", f"{where}{shortened_list(weights['files'], SHOWN)}"


def _disks(facts: Facts) -> Iterator[Finding]:
    disks = [
        (node["address"], folder, free)
        for node in _reachable(facts)
        for folder, free in sorted(node["disk"].items())
        if free is not None
    ]
    tight = [disk for disk in disks if disk[2] < DISK_NOTE]
    for address, folder, free in tight:
        state: State = "wrong" if free < DISK_WRONG else "note"
        advice = "Make room: decoded crops, frozen outputs and checkpoints are kept there. IPCNN_CACHE may be deleted."
        yield state, f"{address}: {_size(free)} free at {folder}", advice
    if not tight:
        least = min((free for _, _, free in disks), default=0)
        yield "ok", f"at least {_size(least)} free everywhere"


def _per_node(facts: Facts, kind: str) -> Iterator[tuple[str, Facts]]:
    """(prefix, facts) of each node; once, without prefix, if all nodes agree. Leaves out a head without resources."""
    nodes = _reachable(facts)
    nodes = [node for node in nodes if node["cores"] or node["gpus"]] or nodes
    if all(node[kind] == nodes[0][kind] for node in nodes):
        yield from (("", node[kind]) for node in nodes[:1])
    else:
        yield from ((f"{node['address']}: ", node[kind]) for node in nodes)


def _size(size: int) -> str:
    return f"{size / (1 << 30):.1f} GiB"
