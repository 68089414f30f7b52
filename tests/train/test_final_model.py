"""Tailored templates: fitted to the training objects alone, recorded, and the same for every reader of a run."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from fakes.training import tiny

from ipcnn_ray.core.templates import part_templates
from ipcnn_ray.data.crop_store import CropStore
from ipcnn_ray.data.datasets.drawn.drawn_animals import DrawnAnimals
from ipcnn_ray.data.datasets.voc_part import VocPart
from ipcnn_ray.data.prepare import prepare
from ipcnn_ray.errors import DataError, TrainingError
from ipcnn_ray.spec.template import EllipseTemplate, GradientTemplate, MaskTemplate, TailoredTemplate
from ipcnn_ray.train.final_model import final_model, fit_template, trained_template
from ipcnn_ray.utils.paths import Paths


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> CropStore:
    paths = Paths.from_environment({"IPCNN_HOME": str(tmp_path_factory.mktemp("home"))})
    return prepare(DrawnAnimals(kind="drawn_animals", objects=24, negatives=10), 32, paths)


def tailored(**given) -> TailoredTemplate:
    return TailoredTemplate(shape="tailored", **{"landmark": "torso", **given})


def test_part_sizes_by_hand(store):
    objects = [i for i in np.unique(store.train_items[:, 0]) if i < 24]
    heights, widths = np.nanmean(store.part_sizes_NK2[objects, 2], axis=0)
    fitted = fit_template(tailored(tau=0.3), store)
    assert isinstance(fitted.template, EllipseTemplate)
    assert fitted.template.beta == pytest.approx(2 / np.sqrt(heights * widths), rel=1e-4)
    long, short = max(heights, widths), min(heights, widths)
    assert fitted.template.aspect == pytest.approx(long / short, rel=1e-4)
    assert fitted.template.angle == (90 if heights > widths else 0)
    seen = np.isfinite(store.part_sizes_NK2[objects, 2]).all(1).sum()
    assert (fitted.template.tau, fitted.images) == (0.3, seen)


@pytest.mark.parametrize("fitted_to", ["part_sizes", "landmarks", "part_masks"])
def test_validation_objects_are_not_looked_at(store, fitted_to):
    known = set(store.train_items[:, 0].tolist())
    unseen = [i for i in range(24) if i not in known]
    assert unseen
    paths, sizes = store.landmarks_NK2.copy(), store.part_sizes_NK2.copy()
    paths[unseen], sizes[unseen] = 3.0, 0.9
    other = dataclasses.replace(store, landmarks_NK2=paths, part_sizes_NK2=sizes)
    template = tailored(landmark="head", fitted_to=fitted_to)
    assert fit_template(template, other) == fit_template(template, store)
    seen = paths.copy()
    seen[sorted(known & set(range(24)))] *= 0.5
    halved = dataclasses.replace(store, landmarks_NK2=seen, part_sizes_NK2=store.part_sizes_NK2 * 0.5)
    assert fitted_to == "part_masks" or fit_template(template, halved) != fit_template(template, store)


def test_the_mean_mask_is_of_training_objects_alone(store, tmp_path):
    """Drawn by hand from the training objects, in the order of the store."""
    spec = DrawnAnimals(kind="drawn_animals", objects=24, negatives=10)
    objects = [int(i) for i in np.unique(store.train_items[:, 0]) if i < 24]
    patches = [spec.draw(i, 32).masks[0] for i in objects]
    mean = np.mean([patch for patch in patches if patch is not None], axis=0)
    np.testing.assert_allclose(store.mean_masks_KGG[0], mean, atol=1e-6)
    fitted = fit_template(tailored(landmark="head", fitted_to="part_masks"), store)
    assert isinstance(fitted.template, MaskTemplate)
    unit = _unit(fitted.template, 16)
    assert float(unit[8 * 16 + 8, 8, 8]) > 0.9
    assert float(unit[8 * 16 + 8, 0, 0]) == -1


def test_scale_stretches_what_was_fitted(store):
    for fitted_to in ("part_sizes", "part_masks"):
        one, two = (fit_template(tailored(fitted_to=fitted_to, scale=scale), store) for scale in (1, 2))
        if fitted_to == "part_sizes":
            assert two.template.beta == pytest.approx(one.template.beta / 2, rel=1e-5)
        else:
            assert two.template.extent == pytest.approx(one.template.extent * 2, rel=1e-5)


def test_what_is_recorded(store):
    fitted = fit_template(tailored(landmark="head", fitted_to="part_masks"), store)
    params = fitted.params()
    assert params["template_fitted.shape"] == "mask"
    assert len(params["template_fitted.values"]) < 10
    assert MaskTemplate.model_validate(json.loads(fitted.as_json())) == fitted.template
    assert fitted.tags()["template.fitted_objects"] == str(fitted.images)
    assert fit_template(GradientTemplate(shape="gradient"), store) is None


def test_what_cannot_be_fitted(store):
    nothing = dataclasses.replace(store, part_sizes_NK2=np.full_like(store.part_sizes_NK2, np.nan))
    with pytest.raises(DataError) as caught:
        fit_template(tailored(), nothing)
    assert "template.fitted_to = part_sizes, landmark 'torso'" in str(caught.value)
    assert "cannot be fitted to the 18 training objects: no size is known" in str(caught.value)


@pytest.mark.real_data
def test_the_head_of_real_cows(real_data, tmp_path):
    """Their mean box, from the landmark files: about half of the crop high and two fifths wide (pHW_scale / 224)."""
    paths = dataclasses.replace(Paths.from_environment({"IPCNN_HOME": str(tmp_path)}), data=real_data)
    store = prepare(VocPart(kind="voc_part", category="cow", negatives=20), 32, paths)
    head, torso = (fit_template(tailored(landmark=name), store) for name in ("head", "torso"))
    assert head.template.angle == 90
    assert 1 < head.template.aspect < 1.6
    assert torso.template.beta < head.template.beta
    heights, widths = np.nanmean(store.part_sizes_NK2[:, 0], axis=0)
    assert (heights, widths) == pytest.approx((114.35 / 224, 89.79 / 224), abs=0.01)


def test_a_run_is_read_with_the_template_it_was_fitted_to(bench):
    request = bench.request(tiny(template={"shape": "tailored", "landmark": "head"}, train={"epochs": 1}))
    with pytest.raises(TrainingError, match=r"has no template.json in .*: its template is not fitted yet"):
        trained_template(request)
    bench.run(request.spec)
    template = trained_template(request)
    assert isinstance(template, EllipseTemplate)
    assert bench.record.params["template.landmark"] == "head"
    assert bench.record.params["template_fitted.beta"] == str(template.beta)
    assert bench.record.tags["template.fitted"] == template.label()
    net = final_model(request)[0].net
    unit_Pnn = net.mask("conv5").unit_Pnn
    n = unit_Pnn.shape[-1]
    assert np.array_equal(unit_Pnn.numpy(), _unit(template, n).numpy())


def _unit(template, n):
    return part_templates(n, **template.arguments(), tau=1.0)
