"""Fuzzing: changed specs, data files and weight files are read; each must be accepted, or refused with an IpcnnError.

    nice python tests/fuzz/run.py --count 10000 --seed 0            everything, in proportion
    python tests/fuzz/run.py --only csv --count 500                 one kind of file
    python tests/fuzz/run.py --seed 0 --first 4711 --count 1        one case again, with the exception's traceback

A fault is any other exception, more than 5 s of CPU time, or 256 MB more memory than any case before. A case follows
from the seed and its number alone. The content of each fault is stored in a folder that is printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from types import FrameType

sys.path[:0] = [str(Path(__file__).resolve().parents[i]) for i in (1, 2)]

from fuzz.targets import Target, targets  # noqa: E402

from ipcnn_ray.errors import IpcnnError  # noqa: E402

SECONDS = 5.0
"""CPU time of a case."""
STUCK_S = 120
"""Wall-clock seconds after which a case that no signal ends, in a library's code, ends the process."""
GROWTH = 256 << 20
"""Bytes that the memory of the process may grow by in one case."""
MOST_MEMORY = 4 << 30
"""Limit on the address space beyond what is in use at the start, so that a fault does not take the machine's memory."""


class TooSlow(BaseException):
    """A case took more than `SECONDS`. No handler of exceptions takes it for one of its own."""


@dataclass
class Result:
    """What came of all cases."""

    accepted: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    """CPU seconds, and its case."""


def peak() -> int:
    """Largest memory of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


@contextmanager
def limited() -> Iterator[None]:
    """Raise TooSlow in a block that takes more than SECONDS of CPU time."""

    def end(number: int, frame: FrameType | None) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def run_case(target: Target, case: str, content: bytes, result: Result, faults: Path) -> None:
    """Read one file and add what came of it to the result."""
    target.file.write_bytes(content)
    memory, began, fault = peak(), time.process_time(), ""
    try:
        with limited():
            target.read()
        result.accepted[target.name] += 1
    except IpcnnError:
        result.refused[target.name] += 1
    except TooSlow:
        fault = f"took more than {SECONDS:g} s\n{traceback.format_exc(limit=-6)}"
    except Exception:
        fault = traceback.format_exc(limit=-6)
    seconds = time.process_time() - began
    result.slowest = max(result.slowest, (seconds, case))
    if (growth := peak() - memory) > GROWTH and not fault:
        fault = f"took {growth >> 20} MB"
    if fault:
        stored = faults / case.replace(" ", "_")
        stored.write_bytes(content)
        result.faults.append(f"{case}  {stored}\n{fault}")


def fuzz(count: int, seed: int, *, first: int = 0, only: Sequence[str] = (), faults: Path) -> Result:
    """Run the cases `first`, `first` + 1, ... of a seed; `faults` is a folder for the files of faults."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix="ipcnn-fuzz-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chosen = [target for target in targets(Path(folder)) if not only or target.name in only]
        originals = {target.file: target.file.read_bytes() for target in chosen if target.file.exists()}
        for number in range(first, first + count):
            random = Random(f"{seed} {number}")
            (target,) = random.choices(chosen, [target.share for target in chosen])
            run_case(target, f"{seed}-{number} {target.name}", target.make(random), result, faults)
            if target.file in originals:
                target.file.write_bytes(originals[target.file])
            faulthandler.dump_traceback_later(STUCK_S, exit=True)
        faulthandler.cancel_dump_traceback_later()
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--only", action="append", default=[], help="kind of file; several with several --only")
    arguments = parser.parse_args()
    faulthandler.enable()
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_MEMORY,) * 2)
    faults = Path(tempfile.mkdtemp(prefix="ipcnn-faults-"))
    began = time.monotonic()
    result = fuzz(arguments.count, arguments.seed, first=arguments.first, only=arguments.only, faults=faults)
    known: dict[str, list[str]] = {}
    for fault in result.faults:  # of equal tracebacks the first
        known.setdefault(hashlib.sha256(fault.partition("\n")[2].encode()).hexdigest(), []).append(fault)
    for same in known.values():
        print(f"{len(same)} x {same[0]}")
    for name in sorted({*result.accepted, *result.refused}):
        print(f"{name:24} accepted {result.accepted[name]:6} refused {result.refused[name]:6}")
    seconds = time.monotonic() - began
    print(f"{arguments.count} cases, {len(result.faults)} faults in {seconds:.0f} s", end="; ")
    print(f"slowest {result.slowest[0]:.1f} s ({result.slowest[1]}), {peak() >> 20} MB")
    if not result.faults:
        faults.rmdir()
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
