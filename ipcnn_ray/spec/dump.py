"""A resolved spec as YAML: loaded again, it is the same experiment."""

from __future__ import annotations

import yaml

from ipcnn_ray.spec.expand import experiment_id
from ipcnn_ray.spec.experiment import ExperimentSpec


def resolved_yaml(spec: ExperimentSpec) -> str:
    """Every field with its value, defaults included; the head names the experiment's id."""
    body = yaml.safe_dump(spec.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return f"# Resolved spec of {experiment_id(spec)}\n{body}"
