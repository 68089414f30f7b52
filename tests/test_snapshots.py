"""The comparison with reviewed messages can fail, and one option writes them."""

from __future__ import annotations

import pytest
import snapshots
from snapshots import Snapshot


def test_any_difference_fails_and_the_option_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "TESTS", tmp_path)
    texts = {"one": "s.yaml:1  a = 'x: #'\n       must be b", "two": "c"}
    Snapshot(update=True).check("m.yaml", texts)
    Snapshot(update=False).check("m.yaml", texts)
    for other in (texts | {"two": "d"}, texts | {"three": "e"}, {"two": "c"}, {"two": "c", "one": texts["one"]}):
        with pytest.raises(pytest.fail.Exception, match="--update-snapshots"):
            Snapshot(update=False).check("m.yaml", other)
    with pytest.raises(AssertionError, match="YAML does not keep"):
        Snapshot(update=True).check("m.yaml", {"one": "ends in a blank line\n"})
