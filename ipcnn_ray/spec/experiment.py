"""The experiment: what to train on what, and how. Never where: places and credentials come from the environment.

Every model here is frozen and refuses unknown fields; every field says what it is and in which unit.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ipcnn_ray.spec.base import Count, Flag, Integer, NotNegative, Number, OpenShare, Positive, Says, Section, Slug
from ipcnn_ray.spec.networks import NETWORKS, Network, NetworkName
from ipcnn_ray.spec.search import Search

Category = Literal["bird", "cat", "cow", "dog", "horse", "sheep"]
Landmark = Literal["head", "neck", "torso", "nose"]


class DrawnAnimals(Section):
    """Procedurally drawn animals with known landmarks; needs no download. Runs on it are tagged as drawn."""

    kind: Literal["drawn_animals"]
    """Drawn on the spot."""
    category: Category = "cow"
    """The animal that the positive images show."""
    objects: Annotated[Integer, Field(ge=10, le=100_000)] = 400
    """Number of drawn objects (positive images, before mirroring)."""
    negatives: Annotated[Integer, Field(ge=10, le=100_000)] = 250
    """Number of images of clutter without an animal."""
    landmarks: Annotated[tuple[Landmark, ...], Field(min_length=1)] = ("head", "neck", "torso")
    """The landmarks that location instability is taken over."""
    train_share: OpenShare = 0.75
    """Share of objects and of negatives in the training split; every index in round(linspace(1, n, round(share n)))."""
    drawing_seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of the drawing, apart from the seed of training."""


class VocPart(Section):
    """One animal category of Pascal VOC Part against fixed negatives (Zhang et al.'s released data layout)."""

    kind: Literal["voc_part"]
    """Real photographs, in the folder that IPCNN_DATA names."""
    category: Category
    """The animal of the positive images."""
    annotation: Literal["landmark_files", "part_masks"] = "landmark_files"
    """`landmark_files`: truth_part*.mat of Zhang et al.; `part_masks`: the dataset's own Annotations_Part/*.mat."""
    landmarks: Annotated[tuple[Landmark, ...], Field(min_length=1)] = ("head", "neck", "torso")
    """The landmarks that location instability is taken over."""
    negatives: Count = 1000
    """Number of negative images used, from 00001.JPEG up."""
    min_side: NotNegative = 50
    """Objects whose box covers fewer than min_side^2 square pixels are left out."""
    positive_share: OpenShare = 0.75
    """Objects and their mirror images are repeated until they are this share of all items (released: 3 to 1)."""
    train_share: OpenShare = 0.9
    """Share of items in the training split; every index in round(linspace(1, n, round(share n)))."""


Data = Annotated[DrawnAnimals | VocPart, Field(discriminator="kind")]


class Weights(Section):
    """Pretrained weights: a file name, looked up in the folder that IPCNN_WEIGHTS names."""

    file: Annotated[
        str,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*\.(npz|safetensors)$"),
        Says("must be the name of a .npz or .safetensors file, without its folder; IPCNN_WEIGHTS names the folder"),
    ]
    """Name of the file, without a folder: .npz or .safetensors, arrays `<layer>_w` (OIHW) and `<layer>_b`."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    """The layers to load, in the network's names. Runs in which a convolution of the original network is not
    loaded are tagged as using partial weights."""
    channels: Literal["rgb", "bgr"] = "bgr"
    """Channel order of the images that the file's first layer was trained on (Caffe: bgr). Networks here see RGB."""


class Model(Section):
    """Which network, and which of its layers are interpretable."""

    network: NetworkName
    """compact (four small convolutions, 64 px), alexnet (Caffe's), vgg_m, vgg_s or vgg16."""
    appended_layer: Flag = True
    """Append one more convolution behind the highest one, as the interpretable networks have it."""
    interpretable_layers: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Layers whose maps the templates act on, lowest first. Default: the highest convolution and the appended one.
    With `template.shape: none` these are the layers that location instability is measured on."""
    dropout: Annotated[Number, Field(ge=0, lt=1)] | None = None
    """Share of units dropped behind each hidden fully connected layer. Default: the network's own."""
    weights: Weights | None = None
    """Pretrained weights; without them every layer starts from random numbers."""

    @property
    def table(self) -> Network:
        return NETWORKS[self.network]

    @property
    def convs(self) -> tuple[str, ...]:
        """Names of all convolutions that this model has, lowest first."""
        return self.table.convs + ((self.table.appended.name,) if self.appended_layer else ())


class GradientTemplate(Section):
    """A template that falls off with distance: tau * max(1 - beta * ||[i,j] - mu|| / n, -1)."""

    shape: Literal["gradient"]
    """Falls off with distance."""
    norm: Literal["l1", "l2"] = "l1"
    """The distance: l1 (Zhang et al.) or l2."""
    beta: Positive = 2.0
    """Slope; at a distance of n / beta cells the template crosses zero. Part-template paper 2, Zhang et al. 4."""
    tau: Positive | None = None
    """Height of the template. Default: 0.5 / n^2, n the side of the layer's map in cells."""


class UniformTemplate(Section):
    """A template that is tau inside beta * ||[i,j] - mu|| / n < gamma and -tau outside."""

    shape: Literal["uniform"]
    """Flat inside a radius, and outside it."""
    norm: Literal["l1", "l2"] = "l1"
    """The distance: l1 or l2."""
    beta: Positive = 2.0
    """Inverse scale of the distance; only gamma / beta matters for a uniform template."""
    gamma: Positive = 2.0
    """Threshold of the scaled distance: the radius is n * gamma / beta cells."""
    tau: Positive | None = None
    """Height of the template. Default: 0.5 / n^2, n the side of the layer's map in cells."""


class NoTemplate(Section):
    """The plain network: no mask and no filter loss. The control of every comparison."""

    shape: Literal["none"]
    """No template: the plain network."""


Template = Annotated[GradientTemplate | UniformTemplate | NoTemplate, Field(discriminator="shape")]


class FilterLoss(Section):
    """Minus the mutual information between a filter's maps and the part templates, in nats, summed over filters."""

    form: Literal["exact"] = "exact"
    """`exact`: the paper's loss with its exact gradient over the global batch."""
    weight: Positive = 0.01
    """lambda: weight of the filter loss beside the classification loss (mean over images)."""
    schedule: Literal["paper", "constant"] = "constant"
    """`constant`: lambda stays. `paper`: lambda of a filter is weight / epoch * mean over images of its maximum
    activation (Zhang et al., section 3)."""


class Loss(Section):
    """Classification loss log(1 + exp(-label * score)), mean over images, and the filter loss beside it."""

    filter: FilterLoss | None = None
    """Filter loss. Default: on when there is a template, off (and not allowed) for `template.shape: none`.
    `null` with a template: the mask alone, without a filter loss."""


class Train(Section):
    """Stochastic gradient descent."""

    epochs: Count
    """Passes over the training items."""
    batch_size: Count = 64
    """Images per step over all workers together; an incomplete last batch of an epoch is dropped."""
    learning_rate: Positive = 0.01
    """Learning rate of the first epoch."""
    final_learning_rate: Positive | None = None
    """Learning rate of the last epoch, reached in logarithmic steps per epoch. Default: the same as the first."""
    momentum: Annotated[Number, Field(ge=0, lt=1)] = 0.9
    """Share of the last step that the next one keeps."""
    weight_decay: NotNegative = 5.0e-4
    """L2 penalty on weights (not on biases)."""
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
    layer: str | None = None
    """Layer whose location instability is the run's. Default: the highest interpretable layer."""
    convergence_share: Annotated[Number, Field(gt=0, le=1)] = 0.9
    """A run has converged in the first epoch whose validation error is at most best / share."""


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
    """Runs whose model is stored as a loadable MLflow model: the best of a search (with its control), all, or none."""


class ExperimentSpec(Section):
    """One YAML file: one experiment, a single run or a search."""

    name: Slug
    """Name of the experiment."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """Seed of initial weights, order of images, dropout, and the search."""
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
        from ipcnn_ray.spec.resolve import with_defaults

        return with_defaults(raw)

    @model_validator(mode="after")
    def _check(self) -> Self:
        from ipcnn_ray.spec.checks import check

        check(self)
        return self
