"""A look at a cluster from outside, through its Jobs API: who it lets in, and what its nodes say of themselves."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import ray
from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

import ipcnn_ray
from ipcnn_ray.errors import IpcnnError, ResourceError
from ipcnn_ray.on_ray.probe import MARK, gather
from ipcnn_ray.on_ray.session import session
from ipcnn_ray.spec.places import Places

ANSWER_S = 15.0
JOB_S = 240.0
"""Seconds that the job has: its working folder is unpacked, Ray started, and every node asked."""
POLL_S = 0.5
TOKEN_ADVICE = (
    "Set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that holds the cluster's token "
    "(`source DIR/env.sh` for a local one)."
)


def here(places: Places) -> dict[str, Any]:
    """The facts of an embedded Ray, started for this look and stopped again; closed or not as its dashboard says."""
    with session():
        dashboard = f"http://{ray.get_runtime_context().worker.node.webui_url}"
        return {"access": access(dashboard), **gather(places)}


def there(address: str) -> dict[str, Any]:
    """The facts of the cluster whose dashboard is at `address`. Raises IpcnnError where it cannot be asked."""
    if urlsplit(address).scheme not in {"http", "https"}:
        raise IpcnnError(
            f"--address {address} is not the address of a cluster's dashboard\n"
            "Give http://HOST:8265; a cluster behind SSH is at 127.0.0.1 through its tunnel."
        )
    found = access(address)
    if found == "away":
        raise IpcnnError(
            f"no cluster answers at {address}\n"
            "Check that it is up and, if it is behind SSH, that the tunnel is: ray attach cluster/aws.yaml -p 8265"
        )
    began = time.time()
    facts = _visit(address.rstrip("/"))
    # The job's clock was read between our submitting it and our hearing of it.
    ahead = max(0.0, facts["time"] - time.time()) + min(0.0, facts["time"] - began)
    return {"access": found, "client_skew": ahead, **facts}


def access(dashboard: str) -> str:
    """`closed` where the dashboard refuses a visitor without a token, `open` where it lets him in, or `away`."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{dashboard.rstrip('/')}/api/version", timeout=ANSWER_S).close()
    except urllib.error.HTTPError as error:
        return "closed" if error.code in (401, 403) else "open"
    except OSError:
        return "away"
    return "open"


def _visit(address: str) -> dict[str, Any]:
    """The look as a job of the cluster, with our package, which need not be installed there."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(ipcnn_ray.__file__).resolve().parent
        shutil.copytree(source, Path(folder) / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        logging.getLogger("ray").setLevel(logging.ERROR)  # it tells of every upload
        try:
            client = JobSubmissionClient(address)
            job = client.submit_job(
                entrypoint="python -m ipcnn_ray.on_ray.probe",
                runtime_env={"working_dir": folder},
                metadata={"kind": "ipcnn doctor"},
            )
        except (RuntimeError, ConnectionError, ValueError, AuthenticationError) as error:
            raise _told(address, str(error)) from error
    deadline = time.monotonic() + JOB_S
    status = JobStatus.PENDING
    while time.monotonic() < deadline and not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL_S)
    logs = client.get_job_logs(job)
    if not status.is_terminal():
        client.stop_job(job)
        raise ResourceError(
            f"the cluster at {address} did not run a small job within {JOB_S:.0f} s; it is {status.value}\n"
            f"Look at it: RAY_API_SERVER_ADDRESS={address} ray job logs {job}"
        )
    line = next((line for line in logs.splitlines() if line.startswith(MARK)), None)
    if line is None:
        end = [line for line in logs.strip().splitlines() if line.strip()][-1:] or ["it said nothing"]
        raise ResourceError(
            f"a small job failed on the cluster at {address}: {end[0].strip()[:300]}\n"
            "Its Python must have the packages of ipcnn: use the image of the Dockerfile on every node."
        )
    facts: dict[str, Any] = json.loads(line.removeprefix(MARK))
    return facts


def _told(address: str, what: str) -> IpcnnError:
    fact = next((line for line in what.splitlines() if line.strip()), "it gave no reason").strip()[:300]
    refused = any(sign in what for sign in ("401", "403", "nauthorized", "uthentication", "token"))
    advice = TOKEN_ADVICE if refused else "Check the address, and that the cluster runs the same Ray as this machine."
    if "No available agent" in what:
        advice = "The job agent of the head is down: its dashboard_agent.log says why; restart the head."
    return IpcnnError(f"the cluster at {address} took no job: {fact}\n{advice}")
