"""cluster/aws.yaml: Ray's own schema, Ray's own bootstrap against a pretended EC2, and what it must say."""

from __future__ import annotations

import copy
import functools
import json
import os
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import jsonschema
import pytest
import ray.autoscaler
import yaml
from packaging.requirements import Requirement
from ray.autoscaler._private import commands
from ray.autoscaler._private.aws import node_provider
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.aws.utils import resource_cache
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.v2.instance_manager.config import AutoscalingConfig
from ray.autoscaler.v2.scheduler import ResourceDemandScheduler, SchedulingRequest
from ray.autoscaler.v2.utils import ResourceRequestUtil

import ipcnn_ray

moto = pytest.importorskip("moto", reason="needs moto: pip install -e .[dev]")
ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "cluster" / "aws.yaml"
SCHEMA = json.loads(Path(ray.autoscaler.__file__).with_name("ray-schema.json").read_text())


@pytest.fixture
def raw() -> dict[str, Any]:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def aws(tmp_path_factory) -> Iterator[None]:
    """A pretended Amazon, credentials that are none, and a home that Ray may put its key pair in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("MOTO_IAM_LOAD_MANAGED_POLICIES", "true")
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        types_in = functools.cache(node_provider.list_ec2_instances)  # the pretended Amazon takes seconds to list them
        patch.setattr(node_provider, "list_ec2_instances", lambda region, credentials=None: types_in(region))
        resource_cache.cache_clear()
        with moto.mock_aws():
            yield
        resource_cache.cache_clear()


def bootstrapped(raw: dict[str, Any]) -> dict[str, Any]:
    """What `ray up` would launch: defaults filled in, instance types looked up, groups and keys made.

    `ray up` itself only warns of an instance type that there is not; here it is an error.
    """
    prepared = prepare_config(copy.deepcopy(raw))
    validate_config(prepared)
    AWSNodeProvider.fillout_available_node_types_resources(copy.deepcopy(prepared))
    return commands._bootstrap_config(prepared, no_config_cache=True)


@pytest.fixture(scope="module")
def launched(aws) -> dict[str, Any]:
    return bootstrapped(yaml.safe_load(FILE.read_text()))


def open_to_others(config: dict[str, Any]) -> set[tuple[Any, ...]]:
    """Protocol, ports and sources of every rule of the groups of every node type that lets somebody else in."""
    ec2 = boto3.client("ec2", region_name=config["provider"]["region"])
    kinds = config["available_node_types"].values()
    ids = {one for kind in kinds for one in kind["node_config"]["SecurityGroupIds"]}
    assert ids
    rules = [
        rule
        for group in ec2.describe_security_groups(GroupIds=sorted(ids))["SecurityGroups"]
        for rule in group["IpPermissions"]
    ]
    return {
        (rule["IpProtocol"], rule.get("FromPort"), rule.get("ToPort"))
        for rule in rules
        if rule["IpRanges"] or rule.get("Ipv6Ranges") or {pair["GroupId"] for pair in rule["UserIdGroupPairs"]} - ids
    }


def test_ray_admits_it_and_no_misspelled_field(raw):
    jsonschema.validate(raw, SCHEMA)
    validate_config(prepare_config(copy.deepcopy(raw)))
    raw["idle_timeout_minuts"] = raw.pop("idle_timeout_minutes")
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout_minuts"):
        jsonschema.validate(raw, SCHEMA)


@pytest.mark.slow
def test_ray_bootstraps_it_with_ssh_open_alone(launched):
    types = launched["available_node_types"]
    assert types["head"]["resources"]["CPU"] == 0
    for name in ("gpu_spot", "gpu_on_demand"):
        assert (types[name]["resources"]["CPU"], types[name]["resources"]["GPU"]) == (8, 1)
        assert types[name]["min_workers"] == 0
    assert {name: "InstanceMarketOptions" in kind["node_config"] for name, kind in types.items()} == {
        "head": False,
        "gpu_spot": True,
        "gpu_on_demand": False,
    }
    arns = {name: kind["node_config"]["IamInstanceProfile"]["Arn"] for name, kind in types.items()}
    assert arns["gpu_spot"] == arns["gpu_on_demand"] != arns["head"]
    assert open_to_others(launched) == {("tcp", 22, 22)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["head", "gpu_spot", "gpu_on_demand"])
def test_a_misspelled_instance_type_is_found(raw, aws, name):
    raw["available_node_types"][name]["node_config"]["InstanceType"] = "g5.2xlagre"
    jsonschema.validate(raw, SCHEMA)  # the schema does not see it
    with pytest.raises(ValueError, match=r"Instance type g5\.2xlagre is not available in AWS region: us-west-2"):
        bootstrapped(raw)


@pytest.mark.slow
def test_an_open_dashboard_would_be_found(raw, aws):
    rule = {"IpProtocol": "tcp", "FromPort": 8265, "ToPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}
    raw["provider"]["security_group"] = {"GroupName": "another", "IpPermissions": [rule]}
    assert open_to_others(bootstrapped(raw)) == {("tcp", 22, 22), ("tcp", 8265, 8265)}


def test_no_default_of_ray_comes_through(raw):
    """A nightly Ray would be installed, and the dashboard would listen everywhere."""
    prepared = prepare_config(copy.deepcopy(raw))
    assert prepared["setup_commands"] == prepared["head_setup_commands"] == prepared["worker_setup_commands"] == []
    said = " ".join(prepared["head_start_ray_commands"] + prepared["worker_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in said
    assert "0.0.0.0" not in said
    starts = [line for line in said.split(";") if "ray start" in line]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in line for line in starts)


@pytest.mark.slow
@pytest.mark.parametrize(("spot", "taken"), [(1.0, "gpu_spot"), (0.0, "gpu_on_demand")])
def test_spot_is_asked_first_and_demand_steps_in(launched, spot, taken):
    """Ray's own scheduler: one GPU is wanted; spot is there, or a launch of it has just failed."""
    types = AutoscalingConfig(launched, skip_content_hash=True).get_node_type_configs()
    reply = ResourceDemandScheduler(event_logger=None).schedule(
        SchedulingRequest(
            disable_launch_config_check=True,
            node_type_configs=types,
            max_num_nodes=launched["max_workers"] + 1,
            resource_requests=ResourceRequestUtil.group_by_count([ResourceRequestUtil.make({"GPU": 1, "CPU": 1})]),
            recoverable_resource_availabilities={"gpu_spot": spot},
        )
    )
    assert {one.instance_type: one.count for one in reply.to_launch if one.instance_type != "head"} == {taken: 1}
    assert reply.infeasible_resource_requests == []


def test_its_versions_are_those_of_the_project(raw):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tag = raw["docker"]["image"].rpartition(":")[2]
    version, _, ray_version = tag.partition("-ray")
    assert version == ipcnn_ray.__version__
    wanted = next(r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert ray_version in wanted.specifier
    assert f"\nray=={ray_version} " in (ROOT / "cluster" / "constraints.txt").read_text()


def test_it_holds_no_credential_and_dated_prices():
    text = FILE.read_text()
    assert "AKIA" not in text
    assert "secret" not in text.lower().replace("no secret", "")
    assert re.search(r"USD per hour, list prices of 20\d\d-\d\d", text)
