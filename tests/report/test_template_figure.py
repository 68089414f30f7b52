from __future__ import annotations

import numpy as np
from PIL import Image

from ipcnn_ray.report.template_figure import save_template_figure


def test_a_positive_template_is_brighter_at_its_centre(tmp_path):
    n = 5
    unit = np.full((n * n, n, n), -1.0)
    for position in range(n * n):
        unit[position, position // n, position % n] = 1.0
    save_template_figure(unit, "point", tmp_path / "a.png")
    save_template_figure(np.full((n * n, n, n), -1.0), "point", tmp_path / "b.png")
    with Image.open(tmp_path / "a.png") as a, Image.open(tmp_path / "b.png") as b:
        assert a.size[0] > 600
        assert np.asarray(a.convert("L"), float).sum() > np.asarray(b.convert("L"), float).sum()
