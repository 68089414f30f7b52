"""The image, built and run: its health check, `ipcnn doctor`, a submission, and a Ray that needs a token.

Needs a builder of images, which two environment variables name:

    IPCNN_IMAGE_BUILD="docker build --tag ipcnn:test" IPCNN_IMAGE_RUN="docker run --rm ipcnn:test" \\
      pytest -m cluster tests/cluster/test_image_runs.py

The folder with the Dockerfile is appended to the first command, without which the image must be there already; to the
second, the command that a new container runs. Takes about ten minutes and 15 GB of disk.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
Run = Callable[[str], subprocess.CompletedProcess[str]]
TOKEN = "python -c 'import secrets; print(secrets.token_hex(32))' > ~/.ray/auth_token"
HEAD = "ray start --head --num-cpus=1 --num-gpus=0 > ~/ray.log 2>&1"
RAYLETS = r"grep -laP '[r]aylet/raylet\x00' /proc/[0-9]*/cmdline 2> /dev/null"  # does not match itself
SPEC = """
name: in_the_image
data: {kind: drawn_animals, objects: 20, negatives: 20}
model: {network: compact}
template: {shape: gradient}
train: {epochs: 2, batch_size: 8}
"""
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def run() -> Run:
    """Runs a bash script in a new container of the image."""
    if "IPCNN_IMAGE_RUN" not in os.environ:
        pytest.skip("needs a builder of images: set IPCNN_IMAGE_BUILD and IPCNN_IMAGE_RUN, see the docstring")
    if build := os.environ.get("IPCNN_IMAGE_BUILD"):
        subprocess.run([*shlex.split(build), str(ROOT)], check=True)
    command = [*shlex.split(os.environ["IPCNN_IMAGE_RUN"]), "bash", "-euo", "pipefail", "-c"]
    slow = (
        "export RAY_raylet_start_wait_time_s=300; "  # half a minute by default, too short on a machine that is in use
    )
    return lambda script: subprocess.run([*command, slow + script], capture_output=True, text=True, timeout=1200)


def out(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_user_may_write_where_it_must_and_nowhere_else(run):
    there = out(run("id -u; pwd; for d in ~ ~/.ray ~/.mlflow ~/mlflow /cache /data /weights; do touch $d/x; done"))
    assert there.split() == ["1000", "/home/ray"]
    assert run("touch /opt/ipcnn/x").returncode
    assert run("touch /usr/local/bin/ipcnn-healthy").returncode
    assert run("sudo -n true").returncode


def test_sudo_is_for_the_two_files_of_the_launcher(run):
    rules = re.findall(r"NOPASSWD: (.*)", out(run("sudo -n -l")))
    allowed = "/usr/bin/chown 1000\\:1000 /home/ray/ray_bootstrap_"
    assert rules == [f"{allowed}config.yaml", f"{allowed}key.pem"]


def test_its_packages_fit_together(run):
    """All that they need is there in a version that they accept, but the compiler of torch.compile."""
    complaints = [line for line in run("python -m pip check").stdout.splitlines() if "requires triton" not in line]
    assert complaints == ["No broken requirements found."] or complaints == []


def test_libraries_of_torch_and_cuda_lack_the_driver_alone(run):
    """Nothing that was left out of the image is linked by what is in it; networks and MPI are there where they are."""
    libraries = "$(find torch/lib nvidia -name '*.so' -o -name '*.so.*' 2> /dev/null || true)"
    lines = out(run(f"cd /opt/ipcnn/lib/python3*/site-packages; ldd {libraries} 2> /dev/null || true")).splitlines()
    assert len(lines) > 50
    absent = {line.split()[0] for line in lines if "not found" in line}
    ours = {name for name in absent if name.startswith(("libcu", "libnv", "libnccl", "libtorch", "libc10"))}
    assert ours <= {"libcuda.so.1"}


@pytest.mark.parametrize("start", ["ray start --head", "ray start --address=127.0.0.1:6379"])
def test_a_ray_without_a_token_does_not_start(run, start):
    done = run(f"if {start}; then exit 9; fi; if {RAYLETS}; then exit 8; fi")
    assert "token" in out(done) + done.stderr


def test_the_health_check_follows_the_node(run):
    done = run(
        f"ipcnn-healthy; echo idle; {TOKEN}; {HEAD}; ipcnn-healthy; echo up; "
        f"kill -9 $({RAYLETS} | cut -d / -f 3); sleep 1; ipcnn-healthy || echo down"
    )
    assert [word for word in out(done).split() if word in ("idle", "up", "down")] == ["idle", "up", "down"]
    assert "the raylet of this node is gone" in done.stderr


def test_mlflow_asks_for_a_password_and_is_healthy(run):
    login = "[mlflow]\\nmlflow_tracking_username = ipcnn\\nmlflow_tracking_password = %s\\n"
    ask = (
        "import urllib.request as u, urllib.error as e\n"
        "try: print(u.urlopen('http://127.0.0.1:5000/api/2.0/mlflow/experiments/search?max_results=1').status)\n"
        "except e.HTTPError as error: print(error.code)"
    )
    done = run(
        f"{TOKEN}; printf '{login}' $(cat ~/.ray/auth_token) > ~/.mlflow/credentials; "
        f'ipcnn-mlflow start; ipcnn-healthy; python -c "{ask}"; '
        "MLFLOW_TRACKING_URI=http://127.0.0.1:5000 ipcnn list; ipcnn-mlflow backup ~/copy.db"
    )
    assert out(done).split()[0] == "401"


def test_doctor_notes_what_nobody_mounted(run):
    """Nothing is wrong in a fresh container."""
    told = json.loads(out(run("ipcnn doctor --json")))
    assert told["ok"], told
    notes = {check["check"]: check["fact"] for check in told["checks"] if check["state"] == "note"}
    assert "IPCNN_DATA = /data is empty" in notes["data"]
    assert "IPCNN_WEIGHTS = /weights holds no weight files" in notes["weights"]


def test_a_submission_trains_and_is_recorded(run):
    commands = "ipcnn submit spec.yaml >&2; ipcnn status in_the_image --json"
    told = json.loads(out(run(f"printf %s {shlex.quote(SPEC)} > spec.yaml; {commands}")))
    assert [run["state"] for run in told] == ["succeeded"], told
