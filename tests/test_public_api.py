"""The Python API: every name exists, and importing the package imports none of its dependencies."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ipcnn_ray

HEAVY = {"ray", "mlflow", "boto3", "pydantic", "yaml", "scipy", "torchvision", "pandas", "matplotlib", "optuna"}
LAYER = """
import sys, time, torch
start = time.process_time()  # not of other processes of this machine
from ipcnn_ray import InterpretableLayer, LandmarkTracking, LocationInstability
print(time.process_time() - start)
layer = InterpretableLayer(n=6, shape="gradient", norm="l2", beta=10)
layer(torch.rand(2, 3, 6, 6)).sum() + layer.filter_loss()
for metric in (LandmarkTracking(24), LocationInstability(24)):
    metric.update(torch.rand(2, 3, 6, 6), torch.rand(2, 1, 2))
    metric.compute()
sys.exit(" ".join({heavy} & set(sys.modules)) or 0)
"""


def test_every_public_name_exists():
    for name in dir(ipcnn_ray):
        assert getattr(ipcnn_ray, name) is not None
    with pytest.raises(AttributeError, match="module 'ipcnn_ray' has no attribute 'lod'"):
        ipcnn_ray.lod  # noqa: B018


def test_the_package_imports_nothing_until_a_name_is_used():
    code = "import sys, ipcnn_ray; sys.exit(' '.join({'ray', 'torch', 'mlflow', 'pydantic'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_changelog_begins_with_this_version():
    changelog = (Path(ipcnn_ray.__file__).parents[1] / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[0] == ipcnn_ray.__version__
    assert headings == sorted(headings, key=lambda one: [int(part) for part in one.split(".")], reverse=True)


def test_types_are_those_that_are_imported():
    """What a type checker sees under TYPE_CHECKING is the table that names are looked up in."""
    tree = ast.parse(Path(ipcnn_ray.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = {node.names[0].name: node.module for node in block.body}
    assert all(node.names[0].asname == node.names[0].name for node in block.body)
    assert imports == ipcnn_ray._PUBLIC
    assert Path(ipcnn_ray.__file__).with_name("py.typed").exists()


def test_layer_and_metrics_need_torch_alone():
    """Beside `import torch` their import takes 0.1 s."""
    code = LAYER.format(heavy=HEAVY)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 0.3
