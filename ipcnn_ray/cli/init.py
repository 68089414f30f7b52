"""`ipcnn init`: a commented spec to begin with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from ipcnn_ray.cli import output
from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.spec.starter import starter

At = Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write, or a folder that exists.")]
NAME = "experiment"


def init(file: At = Path(f"{NAME}.yaml")) -> None:
    """Write a commented spec: every field, what it means, and its default. Never over a file that is there."""
    if file.is_dir():
        file = file / f"{NAME}.yaml"
    try:
        with file.open("x", encoding="utf-8") as out:
            out.write(starter(_name(file.stem), str(file)))
    except FileExistsError as error:
        raise IpcnnError(f"{file}  is there already\nName another file: ipcnn init FILE") from error
    except OSError as error:
        raise IpcnnError(f"{file}  cannot be written: {error.strerror}\nname a file in a folder that exists") from error
    output.say(f"wrote {file}")
    output.note(f"next:  ipcnn plan {file}  |  ipcnn submit {file}")


def _name(stem: str) -> str:
    """The file's name as the name of an experiment."""
    return re.sub(r"[^a-z0-9]+", "_", stem.lower()).strip("_")[:40].rstrip("_") or NAME
