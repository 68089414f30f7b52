"""Driver that a test kills: `python -m fakes.killed_driver HOME SPEC.json`."""

from __future__ import annotations

import sys
from pathlib import Path

from fakes.ray_bench import Bench
from ipcnn_ray.spec.experiment import ExperimentSpec
from ipcnn_ray.utils.paths import Paths

if __name__ == "__main__":
    home, spec = sys.argv[1:]
    bench = Bench(Paths.from_environment({"IPCNN_HOME": home}))
    bench.submit(ExperimentSpec.model_validate_json(Path(spec).read_text()))
