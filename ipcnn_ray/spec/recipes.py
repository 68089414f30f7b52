"""Named recipes of training: what a spec takes for the fields that it leaves out.

`released`: the authors' code, network by network (network_init.m, learn_icnn.m, learn_icnn_multiclass.m and
our_cnn_train.m of zqs1022/interpretableCNN). `modern`: ours, a third of the epochs.

A field that the spec gives is the spec's. The resolved spec holds every value and the recipe's name.
"""

from __future__ import annotations

from typing import Any, Literal

Recipe = Literal["released", "modern"]
Raw = dict[str, Any]

BATCH = {"alexnet": 512, "vgg_m": 196, "vgg_s": 128, "vgg16": 32}
RATE = {"alexnet": 30.0, "vgg_m": 30.0, "vgg_s": 10.0, "vgg16": 1.0}
"""Factor on the learning rates 1e-4 to 1e-5."""


def recipe(name: Recipe, network: str, categories: int, classification: str, loaded: bool) -> Raw:
    """Section -> field -> value, for so many categories. classification: `logistic` or `softmax`.
    loaded: whether some layers start from pretrained weights.

    Networks other than the paper's four have no released recipe; they get VGG-16's batch size and rate.
    """
    return _released(network, categories, classification, loaded) if name == "released" else _modern(categories)


def _released(network: str, categories: int, classification: str, loaded: bool) -> Raw:
    batch, factor = BATCH.get(network, 32), RATE.get(network, 1.0)
    magnitude = 0.1
    if categories == 1:
        epochs, decay_epochs, first = 50, 10, factor * 1e-4
    else:
        epochs, decay_epochs, first = 80, 80, factor * categories * 1e-4
        if classification == "softmax":
            first /= 5 if categories <= 10 else 50
            magnitude *= 0.2 if categories <= 10 else 0.02
        elif categories > 10:
            first /= 10
    return {
        "model": {"dropout": 0.8, "appended_mask": "pooled"},
        "template": {"shape": "released", "tau": None, "width": 2.0},
        "filter": {"form": "released", "weight": significant(magnitude)},
        "train": {
            "epochs": epochs,
            "batch_size": batch,
            "optimizer": "sgd",
            "learning_rate": significant(first),
            "final_learning_rate": significant(first / 10),
            "decay": "log",
            "decay_epochs": decay_epochs,
            "warmup_epochs": 0,
            "momentum": 0.9,
            "weight_decay": 5e-4,
            "new_bias_rate": 2.0,
            **({"last_bias_rate": 5.0, "decay_loaded_biases": True} if loaded else {}),
        },
    }


def _modern(categories: int) -> Raw:
    return {
        "train": {
            "epochs": 16 if categories == 1 else 26,
            "batch_size": 64,
            "optimizer": "adamw",
            "learning_rate": 2e-4,
            "final_learning_rate": 2e-6,
            "decay": "cosine",
            "warmup_epochs": 1,
            "weight_decay": 0.01,
        },
    }


def significant(value: float) -> float:
    """A positive number to ten digits, without the noise that a product has in its last ones."""
    return float(f"{value:.10g}")
