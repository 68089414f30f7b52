"""Freed memory is kept within the block, and returned after it."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ipcnn_ray.utils import memory
from ipcnn_ray.utils.memory import keep_freed_memory

MIB = 1 << 20
SCRIPT = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_memory import faults, resident
from ipcnn_ray.utils.memory import keep_freed_memory
before = resident()
outside = faults()
with keep_freed_memory():
    faults()
    inside, held = faults(), resident() - before
print(outside, inside, held, resident() - before)
"""


def faults() -> int:
    """Pages that the system gives for ten times the same 64 MiB."""
    import torch

    start = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        torch.ones(16 * MIB)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - start


def resident() -> int:
    """Bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_pages_are_taken_once():
    done = subprocess.run([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True, check=True)
    outside, inside, held, after = map(int, done.stdout.split())
    assert outside >= 300 and inside < outside / 10  # 32 huge pages each time, or 16,384 small ones
    assert held >= 60 * MIB and after < 30 * MIB + (held - 64 * MIB)


def test_another_c_library_changes_nothing(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    with keep_freed_memory():
        pass
