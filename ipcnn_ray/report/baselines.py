"""Baselines: what a filter that looks at nothing has in a metric, beside the numbers of the trained filters.

The baselines of location instability depend on the images and the grid of the measured layer, not on the filters, so
settings share them. Those of the other metrics are measured on the same filters; tables show them in parentheses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ipcnn_ray.report.ranking import Group
from ipcnn_ray.spec.extensions import BASELINES, INSTABILITY
from ipcnn_ray.utils.text import counted, shortened_list

BASELINE_MARK = "--"
"""Begins the row of a baseline in a table of settings."""


@dataclass(frozen=True)
class BaselineValue:
    """The value of a baseline, and the settings that it holds for."""

    name: str
    """Metric that records it, such as `instability_center`."""
    measure: str
    """Metric that it is a baseline of."""
    words: str
    """What it is, such as `peak at the centre`."""
    value: float
    settings: tuple[str, ...]
    everywhere: bool
    """Whether all settings that recorded it have the same value."""

    @property
    def row_name(self) -> str:
        """Name of its row in a table, with the settings that it holds for where they differ."""
        return f"{BASELINE_MARK} {self.words}" + ("" if self.everywhere else f" ({shortened_list(self.settings, 3)})")

    @property
    def line_label(self) -> str:
        """Label of its line in a figure, with the number of settings where they differ."""
        which = "" if self.everywhere else f" of {counted(len(self.settings), 'setting')}"
        return f"{self.words}{which} ({self.value:.4f})"

    def as_json(self) -> dict[str, Any]:
        settings = list(self.settings)
        return {"baseline": self.name, "of": self.measure, "is": self.words, "value": self.value, "settings": settings}


def instability_baselines(groups: Sequence[Group]) -> list[BaselineValue]:
    """Baselines of location instability; one for each value of four decimal places, best first.

    Empty for records of versions that did not measure them.
    """
    found = []
    for name, (measure, words) in BASELINES.items():
        if measure != INSTABILITY:
            continue
        by_value: dict[str, list[Group]] = {}
        for group in groups:
            if name in group.means:
                by_value.setdefault(f"{group.means[name]:.4f}", []).append(group)
        for alike in by_value.values():
            settings = tuple(group.name for group in alike)
            found.append(BaselineValue(name, measure, words, alike[0].means[name], settings, len(by_value) == 1))
    return sorted(found, key=lambda baseline: baseline.value)
