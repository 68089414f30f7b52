"""Rankings as a person reads them: settings, what may be luck, bounds, the Pareto front."""

from __future__ import annotations

import json
import math

import pytest

from ipcnn_ray.report.ranking import compare_groups, rank
from ipcnn_ray.report.ranking_table import Ranking, as_json, number, p_words
from ipcnn_ray.spec.search import Constraint, Objectives
from ipcnn_ray.tracking.run_summary import RunSummary

AIMS = Objectives(("combined",), control="plain")


def summary(label: str, metrics: dict[str, float], **more) -> RunSummary:
    group, _, seed = label.partition(".seed")
    identity = {"group": group, "seed": int(seed or 0), "template": group}
    return RunSummary(f"a-1-{label}", label, **{**identity, "state": "succeeded", "metrics": metrics, **more})


def row(label: str, combined: float | None, instability: float, error: float | None, **more) -> RunSummary:
    known = {"combined": combined, "instability": instability, "val_error": error, "epoch": 12.0}
    return summary(label, {key: value for key, value in known.items() if value is not None}, **more)


PLAIN = row("plain", 1.0, 0.1402, 0.125)
BETTER = row("l1", 0.875, 0.1302, 0.1)
FAILED = summary("r1", {}, template="L1 β2", state="failed", cause="TrainingError: the loss is not finite")


def repeated(name: str, values: list[float]) -> list[RunSummary]:
    return [row(f"{name}.seed{seed}", 10 * value, value, 0.1) for seed, value in enumerate(values)]


def test_without_repeats_numbers_carry_their_units_and_the_control_is_named():
    ranking = Ranking.of([FAILED, PLAIN, BETTER], AIMS)
    table = ranking.table()
    assert table.columns == ("run", "template", "combined", "vs control", "instability", "error", "epochs", "state")
    assert table.rows == [
        ["l1", "l1", "0.875", "-0.125", "0.1302", "10.0 %", "12", "succeeded"],
        ["plain", "plain (control)", "1.000", "-", "0.1402", "12.5 %", "12", "succeeded"],
        ["r1", "L1 β2", "-", "-", "-", "-", "-", "failed"],
    ]
    assert ranking.luck() == []
    first, _, head, *_ = ranking.markdown().splitlines()
    told = "Best by combined: l1, 0.875; the control plain has 1.000. One seed of each: the difference may be luck."
    assert (first, ranking.headline()) == (f"**{told}**", told)
    text = ranking.markdown()
    assert head == "| run | template | combined | vs control | instability | error | epochs | state |"
    assert "r1 failed: TrainingError: the loss is not finite" in text


def test_repeats_are_one_setting_with_its_spread():
    rows = [*repeated("plain", [0.10, 0.12, 0.14]), *repeated("l1", [0.09, 0.10, 0.14])]
    (l1, plain) = rank(rows, AIMS)
    assert (l1.name, l1.wins, plain.wins) == ("l1", True, False)
    assert plain.spreads["instability"] == (3, pytest.approx(0.12), pytest.approx(0.02))
    ranking = Ranking.of(rows, AIMS)
    assert ranking.table().rows[1][:5] == ["plain", "plain (control)", "3", "1.200 ± 0.200", "0.1200 ± 0.0200"]
    _, tables, _ = ranking.luck()
    # Differences -.01, -.02, 0: mean -.01, sd .01, t = -sqrt 3. Of 8 choices of signs 4 are as far: p = .5.
    name, difference, interval, p, holm, p_t, _, verdict = tables.rows[0]
    assert (name, difference, p, holm) == ("l1 - plain", "-0.0100 ± 0.0100", "0.5", "0.5")
    assert interval == "-0.0348 to +0.0148"  # t .975 for 2 degrees of freedom: 4.30265; 4.30265 * .01 / sqrt 3 = .02484
    assert (p_t, verdict) == ("0.2254", "too few seeds")  # scipy.stats.ttest_rel: 0.22540
    told = "With 3 seeds p is at least 0.25 (2/2^3): these seeds cannot tell a difference from luck, 6 could."
    assert told in ranking.notes()


def test_the_answer_says_whether_to_believe_it():
    plain = [0.14, 0.15, 0.16, 0.17, 0.18, 0.19]
    better = [value - 0.01 - 0.001 * (i % 2) for i, value in enumerate(plain)]
    even = Ranking.of([*repeated("plain", plain), *repeated("l1", better)], AIMS).headline()
    assert even == (
        "Best by combined: l1, 1.545 ± 0.186; the control plain has 1.650 ± 0.187. "
        "The difference is more than luck (p 0.0312 after Holm's correction, 6 seeds)."
    )
    few = Ranking.of([*repeated("plain", plain[:3]), *repeated("l1", better[:3])], AIMS).headline()
    assert few.endswith("So few seeds cannot tell the difference from luck (p 0.25 after Holm's correction, 3 seeds).")
    mixed = [value + 0.01 * (-1) ** i for i, value in enumerate(plain)]
    luck = Ranking.of([*repeated("plain", plain), *repeated("l1", mixed)], AIMS).headline()
    assert luck.endswith("The difference may be luck (p 1 after Holm's correction, 6 seeds).")


def test_the_answer_where_the_control_is_best_or_alone_or_nothing_is_ranked():
    worse = row("l1", 1.25, 0.15, 0.2)
    told = "Best by combined: the control plain, 1.000; l1 has 1.250. One seed of each: the difference may be luck."
    assert Ranking.of([worse, PLAIN], AIMS).headline() == told
    alone = "Best by combined: the control plain, 1.000; nothing else was trained to its end to compare it with."
    assert Ranking.of([PLAIN, FAILED], AIMS).headline() == alone
    assert Ranking.of([FAILED], AIMS).headline() == ""
    assert Ranking.of([PLAIN, BETTER], Objectives(("instability", "val_error"), control="plain")).headline() == ""


def test_five_seeds_cannot_tell_and_six_can():
    plain = [0.14, 0.15, 0.16, 0.17, 0.18, 0.19]
    better = [value - 0.01 - 0.001 * (i % 2) for i, value in enumerate(plain)]
    for seeds, p, verdict in ((5, 0.0625, "too few seeds"), (6, 0.03125, "better")):
        groups = rank([*repeated("plain", plain[:seeds]), *repeated("l1", better[:seeds])], AIMS)
        against, among = compare_groups(groups, AIMS)
        assert {(one.p_exact, one.verdict) for one in against if one.measure == "instability"} == {(p, verdict)}
        assert among == []
    worse = rank([*repeated("plain", better), *repeated("l1", plain)], AIMS)
    assert [one.verdict for one in compare_groups(worse, AIMS)[0] if one.measure == "instability"] == ["worse"]
    assert [one.verdict for one in compare_groups(worse, AIMS)[0] if one.measure == "val_error"] == ["may be luck"]


def test_templates_are_compared_with_the_control_and_among_themselves_each_corrected():
    plain = [0.14, 0.15, 0.16, 0.17, 0.18, 0.19, 0.20]
    rows = repeated("plain", plain)
    for step, name in enumerate(("a", "b", "c"), start=1):
        rows += repeated(name, [value - 0.01 * step - 0.001 * i for i, value in enumerate(plain)])
    against, among = compare_groups(rank(rows, AIMS), AIMS)
    instability = [one for one in against if one.measure == "instability"]
    assert {one.p_exact for one in instability} == {2 / 2**7}
    assert {(one.family, one.holm_exact) for one in instability} == {(3, 3 * 2 / 2**7)}
    pairs = {(one.one, one.other) for one in among if one.measure == "instability"}
    assert {frozenset(pair) for pair in pairs} == {frozenset("ab"), frozenset("ac"), frozenset("bc")}


def test_only_seeds_that_both_reached_are_paired():
    rows = [*repeated("plain", [0.10, 0.20, 0.30]), *repeated("l1", [0.11, 0.22, 0.35])]
    rows[4] = summary("l1.seed1", {}, state="failed", cause="lost")
    (comparison, *_) = [one for one in compare_groups(rank(rows, AIMS), AIMS)[0] if one.measure == "instability"]
    assert comparison.difference.n == 2 and comparison.difference.mean == pytest.approx((0.01 + 0.05) / 2)
    ranking = Ranking.of(rows, AIMS)
    assert [group.state for group in ranking.groups if group.name == "l1"] == ["2 succeeded, 1 failed"]
    assert "l1.seed1 failed: lost" in ranking.notes()


def test_a_setting_beyond_a_bound_is_never_the_best():
    objectives = Objectives(("combined",), (Constraint(measure="val_error", at_most=0.11),), "plain")
    rows = [PLAIN, row("wild", 0.5, 0.05, 0.4), row("l1", 0.9, 0.13, 0.1), row("odd", 0.4, 0.1, None)]
    groups = rank(rows, objectives)
    assert [(group.name, group.wins) for group in groups] == [
        ("l1", True), ("odd", False), ("wild", False), ("plain", False)
    ]  # fmt: skip
    assert groups[1].violated == ("val_error <= 0.11 (not measured)",)
    ranking = Ranking.of(rows, objectives)
    assert ranking.table().rows[2][-1] == "succeeded, beyond a bound"
    assert "wild is beyond a bound: val_error <= 0.11" in ranking.notes()
    nobody = Ranking.of([PLAIN], objectives)
    assert nobody.notes()[-1] == "No run keeps every bound, so none is the best."


def test_the_pareto_front_is_told():
    objectives = Objectives(("instability", "purity"), control="plain")
    found = {"plain": (0.14, 0.3), "a": (0.12, 0.2), "b": (0.13, 0.1), "c": (0.15, 0.9)}
    rows = [
        summary(name, {"instability": low, "purity": high, "val_error": 0.1}) for name, (low, high) in found.items()
    ]
    ranking = Ranking.of(rows, objectives)
    assert {group.name for group in ranking.groups if group.wins} == {"plain", "a", "c"}
    assert [group.name for group in ranking.groups][-1] == "b"
    assert ranking.table().rows[0][-1] == "succeeded, front"
    told = "Pareto front over instability, purity (no run is better in one and as good in the rest): a, plain, c."
    assert told in ranking.notes()


def test_higher_is_better_where_the_measure_says_so():
    objectives = Objectives(("purity",), control="plain")
    rows = [summary(name, {"purity": p}) for name, p in (("plain", 0.3), ("a", 0.6))]
    assert [group.name for group in rank(rows, objectives)] == ["a", "plain"]


def test_json_has_groups_and_comparisons_and_no_number_that_is_not_finite():
    rows = [*repeated("plain", [0.1, 0.2]), *repeated("l1", [0.2, 0.3])]  # equal differences: t is infinite
    found = as_json(Ranking.of(rows, AIMS))
    text = json.dumps(found, allow_nan=False)
    assert json.loads(text)["groups"][0]["metrics"]["instability"]["n"] == 2
    (instability,) = [one for one in found["against_control"] if one["measure"] == "instability"]
    assert (instability["t"], instability["ci_low"]) == (None, instability["ci_high"])
    assert instability["ci_low"] == pytest.approx(0.1)


def test_pairs_of_many_settings_are_left_to_the_json():
    rows = [one for i in range(12) for one in repeated(f"s{i:02}", [0.1 + i / 100, 0.1 + i / 50])]
    ranking = Ranking.of([*repeated("plain", [0.1, 0.2]), *rows], AIMS)
    assert {row[0].rpartition(" ")[2] for table in ranking.luck() for row in table.rows} == {"plain"}
    assert "The settings among themselves: 198 comparisons, which --json has." in ranking.notes()  # 66 pairs


def test_numbers_in_words():
    assert number("val_error", 0.125, sign=True) == "+12.5 %"
    assert number("instability", math.nan) == "-"
    assert [p_words(p) for p in (None, 1.0, 0.0625, 0.00001)] == ["-", "1", "0.0625", "< 0.0001"]


def test_aims_read_what_they_wrote():
    bounds = (Constraint(measure="val_error", at_most=0.1), Constraint(measure="purity", at_least=1e-05))
    objectives = Objectives(("instability", "purity"), bounds, "plain")
    assert Objectives.from_tags(objectives.tags()) == objectives
    assert Objectives.from_tags(Objectives.of(None).tags()) == Objectives(("instability",))
    assert Objectives.from_tags({}) == AIMS
