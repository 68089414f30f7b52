"""Rows of the table: a check that must hold, a measured number, or a number with a goal."""

from __future__ import annotations

from typing import Any


def check(what: str, value: str, holds: bool) -> dict[str, Any]:
    """A check; one that does not hold makes the command fail."""
    return {"what": what, "value": value, "state": "ok" if holds else "failed"}


def within(what: str, error: float, bound: float) -> dict[str, Any]:
    """A check that an error is at most `bound`."""
    return {
        "what": what,
        "value": f"{error:.2e}",
        "goal": f"<= {bound:.0e}",
        "state": "ok" if error <= bound else "failed",
    }


def number(what: str, value: str) -> dict[str, Any]:
    """A measured number."""
    return {"what": what, "value": value}


def goal(what: str, value: float, bound: float, *, unit: str = "", at_most: bool) -> dict[str, Any]:
    """A measured number with a goal; missing it does not make the command fail."""
    reached = value <= bound if at_most else value >= bound
    sign = "<=" if at_most else ">="
    return {
        "what": what,
        "value": f"{value:.3f}{unit}",
        "goal": f"{sign} {bound:g}{unit}",
        "state": "reached" if reached else "missed",
    }
