"""The runs of an experiment in the order of their objective."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("run", "template", "combined", "instability", "error", "epochs", "state")


def _number(value: Any, form: str, scale: float = 1.0) -> str:
    return "-" if value is None or math.isnan(value) else format(value * scale, form)


def cells(row: Mapping[str, Any], control: str | None) -> list[str]:
    """One run as text: combined (1 is the control, lower is better), instability (share of the image diagonal),
    validation error (per cent), epochs, state."""
    return [
        row["run"],
        row["template"] + (" (control)" if row["run"] == control else ""),
        _number(row["combined"], ".3f"),
        _number(row["instability"], ".4f"),
        _number(row["val_error"], ".1f", 100) + ("" if row["val_error"] is None else " %"),
        _number(row["epoch"], ".0f"),
        row["state"],
    ]


def markdown(rows: Sequence[Mapping[str, Any]], control: str | None) -> str:
    """The ranking as a Markdown table, with the causes of failures below it."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---" + "|---:" * 4 + "|---|"]
    lines += ["| " + " | ".join(cells(row, control)) + " |" for row in rows]
    lines += ["", "combined: 1 is the control, lower is better. instability: share of the image diagonal."]
    lines += [f"\n{row['run']} {row['state']}: {row['why']}" for row in rows if row["why"]]
    return "\n".join(lines) + "\n"
