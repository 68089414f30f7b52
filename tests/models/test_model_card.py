from __future__ import annotations

from ipcnn_ray.models.build import build
from ipcnn_ray.models.model_card import layer_rows, model_card_markdown, usage_markdown
from ipcnn_ray.spec.model import Model
from ipcnn_ray.spec.template import GradientTemplate, NoTemplate, UniformTemplate

COMPACT, L1 = Model(network="compact"), GradientTemplate(shape="gradient")


def test_the_rows_of_alexnet_behind_frozen_layers():
    rows = {row.name: row for row in layer_rows(Model(network="alexnet"), L1, "conv3")}
    assert " ".join(rows) == "conv1 pool1 conv2 pool2 conv3 conv4 conv5 conv6 pool6 fc7 fc8 fc9"
    conv2, conv6, pool6 = rows["conv2"], rows["conv6"], rows["pool6"]
    assert (conv2.kind, conv2.channels, conv2.side) == ("conv 5x5, 2 groups", 256, 27)
    assert (conv2.receptive_field, conv2.stride) == (51, 8)
    assert (conv2.trainable, conv2.frozen) == (0, 256 * 48 * 25 + 256)
    assert (conv6.side, conv6.receptive_field, conv6.stride, conv6.interpretable) == (13, 195, 16, True)
    assert (conv6.trainable, conv6.frozen) == (256 * 256 * 9 + 256, 0)
    assert (pool6.kind, pool6.channels, pool6.side) == ("max pool 3x3", 256, 6)
    assert [row.name for row in rows.values() if row.interpretable] == ["conv5", "conv6"]
    parameters = sum(p.numel() for p in build(COMPACT, L1, 0).parameters())
    assert sum(row.trainable for row in layer_rows(COMPACT, L1)) == parameters


def test_the_page_of_compact():
    page = model_card_markdown(COMPACT, UniformTemplate(shape="uniform", norm="l2", gamma=0.5), "conv1")
    assert page.splitlines() == [
        "# compact: uniform L2 template, beta 2, gamma 0.5, tau 0.5 / n^2",
        "",
        "Images of 64 x 64 pixels, RGB. Interpretable layers: conv4, conv5. 65,281 parameters are trained, "
        "1,216 are frozen.",
        "",
        "| layer | kind | channels | map (cells) | receptive field (px) | stride (px) | trained parameters | |",
        "|---|---|---|---|---|---|---|---|",
        "| conv1 | conv 5x5 | 16 | 32 x 32 | 5 | 2 | 0 | frozen |",
        "| conv2 | conv 3x3 | 32 | 32 x 32 | 9 | 2 | 4,640 | |",
        "| pool2 | max pool 2x2 | 32 | 16 x 16 | 11 | 4 | 0 | |",
        "| conv3 | conv 3x3 | 32 | 16 x 16 | 19 | 4 | 9,248 | |",
        "| conv4 | conv 3x3 | 32 | 16 x 16 | 27 | 4 | 9,248 | interpretable |",
        "| conv5 | conv 3x3 | 32 | 16 x 16 | 35 | 4 | 9,248 | interpretable |",
        "| pool5 | max pool 4x4 | 32 | 4 x 4 | whole image | | 0 | |",
        "| fc6 | fully connected | 64 | 1 x 1 | whole image | | 32,832 | |",
        "| fc7 | fully connected | 1 | 1 x 1 | whole image | | 65 | |",
    ]


def test_the_rows_of_a_pooled_head():
    model = Model(network="alexnet", head="average_pool")
    rows = layer_rows(model, L1, categories=3)[-3:]
    assert [(row.name, row.kind, row.channels, row.side, row.trainable) for row in rows] == [
        ("conv6", "conv 3x3", 256, 13, 256 * 256 * 9 + 256),
        ("global_pool", "global average pool", 256, 1, 0),
        ("fc7", "fully connected", 3, 1, 3 * 256 + 3),
    ]
    rows = layer_rows(model.model_copy(update={"head": "max_pool", "appended_mask": "pooled"}), L1)[-3:]
    assert [(row.kind, row.side) for row in rows[:2]] == [("max pool 3x3", 6), ("global max pool", 1)]


def test_layers_of_the_plain_network_are_measured():
    page = model_card_markdown(COMPACT, NoTemplate(shape="none"))
    assert page.startswith("# compact: no template (the plain network)\n")
    assert "Measured layers: conv4, conv5." in page
    assert GradientTemplate(shape="gradient", beta=4, tau=0.25).describe() == "gradient L1 template, beta 4, tau 0.25"


def test_how_a_model_is_loaded():
    """The code of the README runs, with another model in place of the record."""
    text = usage_markdown(COMPACT, ("cow",))
    code = text.partition("```python\n")[2].partition("```")[0].replace("{uri}", "runs:/1/model")
    asked: list[str] = []

    class Record:
        @staticmethod
        def load_model(uri: str) -> object:
            asked.append(uri)
            return lambda crops: crops.mean((1, 2, 3))

    names: dict[str, object] = {}
    code = code.replace("import mlflow, torch", "import torch").replace("mlflow.pytorch", "record")
    exec(code, {"record": Record}, names)
    assert asked == ["runs:/1/model"]
    assert names["logits"].shape == (2,) and names["crops"].shape == (2, 3, 64, 64)
    assert "positive: the crop shows a cow" in text
    assert "[N, 2]; in the order cow, dog" in usage_markdown(COMPACT, ("cow", "dog"))
