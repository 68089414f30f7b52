"""Verdicts on made-up runs: every outcome, the numbers in its sentences, and where they are shown."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import pytest
from fakes.verdict import NARROW, NOISE, PLAIN, RELEASED, trained
from scipy import stats

from ipcnn_ray.report.ranking_table import Ranking, as_json
from ipcnn_ray.report.verdict import WITHOUT_LANDMARKS, Verdict, Verdicts
from ipcnn_ray.spec.search import Objectives
from ipcnn_ray.tracking.run_summary import RunSummary

AIMS = Objectives(("combined",), control="plain")


def judged(*settings: list[RunSummary]) -> Verdicts:
    return Verdicts.of(Ranking.of([run for runs in settings for run in runs], AIMS))


def verdict_on(means: Mapping[str, float], **facts: object) -> Verdict:
    (verdict,) = judged(trained("plain", PLAIN), trained("narrow", means, shift=2, **facts)).verdicts
    return verdict


CASES = {
    "follows parts": NARROW,
    "follows parts, not more stable": {**NARROW, "instability": PLAIN["instability"]},
    "some filters follow parts": {**PLAIN, "following_share": 0.45},
    "moved to the middle": RELEASED,
    "more stable, follows nothing more": {**RELEASED, "peak_spread": 0.27},
    "less stable": {**PLAIN, "instability": 0.15},
    "follows less": {**PLAIN, "following_share": 0.05},
    "nothing decided": PLAIN,
}


@pytest.mark.parametrize("outcome", CASES)
def test_outcomes(outcome):
    verdict = verdict_on(CASES[outcome])
    assert verdict.outcome == outcome
    assert 2 <= len(verdict.sentences) <= 6
    assert verdict.sentences[0].startswith("narrow")


def test_following_decides_whatever_becomes_of_the_spread_and_of_the_error():
    assert verdict_on({**NARROW, "peak_spread": 0.1, "val_error": 0.3}).outcome == "follows parts"


def test_fewer_filters_that_follow_and_a_smaller_spread_are_still_moved_to_the_middle():
    assert verdict_on({**RELEASED, "following_share": 0.0}).outcome == "moved to the middle"


def test_the_sentences_of_a_setting_that_follows_parts():
    verdict = verdict_on(NARROW)
    one, instability, baselines, following, error, undecided = verdict.sentences
    assert one == "narrow follows parts: it is more stable, and more of its filters follow a landmark."
    # The same deviations in another order: means over seeds are means * (1 + .1 * .05).
    assert instability.startswith("Instability 0.0662 against 0.1269 of plain: -48 % (95 % CI -50 to -45 %, p ")
    assert instability.endswith("; 5 seeds).")
    assert baselines == "It is more stable than a filter that never moves (0.0753)."
    assert following.startswith("97 % of its filters follow a landmark, 25 % of the control's (95 % CI +")
    assert following.endswith("; by chance 3 %); all of these the head.")
    assert error.startswith("Error 3.5 % against 3.3 %: +0.2 points (95 % CI ") and error.endswith(": not decided).")
    assert undecided.startswith("Seeds that would decide differences such as these: ") and "for error" in undecided


def test_numbers_are_students_with_holm_over_the_settings():
    verdicts = judged(trained("plain", PLAIN), trained("a", NARROW, shift=1), trained("b", RELEASED, shift=2)).verdicts
    runs = {"a": trained("a", NARROW, shift=1), "b": trained("b", RELEASED, shift=2)}
    control = [run.metrics["val_error"] for run in trained("plain", PLAIN)]
    p = {
        name: stats.ttest_rel([run.metrics["val_error"] for run in mine], control).pvalue for name, mine in runs.items()
    }
    smaller = min(p, key=p.__getitem__)
    for verdict in verdicts:
        found = verdict.differences["val_error"].comparison
        assert found.p_t == pytest.approx(p[verdict.setting])
        assert found.holm_t == pytest.approx(min(1, max(2 * p[smaller], p[verdict.setting])))


def test_an_instability_that_a_constant_beats_proves_nothing():
    nothing = "that never moves has 0.0753, so instability alone proves nothing."
    assert verdict_on({**PLAIN, "instability": 0.09}).sentences[2] == f"A filter {nothing}"
    told = verdict_on({**PLAIN, "instability": 0.15}).sentences[2]
    assert told == f"A filter that fires anywhere has 0.1389, one {nothing}"
    between = verdict_on({**PLAIN, "instability": 0.0751}).sentences[2]  # .0751 * 1.005 = .0755
    assert between == f"A filter {nothing}"


def test_filters_that_moved_to_the_middle_have_the_spread_of_their_peaks():
    following = verdict_on(RELEASED).sentences[3]
    assert "25 % of its filters follow a landmark, 25 % of the control's" in following
    assert (
        "; the peaks of a filter spread 0.11 of the image's side, those of the control 0.27 (95 % CI -0." in following
    )


def test_landmarks_are_counted_with_how_evenly_they_are_followed():
    evenly = {**NARROW, "following_head": 20.0, "following_torso": 10.0, "landmark_coverage": 1.9}
    told = "; filters by landmark: head 20.1, torso 10.1; effectively 1.9 landmarks."
    assert verdict_on(evenly).sentences[3].endswith(told)
    none = {name: 0.0 for name in PLAIN if name.startswith("following_")}
    assert verdict_on({**RELEASED, **none}).outcome == "moved to the middle"
    assert "all of" not in verdict_on({**RELEASED, **none}).sentences[3]


def test_the_control_stands_between_the_baselines():
    control = judged(trained("plain", PLAIN), trained("narrow", NARROW)).control
    assert control == (
        "plain: instability 0.1269; a filter that never moves has 0.0753, one that fires anywhere 0.1389. 25 % of its "
        "filters follow a landmark (by chance 3 %)."
    )


def test_one_seed_gives_no_verdict_and_the_best_has_its_numbers():
    trials = [trained(f"r{i}", NARROW | {"combined": i}, seeds=1, origin="sampled") for i in range(3)]
    found = judged(trained("plain", PLAIN, seeds=5), *trials)
    assert {verdict.outcome for verdict in found.verdicts} == {"one seed"}
    assert found.one_seed.startswith("r0, r1, r2: one seed gives no verdict. `search.repeats` trains named runs")
    best, *others = found.verdicts
    assert best.sentences[0] == (
        "The best of them, r0: instability 0.0659, -48 % to the control, 97 % of its filters follow a landmark (all of "
        "these the head), error 3.4 %; one seed."
    )
    assert best.sentences[1:] == ("It is more stable than a filter that never moves (0.0753).",)
    assert [other.sentences for other in others] == [(), ()]
    assert found.lines == [found.control, " ".join([found.one_seed, *best.sentences])]


def test_of_settings_with_one_seed_the_one_that_follows_most_is_named_too():
    trials = [
        trained("stable", RELEASED | {"combined": 0.5}, seeds=1, origin="sampled"),
        trained("parts", NARROW | {"combined": 0.9}, seeds=1, origin="sampled"),
    ]
    best, most, baseline = judged(trained("plain", PLAIN), *trials).verdicts[0].sentences
    assert best.startswith("The best of them, stable: instability ")
    assert most.startswith("The one with the most filters that follow a landmark, parts: instability 0.0659, ")
    assert baseline == "It is more stable than a filter that never moves (0.0753)."


def test_settings_with_one_seed_are_not_in_the_correction_of_the_others():
    alone = judged(trained("plain", PLAIN), trained("narrow", NARROW, shift=2)).verdicts[0]
    beside = judged(
        trained("plain", PLAIN), trained("narrow", NARROW, shift=2), trained("r1", RELEASED, seeds=1)
    ).verdicts
    same = next(verdict for verdict in beside if verdict.setting == "narrow")
    assert same.differences["instability"].comparison == alone.differences["instability"].comparison
    assert same.differences["instability"].comparison.family == 1


def test_records_of_earlier_versions_are_not_measured():
    old = {key: PLAIN[key] for key in ("instability", "val_error")}
    runs = [trained("plain", old), trained("narrow", {**old, "instability": 0.07}, shift=2)]
    bare = [
        RunSummary(
            run.run_id, run.label, group=run.group, seed=run.seed, state="succeeded",
            metrics={key: run.metrics[key] for key in old},
        )
        for some in runs for run in some
    ]  # fmt: skip
    found = judged(bare)
    (verdict,) = found.verdicts
    assert verdict.outcome == "not measured"
    assert verdict.sentences[0].startswith("narrow: no verdict: its runs, or those of the control, did not record")
    assert verdict.sentences[1].startswith("Instability 0.0703 against 0.1269 of plain: -45 % (")
    assert found.control == "" and len(verdict.sentences) <= 4
    assert as_json(Ranking.of(bare, AIMS))["baselines"] == []


def test_seeds_that_failed_are_left_out_of_the_means():
    narrow = trained("narrow", NARROW, shift=2)
    failed = RunSummary(narrow[4].run_id, narrow[4].label, group="narrow", seed=4, state="failed", cause="lost")
    (verdict,) = judged(trained("plain", PLAIN), [*narrow[:4], failed]).verdicts
    difference = verdict.differences["instability"]
    assert difference.comparison.difference.n == 4
    assert difference.control_mean == pytest.approx(0.1263 * (1 + 0.1 * sum(NOISE[:4]) / 4))
    assert difference.setting_mean - difference.control_mean == pytest.approx(difference.comparison.difference.mean)


def test_without_a_control_there_is_no_verdict():
    plain = [RunSummary("a-1-plain", "plain", group="plain", seed=0, state="failed", cause="lost")]
    found = judged(plain, trained("narrow", NARROW))
    assert found.verdicts == () and found.lines == ["No verdict: the control plain has no run that succeeded."]
    single = Verdicts.of(Ranking.of(trained("run", NARROW, seeds=1), Objectives(("instability",))))
    assert single.lines[0].startswith("run: instability 0.0659; a filter that never moves has 0.0753, one that")
    assert single.outcomes == {} and len(single.lines) == 1


def test_json():
    found = judged(trained("plain", PLAIN), trained("narrow", {**NARROW, "val_error": 0.034}, shift=2))
    told = json.loads(json.dumps(found.as_json(), allow_nan=False))
    (verdict,) = told["verdicts"]
    assert (verdict["setting"], verdict["outcome"]) == ("narrow", "follows parts")
    assert verdict["sentences"] == list(found.verdicts[0].sentences)
    by_measure = {one["measure"]: one for one in verdict["differences"]}
    assert set(by_measure) == {"instability", "following_share", "peak_spread", "landmark_coverage", "val_error"}
    assert by_measure["instability"]["decided"] and by_measure["instability"]["seeds_needed"] is None
    error = by_measure["val_error"]
    assert not error["decided"] and error["seeds_needed"] > 5 and error["ci_low"] < error["difference"]["mean"]
    assert any(note.startswith("plain: instability") for note in told["verdict_notes"])
    assert found.outcomes == {"narrow": "follows parts", "plain": "control"}
    assert found.markdown().split("\n\n")[1].startswith("narrow follows parts: ")


def blind(name: str, score: float, error: float, seeds: int) -> list[RunSummary]:
    """The runs of a setting on data without landmarks."""
    runs = []
    for seed in range(seeds):
        noise = 0.01 * NOISE[seed]
        metrics = {"peak_spread": 0.2, "mutual_information_score": score + noise, "val_error": error + noise}
        runs.append(
            RunSummary(
                f"a-1-{name}{seed}",
                f"{name}{seed}",
                group=name,
                seed=seed,
                template=name,
                state="succeeded",
                metrics=metrics,
            )
        )
    return runs  # fmt: skip


@pytest.mark.parametrize("seeds", [1, 3])
def test_without_landmarks_the_rest_is_compared(seeds):
    aims = Objectives(("val_error",), control="plain")
    told = Verdicts.of(Ranking.of([*blind("plain", 0.1, 0.2, seeds), *blind("l1", 0.3, 0.2, seeds)], aims))
    text = "\n".join(told.lines)
    assert told.lines[0] == WITHOUT_LANDMARKS and "nstability" not in text
    assert told.outcomes == {"l1": "one seed" if seeds == 1 else "no landmarks", "plain": "control"}
    if seeds == 1:
        assert (
            "The best of them, l1: peak_spread 0.20, mutual_information_score 0.3000, error 20.0 %; one seed." in text
        )
        return
    (verdict,) = told.verdicts
    assert set(verdict.differences) == {"peak_spread", "mutual_information_score", "val_error"}
    assert "mutual_information_score 0.3003 against 0.1003 (95 % CI +0.2000 to +0.2000, p < 0.0001)" in text
    assert "Error 20.0 % against 20.0 %: +0.0 points" in text


def test_baselines_are_rows_below_the_settings():
    table = Ranking.of([*trained("plain", PLAIN), *trained("narrow", NARROW)], AIMS).table()
    rows = [dict(zip(table.columns, row, strict=True)) for row in table.rows]
    assert [(row["run"], row["instability"]) for row in rows[2:]] == [
        ("-- best constant place", "0.0753"),
        ("-- peak at the centre", "0.0755"),
        ("-- random cell", "0.1389"),
    ]
    assert {
        row[column] for row in rows[2:] for column in table.columns if column not in ("run", "template", "instability")
    } == {""}


def test_baselines_of_two_layers_say_which_settings_they_hold_for():
    other = [
        RunSummary(run.run_id, run.label, group="narrow", seed=run.seed, state="succeeded",
                   metrics={**run.metrics, "instability_random": 0.15})
        for run in trained("narrow", NARROW)
    ]  # fmt: skip
    ranking = Ranking.of([*trained("plain", PLAIN), *other], AIMS)
    assert [row[0] for row in ranking.table().rows[2:]] == [
        "-- best constant place",
        "-- peak at the centre",
        "-- random cell (plain)",
        "-- random cell (narrow)",
    ]
    found = {(one["baseline"], tuple(one["settings"])): one["value"] for one in as_json(ranking)["baselines"]}
    assert math.isclose(found["instability_random", ("narrow",)], 0.15)
    assert found["instability_center", ("plain", "narrow")] == pytest.approx(0.0755)
