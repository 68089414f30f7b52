"""Evaluation: error, loss and metrics against one image at a time, over workers, through a run's record."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes.metrics import install
from fakes.training import Bench, Runtime, as_threads, measure, tiny

from ipcnn_ray.core.mask import mask_maps
from ipcnn_ray.core.metrics.filter_metric import COMPUTE_INPUTS, LayerContext
from ipcnn_ray.core.metrics.part_interpretability import PartInterpretability
from ipcnn_ray.core.metrics.part_positions import part_boxes
from ipcnn_ray.core.metrics.stability import pixel_noise
from ipcnn_ray.core.receptive_field import cells_above
from ipcnn_ray.data.batches import to_input
from ipcnn_ray.errors import DataError, TrainingError
from ipcnn_ray.models.layer_geometry import layer_receptive_field
from ipcnn_ray.spec.extensions import EVERY_RUN, METRICS
from ipcnn_ray.train.distributed_inference import EvaluationPlan
from ipcnn_ray.train.evaluate import ablated_filters, check_metrics, evaluate

ALL = tuple(name for name in METRICS.built_in if name not in EVERY_RUN)
WITHOUT_PARTS = tuple(name for name in ALL if name != "part_interpretability")


def with_part_sizes(inputs):
    """The same inputs; every part is a box of 18 x 22 of the 64 pixels."""
    store = inputs.store
    sizes = np.where(np.isnan(store.landmarks_NK2), np.nan, np.float32([18 / 64, 22 / 64])).astype(np.float32)
    inputs.store = replace(store, part_sizes_NK2=sizes)
    return inputs


@pytest.fixture(scope="module")
def scene(tmp_path_factory, crops):
    """Inputs with part sizes, their spec, and the evaluation of all metrics by one worker."""
    bench, spec = Bench(tmp_path_factory.mktemp("measures"), crops), tiny(model={"dropout": 0.0})
    inputs = with_part_sizes(bench.inputs(spec))
    return inputs, spec, measure(inputs, spec, Runtime(), *ALL)


class Slowly:
    """One image at a time."""

    def __init__(self, inputs, spec, layer):
        self.inputs, self.store, self.layer = inputs, inputs.store, layer
        self.rf = layer_receptive_field(spec.model, layer)
        self.outputs = {}
        inputs.net.eval()

    def output(self, index, mirrored=0):
        if (index, mirrored) not in self.outputs:
            self.outputs[index, mirrored] = self.forward(index, mirrored)
        return self.outputs[index, mirrored]

    @torch.no_grad()
    def forward(self, index, mirrored=0, noise=None):
        image = torch.from_numpy(self.store.images_N3SS[index : index + 1].copy())
        x = to_input(
            image, torch.tensor([bool(mirrored)]), self.inputs.mean_3SS, self.inputs.scale, torch.device("cpu")
        )
        return self.inputs.net(x if noise is None else x + noise * self.inputs.scale, full=True)

    def peaks(self, output):
        """(row, col) of each filter's peak, in pixels."""
        score_CHW = output.scores[self.layer][0]
        cells = [divmod(int(one.argmax()), one.shape[1]) for one in score_CHW]
        return [tuple(self.rf.first_center + self.rf.stride * i for i in cell) for cell in cells]

    def parts_at(self, peak, index, half):
        """Numbers of the landmarks in the square around a peak."""
        return {
            k
            for k, (row, col) in enumerate(self.store.landmarks_NK2[index].tolist())
            if abs(row - peak[0]) <= half and abs(col - peak[1]) <= half
        }

    def shown(self, index):
        return {k for k, place in enumerate(self.store.landmarks_NK2[index]) if not np.isnan(place).any()}

    def evaluation(self, top_images):
        """(error, loss, instability): every repeat again, loops for the metric."""
        wrong, losses = [], []
        for index, mirrored in self.store.val_items.tolist():
            logit, sign = float(self.output(index, mirrored).logits_NL), 2 * (self.store.labels_N[index] >= 0) - 1
            wrong.append((logit > 0) != (sign > 0))
            losses.append(math.log1p(math.exp(-sign * logit)))
        images = [(i, self.output(i)) for i in self.store.objects]
        images = [(i, output.scores[self.layer][0].amax((1, 2)).tolist(), self.peaks(output)) for i, output in images]
        per_filter = []
        for c in range(len(images[0][1])):
            per_landmark = []
            for k in range(self.store.landmarks_NK2.shape[1]):
                seen = [
                    (activations[c], math.dist(peaks[c], self.store.landmarks_NK2[i, k]))
                    for i, activations, peaks in images
                    if k in self.shown(i)
                ]
                best = [distance for _, distance in sorted(seen, key=lambda pair: -pair[0])[:top_images]]
                per_landmark.append(np.std(best, ddof=1))
            per_filter.append(np.mean(per_landmark))
        return np.mean(wrong), np.mean(losses), np.mean(per_filter) / (self.store.size * math.sqrt(2))

    def consistency(self):
        outputs = {i: self.peaks(self.output(i)) for i in self.store.objects}
        consistent = []
        for c in range(len(outputs[0])):
            rates = []
            for k in range(self.store.landmarks_NK2.shape[1]):
                images = [i for i in outputs if k in self.shown(i)]
                rates.append(np.mean([k in self.parts_at(outputs[i][c], i, 64 * 36 / 224) for i in images]))
            consistent.append(max(rates) >= 0.8)
        return np.mean(consistent)

    def tracking(self, top_images):
        """Of each filter the largest T over the landmarks, on its strongest images that show the landmark."""
        images = [(i, self.output(i)) for i in self.store.objects]
        images = [(i, output.scores[self.layer][0].amax((1, 2)).tolist(), self.peaks(output)) for i, output in images]
        found = []
        for c in range(len(images[0][1])):
            values = []
            for k in range(self.store.landmarks_NK2.shape[1]):
                seen = [
                    (activations[c], self.store.landmarks_NK2[i, k], peaks[c])
                    for i, activations, peaks in images
                    if k in self.shown(i)
                ]
                best = sorted(seen, key=lambda triple: -triple[0])[:top_images]
                at, peak = (np.array([triple[j] for triple in best], float) for j in (1, 2))
                values.append(1 - np.var(at - peak, axis=0).sum() / np.var(at, axis=0).sum())
            found.append(max(values))
        return found

    def keypoint_error_mean(self):
        """Distance of the landmarks of the validation objects from their mean over the training objects."""
        trained, errors = set(self.store.train_items[:, 0].tolist()), []
        train = [i for i in self.store.objects if i in trained]
        for k in range(self.store.landmarks_NK2.shape[1]):
            mean = np.mean([self.store.landmarks_NK2[i, k] for i in train if k in self.shown(i)], axis=0)
            others = [i for i in self.store.objects if i not in trained and k in self.shown(i)]
            errors.append(np.mean([math.dist(mean, self.store.landmarks_NK2[i, k]) for i in others]))
        return np.mean(errors) / self.store.size

    def stability(self, seed):
        same = []
        for i in (i for i in self.store.objects if self.shown(i)):
            plain, noisy = self.peaks(self.output(i)), self.peaks(self.forward(i, noise=pixel_noise(seed, i, 64)))
            half = 64 * 36 / 224
            same += [self.parts_at(p, i, half) == self.parts_at(q, i, half) for p, q in zip(plain, noisy, strict=True)]
        return np.mean(same)

    def entropy(self):
        found = []
        for c in range(32):
            entropies = []
            for i in self.store.objects:
                x = self.output(i).maps[self.layer][0, c].double().flatten()
                if x.sum() > 0:
                    p = (x / x.sum())[x > 0]
                    entropies.append(float(-(p * p.log()).sum()) / math.log(len(x)))
            if entropies:
                found.append(np.mean(entropies))
        return np.mean(found)

    @torch.no_grad()
    def ablation(self):
        """(own, others) by a hook on the convolution: -inf in a channel is 0 after ReLU and mask."""
        own, others, net = [], [], self.inputs.net
        for index, mirrored in np.unique(self.store.val_items, axis=0).tolist():
            sign = 1 if self.store.labels_N[index] >= 0 else -1
            intact = float(self.output(index, mirrored).logits_NL)
            changes = []
            for c in range(32):

                def erase(module, args, result, c=c):
                    result[:, c] = -1.0
                    return result

                hook = net.layer(self.layer).register_forward_hook(erase)
                without = float(self.forward(index, mirrored).logits_NL)
                hook.remove()
                changes.append(math.log1p(math.exp(-sign * without)) - math.log1p(math.exp(-sign * intact)))
            if sign > 0:
                own.append(np.mean(changes))
            else:
                others.append(np.mean(np.abs(changes)))
        return np.mean(own), np.mean(others)


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


def test_the_network_goes_back_to_training_even_after_an_error(bench):
    inputs = bench.inputs(tiny())
    inputs.output = lambda batch: 1 / 0
    with pytest.raises(ZeroDivisionError, match="division"):
        evaluate(inputs, EvaluationPlan.of(inputs.store, "all"), tiny(), Runtime(), epoch=1)
    assert inputs.net.training


def test_outputs_that_are_not_finite(bench):
    inputs = bench.inputs(tiny())
    with torch.no_grad():
        inputs.net.layer("conv4").weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match=r"outputs are not finite after epoch 1: lower train.learning_rate"):
        measure(inputs, tiny(), Runtime())


@pytest.mark.parametrize("layer", ["conv4", "conv5"])
def test_agree_with_one_image_at_a_time(scene, layer):
    inputs, spec, evaluation = scene
    metrics = {name: by_layer[layer].mean for name, by_layer in evaluation.metrics.items()}
    slowly = Slowly(inputs, spec, layer)
    error, loss, instability = slowly.evaluation(4)
    assert evaluation.counts.seen == len(inputs.store.val_items)
    assert evaluation.counts.error == pytest.approx(error)
    assert evaluation.counts.loss == pytest.approx(loss, rel=1e-5)
    assert metrics["instability"] == pytest.approx(instability, rel=1e-6)
    tracking = slowly.tracking(4)
    assert metrics["landmark_tracking"] == pytest.approx(np.mean(tracking))
    assert metrics["following_share"] == pytest.approx(np.mean([value > 0.3 for value in tracking]))
    assert metrics["landmark_tracking_few"] == pytest.approx(np.mean(slowly.tracking(30)))
    assert sum(evaluation.following(layer).values()) == sum(value > 0.3 for value in tracking) > 0
    assert metrics["keypoint_error_mean"] == pytest.approx(slowly.keypoint_error_mean())
    assert 0 < metrics["instability_best_constant"] < metrics["instability_random"]
    assert metrics["consistency"] == pytest.approx(slowly.consistency())
    assert metrics["stability"] == pytest.approx(slowly.stability(5))
    assert metrics["activation_entropy"] == pytest.approx(slowly.entropy(), rel=1e-5)
    own, others = slowly.ablation()
    assert abs(own) > 1e-7 and others > 1e-7
    assert metrics["ablation_own"] == pytest.approx(own, rel=1e-3, abs=1e-7)
    assert metrics["ablation_others"] == pytest.approx(others, rel=1e-3, abs=1e-7)


def test_part_interpretability_of_all_images_at_once(scene):
    inputs, spec, evaluation = scene
    slowly, store = Slowly(inputs, spec, "conv5"), inputs.store
    passed = []
    for index in store.objects:
        maps = slowly.output(index).maps["conv5"]
        passed.append(mask_maps(maps, inputs.net.mask("conv5").unit_Pnn)[0])
    x_NCHW = torch.stack(passed)
    count = cells_above(*x_NCHW.shape[::2])
    threshold_C = x_NCHW.transpose(0, 1).flatten(1).sort(1, descending=True).values[:, count]
    landmarks, sizes = torch.from_numpy(store.landmarks_NK2), torch.from_numpy(store.part_sizes_NK2 * 64)
    masks = torch.stack([part_boxes(landmarks[i], sizes[i], 64) for i in store.objects])
    metric = PartInterpretability(LayerContext(64, 16, slowly.rf))
    shown_NK = ~landmarks[store.objects].isnan().any(2)
    expected = float(metric.compute(metric.update(x_NCHW, threshold_C, masks), shown_NK).mean())
    assert 0 < expected < 1
    assert evaluation.metrics["part_interpretability"]["conv5"].mean == pytest.approx(expected)


@pytest.mark.parametrize(
    ("world", "batch_size", "metrics"), [(2, 3, ALL), (5, 2, ALL), (3, 2, ()), (4, 2, ())], ids=["2", "5", "3", "4"]
)
def test_workers_measure_what_one_measures(scene, world, batch_size, metrics):
    """With padding of the last items, too."""
    inputs, spec, alone = scene
    assert world == 2 or len(EvaluationPlan.of(inputs.store, "all").items) % world
    for rank in as_threads(world, lambda runtime: measure(inputs, spec, runtime, *metrics, batch_size=batch_size)):
        assert (rank.counts.wrong, rank.counts.seen) == (alone.counts.wrong, alone.counts.seen)
        assert rank.counts.loss == pytest.approx(alone.counts.loss, rel=1e-6)
        assert set(rank.metrics) == {*EVERY_RUN, *metrics}
        assert all(rank.following(layer) == alone.following(layer) for layer in alone.filters)
        for name, by_layer in rank.metrics.items():
            for layer, result in by_layer.items():
                torch.testing.assert_close(
                    result.per_filter_C,
                    alone.metrics[name][layer].per_filter_C,
                    equal_nan=True,
                    rtol=1e-7 if name in EVERY_RUN else 1e-4,
                    atol=1e-7 if name in EVERY_RUN else 1e-6,
                    msg=lambda text, name=name, layer=layer: f"{name} {layer}: {text}",
                )


def test_only_some_filters_are_ablated(scene):
    inputs, spec, alone = scene
    some = measure(inputs, spec, Runtime(), "ablation_own", ablation_filters=4).metrics
    assert set(some) == {*EVERY_RUN, "ablation_own"}
    for layer, found in some["ablation_own"].items():
        torch.testing.assert_close(
            found.per_filter_C, alone.metrics["ablation_own"][layer].per_filter_C[[0, 8, 16, 24]]
        )


@pytest.mark.parametrize(("count", "expected"), [(None, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (2, [0, 2]), (1, [0])])
def test_filters_at_equal_distances(count, expected):
    assert ablated_filters(5, count).tolist() == expected


def test_a_run_records_them_by_name_and_layer_and_trains_as_without(bench, whole):
    bench.run(tiny(eval={"measures": list(WITHOUT_PARTS), "layer": "conv4"}))
    for metrics in bench.record.epochs.values():
        assert "part_interpretability" not in metrics
        for name in WITHOUT_PARTS:
            assert metrics[name] == pytest.approx(metrics[f"{name}_conv4"], nan_ok=True)
            assert f"{name}_conv5" in metrics and f"{name}_dropped" in metrics
        assert 0 <= metrics["purity"] <= 1 and 0 <= metrics["activation_entropy"] <= 1
    assert bench.weights() == whole[0]
    assert not set(whole[1][-1]) & set(ALL)


def test_data_that_lack_what_a_metric_needs(bench):
    store = bench.inputs(tiny()).store
    spec = tiny(eval={"measures": list(ALL)})
    check_metrics(spec, store)
    without = replace(store, part_sizes_NK2=np.full_like(store.part_sizes_NK2, np.nan))
    with pytest.raises(DataError, match="part_interpretability needs the size of every part, and these data tell only"):
        check_metrics(spec, without)
    of_cows = replace(store, val_items=store.val_items[store.labels_N[store.val_items[:, 0]] == 0])
    with pytest.raises(DataError, match="ablation_own compares categories, and the validation items are all of one"):
        check_metrics(spec, of_cows)


def test_metrics_of_another_package(scene, monkeypatch):
    """They get what they need, the same on any number of workers, and errors name the package."""
    install(monkeypatch, sparsity="Sparsity", upper_parts="UpperParts", wrong_shape="WrongShape")
    inputs, spec, _ = scene
    with pytest.raises(TrainingError, match=r"'wrong_shape' of fakes.metrics:WrongShape: ValueError: WrongShape.comp"):
        measure(inputs, spec, Runtime(), "wrong_shape")
    one = measure(inputs, spec, Runtime(), "sparsity", "upper_parts").metrics
    outputs = [Slowly(inputs, spec, "conv4").output(i) for i in inputs.store.objects]
    zero_C = torch.stack([(output.maps["conv4"][0] == 0).double().mean((1, 2)) for output in outputs]).mean(0)
    assert 0 < float(zero_C.mean()) < 1
    torch.testing.assert_close(one["sparsity"]["conv4"].per_filter_C, zero_C)
    assert 0 < one["upper_parts"]["conv4"].mean < 1
    for two in as_threads(2, lambda runtime: measure(inputs, spec, runtime, "sparsity", "upper_parts")):
        for name in ("sparsity", "upper_parts"):
            torch.testing.assert_close(two.metrics[name]["conv5"].per_filter_C, one[name]["conv5"].per_filter_C)
    bare = replace(inputs.store, part_sizes_NK2=np.full_like(inputs.store.part_sizes_NK2, np.nan))
    with pytest.raises(DataError, match="upper_parts needs the size of every part"):
        check_metrics(tiny(eval={"measures": ["upper_parts"]}), bare)


def test_every_input_is_provided(scene, monkeypatch):
    """A metric that takes all inputs of `compute`, on validation items and on object images."""
    inputs, spec, _ = scene
    for attribute in ("Everything", "EverythingOfObjects"):
        install(monkeypatch, everything=attribute)
        found = measure(inputs, spec, Runtime(), "everything", ablation_filters=5).metrics
        assert found["everything"]["conv5"].per_filter_C.tolist() == [len(COMPUTE_INPUTS)] * 5
