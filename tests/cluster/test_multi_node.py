"""multi_node.py as a test; it needs an S3 server, and takes ten minutes or more."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@pytest.mark.cluster
@pytest.mark.timeout(3600)
def test_a_search_survives_every_loss():
    if not (os.environ.get("IPCNN_TEST_S3") and os.environ.get("IPCNN_TEST_S3_URL")):
        pytest.skip("needs a real S3 server: set IPCNN_TEST_S3 (a command that starts one) and IPCNN_TEST_S3_URL")
    folder = Path(tempfile.mkdtemp(prefix="ipcnn-", dir="/tmp"))  # short enough for Ray's sockets
    script = Path(__file__).with_name("multi_node.py")
    done = subprocess.run([sys.executable, str(script), str(folder)], capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.rmtree(folder)
