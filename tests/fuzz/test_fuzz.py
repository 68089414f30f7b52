"""A short run of the fuzzing of run.py; and that it finds something where there is something."""

from __future__ import annotations

from pathlib import Path
from random import Random

import psutil
import pytest
from fuzz import run
from fuzz.mutations import mutated_bytes, mutated_value
from fuzz.targets import Target, targets

from ipcnn_ray.errors import IpcnnError


def test_the_files_are_accepted_as_they_are(tmp_path):
    read = [target for target in targets(tmp_path) if target.file.exists()]
    assert len(read) >= 9
    for target in read:
        target.read()


@pytest.mark.timeout(300)
def test_no_file_leads_to_anything_but_an_error_for_people(tmp_path):
    result = run.fuzz(400, 1, faults=tmp_path)
    assert result.faults == []
    assert sum(result.accepted.values()) + sum(result.refused.values()) == 400
    assert sum(result.accepted.values()) > 20 and len(result.refused) > 15


MORE_THAN_BEFORE = "x = b'x' * (run.peak() - resident() + 600 * 2**20)"


def resident() -> int:
    """Bytes of this process now."""
    return int(psutil.Process().memory_info().rss)


@pytest.mark.parametrize(
    ("text", "fault"),
    [("1 / 0", "ZeroDivisionError"), ("while True: pass", "took more than 0.5 s"), (MORE_THAN_BEFORE, "MB")],
)
def test_faults_are_found(tmp_path, monkeypatch, text, fault):
    monkeypatch.setattr(run, "SECONDS", 5.0 if fault == "MB" else 0.5)
    target = Target("python", 1, lambda random: text.encode(), tmp_path / "x.py", lambda: exec(text))
    result = run.Result()
    run.run_case(target, "0-0 python", text.encode(), result, tmp_path)
    (found,) = result.faults
    assert fault in found and (tmp_path / "0-0_python").read_text() == text


def test_refusals_are_none(tmp_path):
    def refuse() -> None:
        raise IpcnnError("no")

    result = run.Result()
    target = Target("x", 1, lambda random: b"", tmp_path / "x", refuse)
    run.run_case(target, "0-0 x", b"", result, tmp_path)
    assert (result.faults, result.refused["x"]) == ([], 1)


def test_a_case_follows_from_its_number():
    value = {"a": [1, {"b": "x"}], "c": None}
    for number in range(50):
        once, again = (mutated_value(value, [value], Random(number)) for _ in range(2))
        assert repr(once) == repr(again)
        assert mutated_bytes(b"hello, world", Random(number)) == mutated_bytes(b"hello, world", Random(number))
    assert value == {"a": [1, {"b": "x"}], "c": None}
    assert Path(run.__file__).name == "run.py"
