from __future__ import annotations

from pathlib import Path

import pytest
from fakes.datasets import VocFolder, voc_folder


@pytest.fixture
def folder(tmp_path: Path) -> VocFolder:
    """A good folder of Pascal VOC Part."""
    return voc_folder(tmp_path)
