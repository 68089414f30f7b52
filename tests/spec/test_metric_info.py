"""The measures of a spec: their table, their defaults, and what is refused."""

from __future__ import annotations

from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.metric_info import ABLATIONS, MEASURES
from ipcnn_ray.spec.runs import resolved_yaml

TEXT = """\
name: t
data: {kind: drawn_animals, objects: 40}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 4, batch_size: 32}
eval: {measures: [purity, ablation_own], ablation_filters: 8}
"""


def test_every_measure_says_its_unit_its_better_direction_and_what_it_is():
    assert len(MEASURES) == 8 and set(ABLATIONS) < set(MEASURES)
    for measure in MEASURES.values():
        assert measure.unit and measure.better in ("higher", "lower")
        assert 20 < len(measure.what) < 120 and "\n" not in measure.what


def test_none_is_the_default_and_changes_no_digest():
    bare = TEXT.replace("{measures: [purity, ablation_own], ablation_filters: 8}", "{}")
    spec = loads(bare, "s.yaml").spec
    assert spec.eval.measures == () and spec.eval.ablation_filters is None
    assert spec.digest() == "81782ac5"  # of the version before there were measures
    assert loads(bare, "s.yaml", ["eval.measures=[]"]).spec.digest() == spec.digest()
    assert loads(TEXT, "s.yaml").spec.digest() != spec.digest()
    assert loads(resolved_yaml(spec), "s.yaml").spec.digest() == spec.digest()
