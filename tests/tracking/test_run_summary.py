"""Identity and state of a run, as it is recorded now and as earlier versions recorded it."""

from __future__ import annotations

import pytest

from ipcnn_ray.tracking.run_summary import RunSummary, translate_earlier_record
from ipcnn_ray.tracking.tracker import RecordedRun

PRUNED = "early stopping at epoch 4 of 12"
INTERRUPTED = "interrupted; submitted again, it goes on"


def recorded(state: str, cause: str, tags: dict[str, str], **params: str) -> RecordedRun:
    run_id = "sweep-12345678-r1234abcd.seed3"
    return RecordedRun.from_tags(run_id, state, cause, tags, params, handle="h", parent="p")


def test_the_identity_is_read_back_from_tags():
    run = RunSummary("a-1-r1234abcd.seed3", "r1234abcd.seed3", group="r1234abcd", seed=3, template="L1 β2")
    facts = {"handle": "h", "parent": "p", "metrics": {"epoch": 2.0}}
    again = RecordedRun.from_tags(run.run_id, "stopped", PRUNED, run.identity_tags, {}, **facts)
    assert again.identity_tags == run.identity_tags
    # A named run may look sampled, and a stopped one may have any cause: neither is interpreted.
    assert (again.origin, again.state, again.cause) == ("named", "stopped", PRUNED)
    assert RunSummary("a-1-l1", "l1").group == "l1"


def test_an_experiment_has_its_own_id_as_label():
    parent = RecordedRun.from_tags("sweep-12345678", "succeeded", "", {}, {}, handle="h")
    assert (parent.label, parent.group, parent.parent) == ("sweep-12345678", "sweep-12345678", "")


@pytest.mark.parametrize(
    ("state", "cause", "now"),
    [
        ("stopped", PRUNED, "pruned"),
        ("stopped", INTERRUPTED, "stopped"),
        ("failed", PRUNED, "failed"),
        ("succeeded", "", "succeeded"),
    ],
)
def test_a_run_that_an_earlier_version_recorded(state, cause, now):
    run = recorded(state, cause, {"ipcnn.seed": "3"})
    assert (run.label, run.group, run.seed) == ("r1234abcd.seed3", "r1234abcd", 3)
    assert (run.origin, run.state, run.cause) == ("sampled", now, cause)
    assert recorded(state, cause, {}, seed="5").seed == 5


@pytest.mark.parametrize(
    ("label", "named", "origin"),
    [
        ("r1234abcd", None, "sampled"),
        ("rabbit", None, "named"),
        ("r1234abcd", {"plain"}, "sampled"),
        ("r1234abcd", {"plain", "r1234abcd"}, "named"),
        ("r1234abcd.seed2", {"r1234abcd"}, "named"),
    ],
)
def test_the_origin_of_an_earlier_run_follows_from_the_spec(label, named, origin):
    assert translate_earlier_record(f"a-1-{label}", "succeeded", "", named).origin == origin
