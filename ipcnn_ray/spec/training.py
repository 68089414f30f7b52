"""The loss, train, eval and compute sections: how a network is trained and measured, and with which resources."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
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
    Share,
)

MetricName = Annotated[str, NameIn(METRICS, without=EVERY_RUN, why_without="every run records it; drop it")]


class FilterLoss(Section):
    """Minus the mutual information between a filter's maps and the part templates, in nats, summed over filters."""

    location: ClassVar = ("loss", "filter")
    form: Literal["exact", "zconst", "single", "released"] = "exact"
    """`exact`: the paper's loss with its exact gradient over the global batch. `zconst`, `single`: the gradients of the
    two lines of the paper's equation 4. `released`: the gradient of the authors' code, with its centroid in place of
    the peak, its temperature and its weights; it has no value. Default: that of the template, `released` for
    template.shape: released."""
    weight: Positive = 0.01
    """lambda: factor on the filter loss, added to the classification loss (mean over images). Default for `released`:
    0.1, its `mag`."""
    schedule: Literal["paper", "constant", "epoch"] = "constant"
    """`constant`: lambda is weight. `paper`: lambda of a filter is weight / epoch * mean over images of its maximum
    activation (Zhang et al., section 3). `epoch`: lambda is weight / epoch, the default for `released`."""
    learn_beta: Annotated[Flag, OmitDefaultFromDigest()] = False
    """Learn a beta for each filter. It follows the gradient of the filter loss with the form `exact`, and approaches
    3 / the spread of the filter's activations with `released`. It is also the beta of the mask, which is at the peak
    with `exact` and at the centroid with `released`. Default: true for template.shape: released with such a mask and
    without template.narrowing."""
    beta_rate: Annotated[Positive, OmitDefaultFromDigest()] = 0.05
    """Learning rate of the betas relative to train.learning_rate (released: 0.05)."""


class Diversity(Section):
    """A loss that keeps the filters of an interpretable layer from firing in the same cells, on the maps before the
    mask: mean over the images of the global batch that show an object, summed over the layers. The scale of a map does
    not count, and filters that are zero in an image are left out."""

    location: ClassVar = ("loss", "diversity")
    weight: Positive = 1.0
    """Factor on the loss, added to the classification loss."""
    form: Literal["overlap", "largest"] = "overlap"
    """`overlap`: mean over pairs of filters of their common share of the cells. `largest`: the share of each filter in
    cells where some other filter has more than `margin` of its map, as in MA-CNN (Zheng et al., ICCV 2017). Shares
    are of the map, to the `power`, divided by its sum."""
    power: Annotated[Number, Field(ge=1)] = 1.0
    """Exponent of the maps: the larger, the more their peaks count, and the less what surrounds them."""
    margin: Share = 0.02
    """Share of another filter's map in one cell that counts as noise, with the form `largest`."""


class Loss(Section):
    """The classification loss (mean over images), the filter loss, and the diversity loss."""

    location: ClassVar = ("loss",)
    classification: Annotated[Literal["logistic", "softmax"], OmitDefaultFromDigest()] = "logistic"
    """`logistic`: log(1 + exp(-label * score)), summed over the categories, each against all others. `softmax`: for
    several categories without negatives."""
    filter: FilterLoss | None = None
    """Filter loss. Default: on with a template; off, and not allowed, for `template.shape: none`. `null` with a
    template: the mask without a filter loss; `template.mask: none` is the filter loss without a mask."""
    diversity: Annotated[Diversity | None, OmitDefaultFromDigest()] = None
    """Diversity loss, with any template or none, and with or without a filter loss. A run that sets template.shape to
    none keeps it; a plain control sets it to null, too. Default: off."""


class Train(Section):
    """Stochastic gradient descent."""

    location: ClassVar = ("train",)
    # ExperimentSpec requires the fields that a recipe does not provide.
    model_config = ConfigDict(json_schema_extra=lambda schema: schema.pop("required"))

    epochs: Annotated[Integer, Field(ge=0)]
    """Passes over the training items. 0: the network is measured once with its initial weights, as epoch 0; the other
    fields of this section have no effect on it."""
    batch_size: Count = 64
    """Images per step over all workers. An incomplete last batch of an epoch is dropped."""
    learning_rate: Positive = 0.01
    """Learning rate of the first epoch."""
    final_learning_rate: Positive | None = None
    """Learning rate of the last epoch. Default: that of the first."""
    decay: Annotated[Literal["log", "cosine"], OmitDefaultFromDigest()] = "log"
    """Schedule from the first to the final learning rate: equal logarithmic steps per epoch, or half a cosine."""
    decay_epochs: Annotated[Count | None, OmitDefaultFromDigest()] = None
    """Epoch from which on the learning rate is the final one. Default: the last."""
    warmup_epochs: Annotated[Integer, Field(ge=0), OmitDefaultFromDigest()] = 0
    """Epochs before the decay, in which the learning rate rises in equal steps to `learning_rate`."""
    optimizer: Annotated[Literal["sgd", "adamw"], OmitDefaultFromDigest()] = "sgd"
    """`sgd`: with momentum and weight decay as an L2 penalty. `adamw`: Adam with decoupled weight decay."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Momentum of SGD."""
    weight_decay: NotNegative = 5.0e-4
    """Weight decay of weights; biases have none."""
    new_weight_rate: Annotated[Positive, OmitDefaultFromDigest()] = 1.0
    """Learning rate of the weights of layers without pretrained weights, relative to learning_rate."""
    new_bias_rate: Annotated[Positive, OmitDefaultFromDigest()] = 1.0
    """Learning rate of the biases of layers without pretrained weights, relative to learning_rate (released: 2)."""
    last_bias_rate: Annotated[Positive, OmitDefaultFromDigest()] = 1.0
    """Learning rate of the bias of the highest pretrained layer, relative to learning_rate (released: 5)."""
    decay_loaded_biases: Annotated[Flag, OmitDefaultFromDigest()] = False
    """Apply the weight decay to the biases of pretrained layers too (released: yes)."""
    freeze_through: str | None = None
    """Layers up to and including this convolution keep their pretrained weights; their outputs can be cached."""
    precision: Literal["auto", "float32"] = "auto"
    """`auto`: bfloat16 autocast of the trained layers on GPUs, and on processors with AVX512-BF16 or AMX, if all
    workers of the run have it; float32 elsewhere. A run keeps the precision that it began with, wherever it is resumed.
    `float32`: everywhere, so that runs on different machines, or with different numbers of workers, differ less.
    Losses, frozen layers and evaluation are always float32. Recorded as the tag `ipcnn.precision`."""


class Eval(Section):
    """What is measured after an epoch."""

    location: ClassVar = ("eval",)
    every: Count = 1
    """Epochs between evaluations. The last epoch is always evaluated."""
    top_images: Annotated[Integer, Field(ge=2)] = 100
    """Number of images with the strongest activation, per filter and landmark, for location instability and landmark
    tracking."""
    few_images: Annotated[Integer, Field(ge=2), OmitDefaultFromDigest()] = 30
    """Number of images with the strongest activation, per filter and landmark, for `landmark_tracking_few` and
    `following_share_few`."""
    images: Literal["all", "validation"] = "all"
    """Object images for location instability (released code: training and validation images). `keypoint_error` needs
    `all`: it is fitted on training images."""
    instability: Annotated[Literal["paper", "released"], OmitDefaultFromDigest()] = "paper"
    """Category on which a filter is measured, of several. `paper`: the one with the lowest instability. `released`: the
    one whose images activate the filter most."""
    layer: str | None = None
    """Layer whose metrics are those of the run. Default: the highest interpretable layer."""
    convergence_share: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """A run has converged in the first epoch with a validation error of at most best / share."""
    measures: Annotated[tuple[MetricName, ...], OmitDefaultFromDigest()] = ()
    """Metrics besides those that every run records, on the same object images unless they need other classes. Recorded
    as `<metric>` (of `eval.layer`) and `<metric>_<layer>`. Some are slow: `stability` and `peak_stability` run the
    whole network again on the object images, `part_interpretability` the layers that are not cached, and `ablation_own`
    and `ablation_others` together the layers above, once per filter and validation image."""
    ablation_filters: Annotated[Count | None, OmitDefaultFromDigest()] = None
    """Number of filters of a layer to ablate, at equal distances. Default: all."""


class Compute(Section):
    """Resources of a run. Not part of the digest: they do not change what is computed, but for the rounding of
    `speed: fast`."""

    location: ClassVar = ("compute",)
    workers: Count = 1
    """Data-parallel workers of one run."""
    cpus_per_worker: Count = 1
    """Cores of a worker, and its number of torch threads."""
    gpus_per_worker: NotNegative | None = None
    """GPUs of a worker. Default: 0 on a cluster without GPUs, else 1, or for runs of one worker of which more can go on
    at the same time than there are GPUs, 1/2 or 1/4: as far as the cores and an estimate of their memory allow."""
    concurrent_runs: Count | None = None
    """Runs of a search at the same time. Default: as many as fit."""
    retries: Annotated[Integer, Field(ge=0)] = 0
    """Retries after an error in the run itself. Restarts after lost workers do not count."""
    cache_frozen: Flag = True
    """Keep the outputs of frozen layers on disk instead of computing them every epoch."""
    system_metrics: Flag = True
    """Record processor, memory, disk, network and GPU of every worker with each epoch, at most every 10 s, as metrics
    `system/rank_0/...`, which MLflow shows on a page of their own."""
    speed: Literal["exact", "fast"] = "exact"
    """`exact`: on a GPU deterministic kernels, so that a resumed run has the same bytes, and float32 without TF32.
    `fast`: on a GPU the fastest kernels, float32 by TF32 in convolutions, evaluation and frozen layers included; on any
    device maps in the format channels_last and a fused step of the optimizer. The numbers then differ by rounding, and
    from one run to the next. With one worker on a GPU, steps are replayed from a CUDA graph, one for each epoch. The
    first replayed step of a process is compared with the step itself; if they differ, a warning says so and no graph is
    used. Recorded as the tag `ipcnn.speed`."""
    models: Literal["best", "all", "none"] = "best"
    """Runs whose model is stored as a loadable MLflow model: the best of a search, or its Pareto front, with its
    control (the first repeat of each), all, or none."""
