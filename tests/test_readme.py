"""The README's commands and links exist, and its two commands are one line each."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from ipcnn_ray.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(marker: str) -> list[str]:
    found = re.search(rf"<!-- {marker} -->\n```bash\n(.*?)```", README, re.S)
    assert found, f"README.md has no block marked {marker!r}"
    return found.group(1).strip().splitlines()


def test_the_two_commands_are_one_line_each():
    assert len(block("main command")) == 1
    assert len(block("test command")) == 1
    assert "ipcnn submit specs/uniform_sweep.yaml" in block("main command")[0]


def test_every_command_in_the_readme_exists():
    shown = re.findall(r"```bash\n(.*?)```", README, re.S) + re.findall(r"`(ipcnn [^`]+)`", README)
    used = set(re.findall(r"\bipcnn ([a-z]+)", "\n".join(shown)))
    known = set(get_command(app).commands)
    assert used, "the README shows no command"
    assert used <= known, f"the README shows commands that do not exist: {sorted(used - known)}"


def test_every_link_to_a_file_exists():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links, "the README links to no file"
    assert [link for link in links if not (ROOT / link).exists()] == []
