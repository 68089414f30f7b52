"""chaos.py as a test, with a few faults; it needs root, an S3 server and a C compiler, and takes ten minutes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

KILLS, SEED = 8, 1


@pytest.mark.cluster
@pytest.mark.timeout(5400)
def test_a_sweep_survives_chaos():
    if not (os.environ.get("IPCNN_TEST_S3") and os.environ.get("IPCNN_TEST_S3_URL")):
        pytest.skip("needs a real S3 server: set IPCNN_TEST_S3 (a command that starts one) and IPCNN_TEST_S3_URL")
    if os.getuid() != 0 or not (shutil.which("ip") and shutil.which("cc")):
        pytest.skip("needs root, `ip` (iproute2) and `cc`")
    top = Path(tempfile.mkdtemp(prefix="ipcnn-", dir="/tmp"))  # short enough for Ray's sockets
    command = [sys.executable, str(Path(__file__).with_name("chaos.py")), str(top / "c")]
    done = subprocess.run([*command, "--kills", str(KILLS), "--seed", str(SEED)], capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{KILLS} faults: all as undisturbed" in done.stdout
    shutil.rmtree(top)
