"""cluster/kuberay.yaml and cluster/mlflow.yaml: what they must say, and what KubeRay says of the first.

The definitions (1.4 MB each, another project's) are not in this repository: name their folder in IPCNN_KUBERAY_CRDS,
`helm-chart/kuberay-operator/crds` in a checkout of github.com/ray-project/kuberay.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

import ipcnn_ray

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = {one["kind"]: one for one in yaml.safe_load_all((ROOT / "cluster" / "kuberay.yaml").read_text())}
CLUSTERS = {"RayCluster": DOCUMENTS["RayCluster"]["spec"], "RayJob": DOCUMENTS["RayJob"]["spec"]["rayClusterSpec"]}
COMPOSE = yaml.safe_load((ROOT / "cluster" / "mlflow.yaml").read_text())
AWS = yaml.safe_load((ROOT / "cluster" / "aws.yaml").read_text())


def strict(schema: Any) -> Any:
    """The schema as `kubectl --validate=strict` reads it: fields that it does not know are errors."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {
        key: {name: strict(one) for name, one in value.items()}
        if key == "properties"
        else value
        if key in ("default", "enum", "required")
        else strict(value)
        for key, value in schema.items()
        if key != "format"
    }
    if "properties" in made and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


def issues(document: dict[str, Any], definition: dict[str, Any]) -> list[str]:
    version = document["apiVersion"].partition("/")[2]
    (schema,) = [one["schema"] for one in definition["spec"]["versions"] if one["name"] == version]
    closed = strict(schema["openAPIV3Schema"])
    closed["properties"]["metadata"] = {"type": "object"}
    found = Draft7Validator(closed).iter_errors(document)
    return [f"{'/'.join(map(str, one.absolute_path))}: {one.message[:120]}" for one in found]


@pytest.fixture(scope="module", params=["RayCluster", "RayJob"])
def defined(request) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    folder = os.environ.get("IPCNN_KUBERAY_CRDS")
    if not folder:
        pytest.skip("needs KubeRay's definitions: set IPCNN_KUBERAY_CRDS to their folder")
    file = Path(folder) / f"ray.io_{request.param.lower()}s.yaml"
    yield json.loads(json.dumps(DOCUMENTS[request.param])), yaml.load(file.read_text(), Loader=yaml.CSafeLoader)


def test_kuberay_admits_it_and_would_not_admit_a_slip(defined):
    document, definition = defined
    assert issues(document, definition) == []
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    spec["authOptions"]["mode"] = "tokn"
    spec["workerGroupSpecs"][0]["minReplica"] = 0
    spec["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]["resources"]["limit"] = {}
    assert len(issues(document, definition)) == 3


def test_the_strict_reading_can_fail():
    schema = {"type": "object", "properties": {"a": {"type": "object", "properties": {"b": {"type": "string"}}}}}
    definition = {"spec": {"versions": [{"name": "v1", "schema": {"openAPIV3Schema": schema}}]}}
    assert issues({"apiVersion": "x/v1", "a": {"c": 1}}, definition)


def test_the_cluster_that_stays_and_the_jobs_are_one():
    """Anchors do not reach over documents: the two are written out, and differ in the spec's volume only."""
    stays, job = copy.deepcopy(CLUSTERS["RayCluster"]), copy.deepcopy(CLUSTERS["RayJob"])
    pod = job["headGroupSpec"]["template"]["spec"]
    pod["volumes"] = [one for one in pod["volumes"] if one["name"] != "specs"]
    container = pod["containers"][0]
    container["volumeMounts"] = [one for one in container["volumeMounts"] if one["name"] != "specs"]
    assert stays == job


@pytest.mark.parametrize("kind", CLUSTERS)
def test_token_zero_workers_and_one_image(kind):
    cluster = CLUSTERS[kind]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    groups = cluster["workerGroupSpecs"]
    assert [(group["replicas"], group["minReplicas"]) for group in groups] == [(0, 0)] * 2
    assert groups[0]["priority"] > groups[1]["priority"]
    pods = [group["template"]["spec"] for group in [cluster["headGroupSpec"], *groups]]
    assert {pod["serviceAccountName"] for pod in pods} == {"ipcnn"}
    tag = AWS["docker"]["image"].rpartition("/")[2]
    assert {pod["containers"][0]["image"].rpartition("/")[2] for pod in pods} == {tag}
    assert tag == f"ipcnn:{ipcnn_ray.__version__}-ray{cluster['rayVersion']}"
    assert cluster["headGroupSpec"]["serviceType"] == "ClusterIP"
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        secret = [one for one in pod["containers"][0]["env"] if "PASSWORD" in one["name"]]
        assert secret and all("valueFrom" in one and "value" not in one for one in secret)


def test_compose_is_closed_to_others():
    services = COMPOSE["services"]
    assert services["mlflow"]["image"] == AWS["docker"]["image"].rpartition("/")[2]
    assert "ports" not in services["postgres"]
    assert [port.partition(":")[0] for port in services["mlflow"]["ports"]] == ["127.0.0.1"]
    said = {**services["mlflow"]["environment"], **services["postgres"]["environment"]}
    assert not [name for name in said if "PASSWORD" in name and not name.endswith("_FILE")]
    assert services["postgres"]["image"].partition(":")[2] not in ("", "latest")
