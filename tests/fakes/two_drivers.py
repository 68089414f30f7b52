"""A driver for test_bucket_lease.py: tries to hold an experiment at a given instant, and tells whether it does.

    python two_drivers.py ROOT

Each line of stdin is a time (time.time()); the answer is `held`, or the error. An empty line releases the experiment.
The server is asked once what it knows of conditions: what follows an instant is the claim alone.
"""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from ipcnn_ray.errors import IpcnnError
from ipcnn_ray.on_ray.experiment_dir import exclusive
from ipcnn_ray.tracking.s3_storage import S3Storage


def main(root: str) -> None:
    known = S3Storage(root).conditional_writes()
    S3Storage.conditional_writes = lambda self: known  # type: ignore[method-assign]
    print(f"conditional_writes: {known}", flush=True)
    while line := sys.stdin.readline().strip():
        with ExitStack() as stack:
            while time.time() < float(line):
                pass
            try:
                stack.enter_context(exclusive(root, lambda text: None))
                print("held", flush=True)
            except IpcnnError as error:
                print(str(error).splitlines()[0], flush=True)
            sys.stdin.readline()


if __name__ == "__main__":
    main(*sys.argv[1:])
