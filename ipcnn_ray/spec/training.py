"""The loss, train and eval sections: how the network is trained, and what is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from ipcnn_ray.spec.extensions import INSTABILITY, METRICS
from ipcnn_ray.spec.section import (
    Count,
    Flag,
    Integer,
    NameIn,
    NotNegative,
    Number,
    OmitDefaultFromDigest,
    Positive,
    Section,
)

MetricName = Annotated[str, NameIn(METRICS, without=(INSTABILITY,))]


class FilterLoss(Section):
    """Minus the mutual information between a filter's maps and the part templates, in nats, summed over filters."""

    form: Literal["exact", "zconst", "single", "released"] = "exact"
    """`exact`: the paper's loss with its exact gradient over the global batch. `zconst`, `single`: with the gradients
    of the two lines of the paper's equation 4. `released`: the gradient of the authors' code, its centroid in place of
    the peak, its temperature and its weights; it has no value, and is the default with template.shape: released."""
    weight: Positive = 0.01
    """lambda: weight of the filter loss beside the classification loss (mean over images). Default for `released`: 0.1,
    its `mag`."""
    schedule: Literal["paper", "constant", "epoch"] = "constant"
    """`constant`: lambda stays. `paper`: lambda of a filter is weight / epoch * mean over images of its maximum
    activation (Zhang et al., section 3). `epoch`: weight / epoch, the default for `released`."""
    learn_beta: Annotated[Flag, OmitDefaultFromDigest()] = False
    """Each filter has a beta of its own. `exact`: it follows the gradient of the filter loss. `released`: it is drawn
    to 3 over the spread of the filter's activations; the default there, with template.shape: released."""
    beta_rate: Annotated[Positive, OmitDefaultFromDigest()] = 0.05
    """Learning rate of the betas relative to train.learning_rate (released: 0.05)."""


class Loss(Section):
    """The classification loss, mean over images, and the filter loss beside it."""

    classification: Annotated[Literal["logistic", "softmax"], OmitDefaultFromDigest()] = "logistic"
    """`logistic`: log(1 + exp(-label * score)), summed over the categories, each against all the rest. `softmax`: one
    category among several, for data without negatives."""
    filter: FilterLoss | None = None
    """Filter loss. Default: on when there is a template, off (and not allowed) for `template.shape: none`.
    `null` with a template: the mask alone, without a filter loss."""


class Train(Section):
    """Stochastic gradient descent."""

    # A recipe gives what is required; see ExperimentSpec.
    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required"))

    epochs: Count
    """Passes over the training items."""
    batch_size: Count = 64
    """Images per step over all workers together; an incomplete last batch of an epoch is dropped."""
    learning_rate: Positive = 0.01
    """Learning rate of the first epoch."""
    final_learning_rate: Positive | None = None
    """Learning rate of the last epoch, reached in logarithmic steps per epoch. Default: the same as the first."""
    decay: Annotated[Literal["log", "cosine"], OmitDefaultFromDigest()] = "log"
    """How the learning rate goes from the first to the final one: in equal logarithmic steps, or half a cosine."""
    decay_epochs: Annotated[Count | None, OmitDefaultFromDigest()] = None
    """The final learning rate is reached in this epoch and stays. Default: the last."""
    warmup_epochs: Annotated[Integer, Field(ge=0), OmitDefaultFromDigest()] = 0
    """So many epochs come first in which the learning rate rises in equal steps to the first one; the decay begins
    behind them."""
    optimizer: Annotated[Literal["sgd", "adamw"], OmitDefaultFromDigest()] = "sgd"
    """`sgd`: with momentum, weight decay as an L2 penalty. `adamw`: Adam with decoupled weight decay."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Share of the last step that the next one keeps."""
    weight_decay: NotNegative = 5.0e-4
    """L2 penalty on weights (not on biases)."""
    new_bias_rate: Annotated[Positive, OmitDefaultFromDigest()] = 1.0
    """Learning rate of the biases of layers that start from random numbers, relative to learning_rate (released: 2)."""
    last_bias_rate: Annotated[Positive, OmitDefaultFromDigest()] = 1.0
    """The same for the bias of the highest layer that was loaded (released: 5)."""
    decay_loaded_biases: Annotated[Flag, OmitDefaultFromDigest()] = False
    """Whether the weight decay is on the biases of loaded layers, too (released: yes)."""
    freeze_through: str | None = None
    """Layers up to and including this convolution keep their loaded weights; their outputs can be cached."""
    precision: Literal["auto", "float32"] = "auto"
    """`auto`: bfloat16 autocast on GPUs that have it, float32 elsewhere; the filter loss is float32 always."""


class Eval(Section):
    """What is measured after an epoch."""

    every: Count = 1
    """Evaluate after every so many epochs; the last epoch always."""
    top_images: Annotated[Integer, Field(ge=2)] = 100
    """Location instability takes, per filter and landmark, this many images with the strongest activation."""
    images: Literal["all", "validation"] = "all"
    """Object images that location instability is taken over (released code: training and validation together)."""
    instability: Annotated[Literal["paper", "released"], OmitDefaultFromDigest()] = "paper"
    """Category on which a filter is measured when there are several. `paper`: the one in which it is the most stable.
    `released`: the one whose images activate it the most. For one category they are the same."""
    layer: str | None = None
    """Layer whose location instability is the run's. Default: the highest interpretable layer."""
    convergence_share: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """A run has converged in the first epoch whose validation error is at most best / share."""
    measures: Annotated[tuple[MetricName, ...], OmitDefaultFromDigest()] = ()
    """Measures beside location instability, on the same object images unless they need other classes. Recorded as
    `<measure>` (of `eval.layer`) and `<measure>_<layer>`. `stability` runs the whole network once more on the object
    images, `part_interpretability` what is not cached twice; `ablation_own` and `ablation_others` together run what
    lies above a layer once per filter and validation image."""
    ablation_filters: Annotated[Count | None, OmitDefaultFromDigest()] = None
    """Ablate this many filters of a layer, at equal distances. Default: all."""


class Compute(Section):
    """Resources of a run. Not part of the digest: they do not change what is computed."""

    workers: Count = 1
    """Data-parallel workers of one run."""
    cpus_per_worker: Count = 1
    """Cores of a worker, and its number of torch threads."""
    gpus_per_worker: NotNegative | None = None
    """GPUs of a worker. Default: 1 on a cluster that has GPUs, else 0."""
    concurrent_runs: Count | None = None
    """Runs of a search at the same time. Default: as many as fit."""
    retries: Annotated[Integer, Field(ge=0)] = 0
    """Retries after an error in the run itself. Restarts after lost workers do not count."""
    cache_frozen: Flag = True
    """Keep the outputs of frozen layers on disk instead of computing them every epoch."""
    models: Literal["best", "all", "none"] = "best"
    """Runs whose model is stored as a loadable MLflow model: the best of a search, or its Pareto front, with its
    control (the first repeat of each), all, or none."""
