"""Messages in reviewed files: what every case must say, and one option that writes it anew.

A snapshot is a YAML file of case -> text beside its test. `pytest TEST --update-snapshots` writes what the cases say
now; a person reviews the change as a diff. Without the option a test fails on any difference: another text, a new
case, a case that is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from difflib import unified_diff
from pathlib import Path

import pytest
import yaml

from ipcnn_ray.errors import IpcnnError

TESTS = Path(__file__).parent


class Snapshot:
    """Compares texts with a file, or writes the file."""

    def __init__(self, update: bool) -> None:
        self.update = update

    def check(self, name: str, texts: Mapping[str, str]) -> None:
        """Fail unless `tests/<name>` holds exactly these texts, in this order. With --update-snapshots, write it."""
        path = TESTS / name
        now = _written(name, texts)
        assert yaml.safe_load(now) == dict(texts), "a text that YAML does not keep"
        if self.update:
            path.write_text(now, encoding="utf-8")
            return
        kept = path.read_text(encoding="utf-8") if path.exists() else ""
        if now != kept:
            changes = unified_diff(kept.splitlines(), now.splitlines(), f"{name} (reviewed)", "now", lineterm="", n=2)
            pytest.fail("\n".join([*changes, "Right as it is now? Run again with --update-snapshots."]), pytrace=False)


def message_of(action: Callable[[], object], shorten: Mapping[str, str] | None = None) -> str:
    """Run a function that must raise an IpcnnError; return its text.

    Args:
        action: The function.
        shorten: Texts that differ from machine to machine, such as a temporary folder, and what stands for them.
    """
    with pytest.raises(IpcnnError) as caught:
        action()
    text = str(caught.value)
    for long, short in (shorten or {}).items():
        text = text.replace(long, short)
    return text


def _written(name: str, texts: Mapping[str, str]) -> str:
    head = f"# Written by `pytest tests/{Path(name).parent} --update-snapshots`. Review every change of it.\n"
    blocks = [f"{case}: |-\n" + "".join(f"  {line}\n" for line in text.split("\n")) for case, text in texts.items()]
    return head + "".join(blocks)
