"""The experiment: what to train on what, and how. Never where: places and credentials come from the environment.

Every model here is frozen and refuses unknown fields; every field says what it is and in which unit.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from ipcnn_ray.spec.data import Data
from ipcnn_ray.spec.defaults import Recipe
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.search import Search
from ipcnn_ray.spec.section import Count, Flag, Integer, NotNegative, OmitDefaultFromDigest, Section, Slug
from ipcnn_ray.spec.template import Template
from ipcnn_ray.spec.training import Eval, Loss, Train


class Compute(Section):
    """How much of a cluster a run may use. Not part of the digest: it does not change what is computed."""

    workers: Count = 1
    """Data-parallel workers of one run."""
    cpus_per_worker: Count = 1
    """Cores of a worker, and its number of torch threads."""
    gpus_per_worker: NotNegative | None = None
    """GPUs of a worker. Default: 1 on a cluster that has GPUs, else 0."""
    concurrent_runs: Count | None = None
    """Runs of a search at the same time. Default: as many as fit."""
    retries: Annotated[Integer, Field(ge=0)] = 0
    """Tries again after an error in the run itself. Lost workers are restarted without using these up."""
    cache_frozen: Flag = True
    """Keep the outputs of frozen layers on disk instead of computing them every epoch."""
    models: Literal["best", "all", "none"] = "best"
    """Runs whose model is stored as a loadable MLflow model: the best of a search, or its Pareto front, with its
    control (of repeats the first one), all, or none."""


def _without_recipe(schema: dict[str, Any]) -> None:
    """What a recipe gives is required in the JSON Schema where there is none."""
    schema["required"] = [name for name in schema["required"] if name not in ("template", "train")]
    trained = {"required": ["train"], "properties": {"train": {"required": ["epochs"]}}}
    schema["allOf"] = [
        {"if": {"properties": {"recipe": {"enum": [None, "modern"]}}}, "then": {"required": ["template"]}},
        {"if": {"properties": {"recipe": {"type": "null"}}}, "then": trained},
    ]


class ExperimentSpec(Section):
    """One YAML file: one experiment, a single run or a search."""

    model_config = ConfigDict(json_schema_extra=_without_recipe)

    name: Slug
    """Name of the experiment."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of initial weights, order of images, dropout, and the search."""
    recipe: Annotated[Recipe | None, OmitDefaultFromDigest()] = None
    """Where fields that are left out come from. `released`: training as in the authors' code, network by network.
    `modern`: ours, faster. Default: the fields' own defaults."""
    data: Data
    """The images and their landmarks."""
    model: Model
    """Which network, and which of its layers are interpretable."""
    template: Template
    """The part template of the interpretable layers."""
    loss: Loss = Loss()
    """The filter loss beside the classification loss."""
    train: Train
    """How the network is trained."""
    eval: Eval = Eval()
    """What is measured after an epoch."""
    compute: Compute = Compute()
    """How much of a cluster a run may use; not part of the digest."""
    search: Search | None = None
    """The runs of this experiment. Default: a single one."""

    @model_validator(mode="before")
    @classmethod
    def _resolve(cls, raw: object) -> object:
        """Defaults that depend on other sections are written out, so that a resolved spec says everything."""
        from ipcnn_ray.spec.defaults import with_defaults

        return with_defaults(raw)

    @model_validator(mode="after")
    def _check(self) -> Self:
        from ipcnn_ray.spec.validation import check

        check(self)
        return self
