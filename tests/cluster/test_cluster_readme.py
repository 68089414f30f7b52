"""cluster/README.md names files and commands that exist, and each form with its cost and its end."""

from __future__ import annotations

import re
from pathlib import Path

from typer.main import get_command

from ipcnn_ray.cli.app import app

FOLDER = Path(__file__).resolve().parents[2] / "cluster"
README = (FOLDER / "README.md").read_text()
FORMS = ("One machine", "AWS", "Kubernetes", "MLflow on PostgreSQL")


def test_every_form_says_what_it_costs_and_how_it_ends():
    parts = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", README, re.S | re.M))
    for form in FORMS:
        assert re.search(r"\*\*Costs:?\*\*", parts[form]), form
        assert re.search(r"\*\*Ending it[:.]\*\*", parts[form]), form
    for form in FORMS[1:]:
        assert "2025-11" in parts[form], f"{form}: prices without a date"
    assert "**Not run**" in parts["What has been tested"]


def test_its_links_and_commands_exist():
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", README)
    assert links and [link for link in links if not (FOLDER / link).exists()] == []
    named = set(re.findall(r"(?<!tests/)cluster/([a-z_]+\.(?:yaml|py))", README))
    assert named and [name for name in named if not (FOLDER / name).is_file()] == []
    used = set(re.findall(r"\bipcnn ([a-z]+) ?(?=--|\S+\.yaml)", README))
    assert used and used <= set(get_command(app).commands)


def test_every_file_of_the_folder_is_named_in_it():
    said = README + (FOLDER.parent / "Dockerfile").read_text()
    assert [file.name for file in FOLDER.iterdir() if file.is_file() and file.name not in said + "README.md"] == []
