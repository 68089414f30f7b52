"""Wrong specs and exactly what a person reads: bad_specs.yaml and messages.yaml."""

from __future__ import annotations

from pathlib import Path

import yaml
from snapshots import Snapshot, message_of

from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.spec.loader import loads
from ipcnn_ray.spec.search import NamedSearch
from ipcnn_ray.spec.training import Eval
from ipcnn_ray.spec.validation import cross_field_issues

BASE = """\
name: t
data: {kind: drawn_animals}
model: {network: compact}
template: {shape: uniform}
train: {epochs: 4}
"""
PLAIN = "{name: plain, set: {template.shape: none}}"
CASES = yaml.safe_load(Path(__file__).with_name("bad_specs.yaml").read_text(encoding="utf-8"))


def changed(lines: str) -> tuple[str, list[str]]:
    """The base with these lines in place of its own or below them (sections stay on lines 1 to 5), and overrides."""
    own = [line for line in lines.splitlines() if not line.startswith("--set ")]
    sections = {line.partition(":")[0]: line for line in (*BASE.splitlines(), *own)}
    overrides = [line.removeprefix("--set ") for line in lines.splitlines() if line.startswith("--set ")]
    return "\n".join(sections.values()).replace("PLAIN", PLAIN) + "\n", overrides


def test_what_a_person_reads(snapshot: Snapshot) -> None:
    specs = {name: (text, []) for name, text in CASES["documents"].items()}
    specs |= {name: changed(lines) for name, lines in CASES["changes"].items()}
    assert len(specs) == len(CASES["documents"]) + len(CASES["changes"]) >= 40
    texts = {name: message_of(lambda spec=spec: loads(spec[0], "s.yaml", spec[1])) for name, spec in specs.items()}
    snapshot.check("spec/messages.yaml", texts)


def test_the_base_of_these_is_sound():
    for search in ("kind: grid, grid: {template.beta: [1]}", "kind: space, trials: 3, space: {seed: {choice: [1]}}"):
        text, _ = changed(f"search: {{runs: [PLAIN], {search}}}")
        assert loads(text, "s.yaml").spec.search


def test_a_measure_that_no_run_takes():
    raw = {
        "kind": "named",
        "runs": [{"name": "plain"}],
        "objective": {"kind": "pareto", "measures": ["instability", "purity"]},
        "constraints": [{"measure": "stability", "at_least": 0.5}, {"measure": "val_error", "at_most": 0.1}],
    }
    search = NamedSearch.model_validate(raw)

    def issues(*measures: str) -> list[tuple[str, str]]:
        given = {"search": search, "eval": Eval(measures=measures)}
        return [(issue.what, issue.advice) for issue in cross_field_issues(given, ExperimentSpec)]

    advice = "is not measured: add it to eval.measures, ['consistency']"
    assert issues("consistency") == [
        ("search.objective.measures.1 = 'purity'", advice),
        ("search.constraints.0.measure = 'stability'", advice),
    ]
    assert not issues("purity", "stability")
