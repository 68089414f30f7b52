import math

import numpy as np
import pytest
import torch
from fakes.training import InProcess, as_threads, measure, tiny

from ipcnn_ray.data.batches import to_input
from ipcnn_ray.errors import TrainingError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.train.distributed_inference import EvaluationPlan
from ipcnn_ray.train.evaluate import evaluate


class Repeats:
    """Objects 0, 1, 2 (0 in training); object 1 three times in validation, once of them mirrored; negative 3."""

    labels_N = np.array([0, 0, 0, -1])
    objects = np.array([0, 1, 2])
    train_items = np.array([[0, 0], [0, 1]])
    val_items = np.array([[1, 0], [1, 1], [1, 0], [2, 1], [3, 0]])


def test_every_pair_once_weighted_by_its_repeats():
    plan = EvaluationPlan.of(Repeats, "all")
    assert plan.items.tolist() == [[0, 0], [1, 0], [1, 1], [2, 0], [2, 1], [3, 0]]
    assert plan.weight_I.tolist() == [0, 2, 1, 0, 1, 1]
    assert plan.object_positions.tolist() == [0, 1, 3]


def test_only_objects_of_the_validation_split():
    plan = EvaluationPlan.of(Repeats, "validation")
    assert plan.items[plan.object_positions].tolist() == [[1, 0], [2, 0]]


def slowly(inputs, spec, layer, top_images):
    """(error, loss, instability): one image at a time, every repeat again, loops for the metric."""
    store, net = inputs.store, inputs.net.eval()

    def output(index, mirrored):
        image = torch.from_numpy(store.images_N3SS[index : index + 1].copy())
        x = to_input(image, torch.tensor([bool(mirrored)]), inputs.mean_3SS, inputs.scale, inputs.device)
        with torch.no_grad():
            return net(x, full=True)

    wrong, losses = [], []
    for index, mirrored in store.val_items.tolist():
        logit, sign = float(output(index, mirrored).logits_NL), 2 * (store.labels_N[index] >= 0) - 1
        wrong.append((logit > 0) != (sign > 0))
        losses.append(math.log1p(math.exp(-sign * logit)))
    rf, rows = layer_receptive_field(spec.model, layer), []
    for index in store.objects:
        scores = output(index, 0).scores[layer][0]
        for c, score in enumerate(scores):
            row, col = divmod(int(score.argmax()), score.shape[1])
            rows.append(
                (index, c, float(score.max()), rf.first_center + rf.stride * row, rf.first_center + rf.stride * col)
            )
    per_filter = []
    for c in range(len(scores)):
        per_landmark = []
        for k in range(store.landmarks_NK2.shape[1]):
            seen = []
            for index, filter_, activation, row, col in rows:
                at = store.landmarks_NK2[index, k]
                if filter_ == c and not np.isnan(at).any():
                    seen.append((activation, math.dist((row, col), at)))
            best = [distance for _, distance in sorted(seen, key=lambda pair: -pair[0])[:top_images]]
            per_landmark.append(np.std(best, ddof=1))
        per_filter.append(np.mean(per_landmark))
    return np.mean(wrong), np.mean(losses), np.mean(per_filter) / (store.size * math.sqrt(2))


def test_agrees_with_one_image_at_a_time(bench):
    spec = tiny()
    inputs = bench.inputs(spec)
    found = measure(inputs, spec, InProcess())
    error, loss, instability = slowly(inputs, spec, "conv5", 4)
    assert found.counts.seen == len(inputs.store.val_items)
    assert found.counts.error == pytest.approx(error)
    assert found.counts.loss == pytest.approx(loss, rel=1e-5)
    assert found.metrics["instability"]["conv5"].mean == pytest.approx(instability, rel=1e-6)


@pytest.mark.parametrize("world", [3, 4, 5])
def test_padding_of_the_last_deal_changes_no_metric(bench, world):
    spec = tiny()
    inputs = bench.inputs(spec)
    assert len(EvaluationPlan.of(inputs.store, "all").items) % world  # there is padding
    alone = measure(inputs, spec, InProcess())
    for found in as_threads(world, lambda runtime: measure(inputs, spec, runtime, batch_size=2)):
        assert (found.counts.wrong, found.counts.seen) == (alone.counts.wrong, alone.counts.seen)
        assert found.counts.loss == pytest.approx(alone.counts.loss, rel=1e-6)
        for layer, one in alone.metrics["instability"].items():
            torch.testing.assert_close(found.metrics["instability"][layer].per_filter_C, one.per_filter_C)


def test_the_network_goes_back_to_training_even_after_an_error(bench):
    spec = tiny()
    inputs = bench.inputs(spec)
    fields = {layer: layer_receptive_field(spec.model, layer) for layer in inputs.net.interpretable}
    inputs.rows = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError, match="division"):
        evaluate(
            inputs,
            EvaluationPlan.of(inputs.store, "all"),
            fields,
            InProcess(),
            epoch=1,
            batch_size=4,
        )
    assert inputs.net.training


def test_outputs_that_are_not_finite(bench):
    spec = tiny()
    inputs = bench.inputs(spec)
    with torch.no_grad():
        inputs.net.conv("conv4").weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"outputs are not finite after epoch 1: lower train.learning_rate"):
        measure(inputs, spec, InProcess())
