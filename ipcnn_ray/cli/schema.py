"""`ipcnn schema`: the JSON Schema of a spec, for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.experiment import ExperimentSpec

To = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Write it here; stdout without.", show_default=False)]


def schema(file: To = None) -> None:
    """Print the JSON Schema of a spec.

    With it, an editor completes and checks a spec that begins with: # yaml-language-server: $schema=FILE
    """
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    content = json.dumps(dialect | ExperimentSpec.model_json_schema(), indent=2, ensure_ascii=False) + "\n"
    if file is None:
        output.text(content)
        return
    try:
        file.write_text(content, encoding="utf-8")
    except OSError as error:
        raise IpcnnError(f"{file}  cannot be written: {error.strerror}\nname a file in a folder that exists") from error
