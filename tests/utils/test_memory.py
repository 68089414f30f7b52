"""Freed memory is kept within the block, and returned after it."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ipcnn_ray.on_ray.ray_session import RAY_VARIABLES
from ipcnn_ray.utils import memory
from ipcnn_ray.utils.memory import keep_freed_memory

MIB = 1 << 20
SCRIPT = f"""
import resource, sys, threading
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_memory import faults, resident
from ipcnn_ray.utils.memory import keep_freed_memory
def measure():
    before = resident()
    outside = faults()
    with keep_freed_memory():
        faults()
        inside, held = faults(), resident() - before
    print(outside, inside, held, resident() - before)
thread = threading.Thread(target=measure)
thread.start() if sys.argv[1:] else measure()
"""


def faults() -> int:
    """Pages that the system gives for ten times the same 128 MiB."""
    import torch

    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(32 * MIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize("thread", [[], ["thread"]])
def test_pages_are_taken_once(thread):
    """In a thread, too, with the variable that processes of Ray have."""
    env = {**os.environ, **{name: value for name, value in RAY_VARIABLES.items() if name.startswith("MALLOC")}}
    command = [sys.executable, "-c", SCRIPT, *thread]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env)
    outside, inside, held, after = map(int, done.stdout.split())
    assert outside >= 600 and inside < outside / 10  # 64 huge pages each time, or 32,768 small ones
    assert held >= 120 * MIB and after < held - 100 * MIB


def test_another_c_library_changes_nothing(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with keep_freed_memory():
        pass
