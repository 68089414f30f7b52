"""Template sections: one class a shape, what a spec says of them, and that old specs still mean the same."""

from __future__ import annotations

import pytest

from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.runs import grid_runs, named_runs, resolved_yaml, run_for
from ipcnn_ray.spec.search import points
from ipcnn_ray.spec.section import sections
from ipcnn_ray.spec.template import Template

TEXT = """\
name: t
data: {kind: drawn_animals, objects: 40}
model: {network: compact}
template: TEMPLATE
train: {epochs: 4, batch_size: 32}
"""
NEW = [
    "{shape: gradient, norm: linf}",
    "{shape: gradient, norm: lp, p: 3}",
    "{shape: uniform, norm: lp, p: 0.5, gamma: 0.5}",
    "{shape: gaussian, sigma: 0.2}",
    "{shape: ellipse, aspect: 3, angle: 30, beta: 4}",
    "{shape: ring, radius: 0.2, width: 0.3}",
    "{shape: mask, values: [[0, 1], [1, -0.5]], extent: 0.5}",
    "{shape: tailored, landmark: head}",
    "{shape: released, width: 0.5}",
    "{shape: released, width: 0.5, mask: peak}",
    "{shape: tailored, landmark: head, mask: centroid}",
    "{shape: uniform, gamma: 0.3, mask: none, narrowing: {scale: 3, epochs: 3}}",
]


def with_template(text: str) -> str:
    return TEXT.replace("TEMPLATE", text)


def section(text: str) -> Template:
    return loads(with_template(text), "s.yaml").spec.template


def test_sections_of_the_papers_shapes_hold_what_they_held():
    """The digest is taken over this, less those after tau, which came later and say nothing here."""
    later = {"mask": None, "narrowing": None}
    given = {"shape": "gradient", "norm": "l1", "beta": 2.0, "tau": None, "p": None, **later}
    assert section("{shape: gradient}").model_dump(mode="json") == given
    given = {"shape": "uniform", "norm": "l2", "beta": 2.0, "gamma": 0.5, "tau": 0.1, "p": None, **later}
    assert section("{shape: uniform, norm: l2, gamma: 0.5, tau: 0.1}").model_dump(mode="json") == given


@pytest.mark.parametrize("text", NEW)
def test_a_resolved_spec_is_the_same_experiment(text):
    spec = loads(with_template(text), "s.yaml").spec
    again = loads(resolved_yaml(spec), "r.yaml").spec
    assert again == spec
    assert again.digest() == spec.digest()


def test_every_field_changes_the_digest():
    texts = [*NEW, *[text.replace("3", "2").replace("0.5", "0.25").replace("head", "neck") for text in NEW[1:]]]
    digests = [loads(with_template(text), "s.yaml").spec.digest() for text in texts if text != NEW[3]]
    assert len(set(digests)) == len(digests)


IN_WORDS = """
{shape: none} | plain | no template (the plain network)
{shape: gradient} | L1 β2 | gradient L1 template, beta 2, tau 0.5 / n^2
{shape: gradient, norm: l2, beta: 4.25, tau: 0.01} | L2 β4.25 τ0.01 | gradient L2 template, beta 4.25, tau 0.01
{shape: gradient, norm: lp, p: 2.5, beta: 4} | L2.5 β4 | gradient L2.5 template, beta 4, tau 0.5 / n^2
{shape: uniform, norm: l2, gamma: 0.5, tau: 0.1} | uniform L2 β2 γ0.5 τ0.1 | \
uniform L2 template, beta 2, gamma 0.5, tau 0.1
{shape: gradient, norm: l2, beta: 10, mask: none} | L2 β10, no mask | \
gradient L2 template, beta 10, tau 0.5 / n^2, no mask
{shape: gradient, narrowing: {scale: 8, epochs: 3}} | L1 β2, narrowing from x8 in 3 epochs | \
gradient L1 template, beta 2, tau 0.5 / n^2, narrowing from x8 in 3 epochs
{shape: released, mask: peak} | released width 2, mask at the peak | \
released template, width 2, tau 0.5 / n^2, mask at the peak
{shape: tailored, landmark: head, mask: centroid} | tailored head part_sizes, mask at the centroid | \
template tailored to the head's part_sizes, scale 1, tau 0.5 / n^2, mask at the centroid
{shape: uniform, norm: linf} | uniform Linf β2 γ2 | uniform Linf template, beta 2, gamma 2, tau 0.5 / n^2
{shape: gaussian, sigma: 0.2} | gaussian σ0.2 | gaussian template, sigma 0.2, tau 0.5 / n^2
{shape: ellipse, angle: 30} | ellipse β2 aspect 2 angle 30 | ellipse template, beta 2, aspect 2, angle 30, tau 0.5 / n^2
{shape: ring} | ring radius 0.25 width 0.25 | ring template, radius 0.25, width 0.25, tau 0.5 / n^2
{shape: mask, values: [[1.0]]} | mask values 1x1 extent 1 | mask template, values 1x1, extent 1, tau 0.5 / n^2
{shape: tailored, landmark: head, scale: 2, tau: 0.1} | tailored head part_sizes x2 τ0.1 | \
template tailored to the head's part_sizes, scale 2, tau 0.1
"""


@pytest.mark.parametrize("line", IN_WORDS.strip().splitlines())
def test_in_words(line):
    text, label, words = line.split(" | ")
    template = section(text)
    assert (template.label(), template.describe()) == (label, words)


def test_a_template_narrows_in_equal_logarithmic_steps():
    template = section("{shape: gradient, narrowing: {scale: 8, epochs: 4}}")
    assert [template.widening(epoch) for epoch in range(7)] == [
        1.0,
        8.0,
        pytest.approx(4.0),
        pytest.approx(2.0),
        1,
        1,
        1,
    ]
    assert [section("{shape: gradient}").widening(epoch) for epoch in (1, 2)] == [1.0, 1.0]


def test_a_space_over_the_narrowing():
    search = """\
search:
  kind: space
  trials: 4
  runs: [{name: plain, set: {template: {shape: none}}}]
  space:
    template.narrowing.scale: {log_uniform: [1, 16]}
    template.narrowing.epochs: {choice: [2, 4]}
"""
    spec = loads(with_template("{shape: gradient}") + search, "s.yaml").spec
    drawn = [run_for(spec, chosen).spec.template.narrowing for chosen in points(spec.search)]
    assert {(narrowing.scale, narrowing.epochs) for narrowing in drawn} == {(1, 2), (1, 4), (16, 2), (16, 4)}


def test_a_plain_run_keeps_the_diversity_loss_unless_it_is_set():
    search = """\
loss: {diversity: {weight: 2}}
search:
  kind: named
  runs:
    - {name: plain, set: {template.shape: none, loss.diversity: null}}
    - {name: apart, set: {template.shape: none, loss.diversity.form: largest}}
"""
    plain, apart = named_runs(loads(with_template("{shape: gradient}") + search, "s.yaml").spec)
    assert plain.spec.loss.diversity is None and plain.spec.loss.filter is None
    assert (apart.spec.loss.diversity.form, apart.spec.loss.diversity.weight) == ("largest", 2.0)


def test_the_built_in_shapes():
    names = ["gradient", "uniform", "released", "gaussian", "ellipse", "ring", "mask", "tailored", "none"]
    assert list(sections(Template)) == names


def test_a_grid_over_masks_and_forms():
    search = """\
search:
  kind: grid
  runs: [{name: plain, set: {template: {shape: none}}}]
  grid: {template.mask: [none, peak, centroid], loss.filter.form: [exact, zconst, single, released]}
"""
    spec = loads(with_template("{shape: released}") + search, "s.yaml").spec
    drawn = {(run.spec.template.mask, run.spec.loss.filter.form): run.spec for run in grid_runs(spec)}
    assert len(drawn) == 12
    learning = {key for key, one in drawn.items() if one.loss.filter.learn_beta}
    assert learning == {("centroid", "released")}, "the default follows the mask"
    assert len({one.digest() for one in drawn.values()}) == 12


SPACE = """\
search:
  kind: space
  trials: 8
  runs: [{name: plain, set: {template: {shape: none}}}]
  space:
    template.shape: {choice: [gradient, uniform, gaussian, ellipse, ring]}
    template.norm: {choice: [l1, l2, linf, lp], when: {template.shape: gradient}}
    template.p: {log_uniform: [0.5, 8], when: {template.shape: gradient, template.norm: lp}}
    template.sigma: {uniform: [0.1, 0.5], when: {template.shape: gaussian}}
    template.aspect: {uniform: [1, 4], when: {template.shape: ellipse}}
    template.angle: {uniform: [0, 179], when: {template.shape: ellipse}}
    template.radius: {uniform: [0.1, 0.5], when: {template.shape: ring}}
"""


def test_a_space_over_shapes_and_their_own_fields():
    spec = loads(with_template("{shape: gradient}") + SPACE, "s.yaml").spec
    assert spec.search is not None
    drawn = [run_for(spec, chosen) for chosen in points(spec.search)]
    labels = {run.spec.template.label() for run in drawn}
    expected = {"L8 β2", "uniform L1 β2 γ2", "gaussian σ0.1", "ellipse β2 aspect 4 angle 179"}
    assert expected | {"ring radius 0.5 width 0.25"} <= labels
    assert len({run.spec.digest() for run in drawn}) == len(drawn)
