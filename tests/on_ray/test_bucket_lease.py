"""The lease of an experiment in a bucket: one driver at a time, on servers that obey, ignore and refuse conditions.

The test of fifty simultaneous starts uses a real S3 server as well: IPCNN_TEST_S3_URL, with its keys in
AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import boto3
import pytest
from fakes.s3 import FakeS3

from ipcnn_ray.errors import TrackingError
from ipcnn_ray.on_ray import bucket_lease
from ipcnn_ray.on_ray.bucket_lease import DRIVER, is_leased
from ipcnn_ray.tracking.s3_storage import S3Storage
from ipcnn_ray.utils.locks import LockedError

ROOT = "s3://bucket/runs/sweep-12345678"
KEY = f"runs/sweep-12345678/{DRIVER}"
DRIVER_SCRIPT = Path(__file__).parents[1] / "fakes/two_drivers.py"
STARTS = 50


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(bucket_lease, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(bucket_lease, "LEASE_S", 0.5)
    monkeypatch.setattr(bucket_lease, "SETTLE_S", 0.05)


def no_warning(text: str) -> None:
    raise AssertionError(text)


def lease(warn=no_warning):
    return bucket_lease.bucket_lease(ROOT, warn)


def driver(store: FakeS3) -> dict[str, object]:
    return json.loads(store.objects[KEY])


def wait_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_claim_heartbeat_and_release_are_conditional_requests(fake_s3):
    for _ in range(2):
        assert not is_leased(ROOT)
        with lease():
            assert is_leased(ROOT)
            wait_until(lambda: driver(fake_s3)["beat"] >= 3)
        assert driver(fake_s3)["owner"] == ""
    assert list(fake_s3.objects) == [KEY], "the probe of the server leaves nothing"
    assert not [request for request in fake_s3.requests if request.startswith("DELETE") and DRIVER in request]


@pytest.mark.parametrize("conditions", ["obeyed", "ignored", "refused"])
def test_a_second_driver_finds_the_first_one_alive(fake_s3, conditions):
    fake_s3.conditions = conditions
    warnings: list[str] = []
    with lease(warnings.append):
        with pytest.raises(LockedError), lease(lambda text: None):
            pass
        assert is_leased(ROOT)
    assert not is_leased(ROOT)
    unknown = f"the server of {ROOT} does not know conditional requests"
    assert [text[: len(unknown)] for text in warnings] == ([] if conditions == "obeyed" else [unknown])


@pytest.mark.parametrize("conditions", ["obeyed", "ignored"])
def test_a_lease_without_heartbeat_is_taken_over(fake_s3, conditions):
    """As earlier versions write it, too."""
    fake_s3.conditions = conditions
    fake_s3.objects[KEY] = json.dumps({"owner": "lost", "beat": 7}).encode()
    warnings: list[str] = []
    began = time.monotonic()
    with lease(warnings.append):
        assert time.monotonic() - began >= bucket_lease.LEASE_S
        assert driver(fake_s3)["owner"] not in ("lost", "")
    assert warnings[-1] == f"{ROOT} has a driver that may still be alive: waiting up to 0 s for its heartbeat"
    assert not is_leased(ROOT)


def test_a_lease_that_is_released_meanwhile_is_claimed_at_once(fake_s3, monkeypatch):
    monkeypatch.setattr(bucket_lease, "LEASE_S", 60.0)
    fake_s3.objects[KEY] = json.dumps({"owner": "other", "beat": 7}).encode()

    def release(text: str) -> None:
        del fake_s3.objects[KEY]  # earlier versions delete it

    began = time.monotonic()
    with lease(release):
        assert time.monotonic() - began < 30


def test_who_was_taken_for_dead_says_so_and_leaves_the_lease_to_its_successor(fake_s3, caplog):
    with caplog.at_level(logging.WARNING), lease():
        stolen = json.dumps({"owner": "successor", "beat": 0}).encode()
        with fake_s3.lock:
            fake_s3.objects[KEY] = stolen
        wait_until(lambda: caplog.messages)
        assert caplog.messages[0].startswith(f"{ROOT} was taken over by another driver, which took this one for dead")
    assert fake_s3.objects[KEY] == stolen


def test_a_claim_between_reading_and_writing_is_noticed(fake_s3, monkeypatch):
    """The window of a server without conditions: another driver writes after this one has read."""
    real = S3Storage.put_if_unchanged

    def too_late(self, data, key, version):
        if key == DRIVER:
            fake_s3.objects[KEY] = json.dumps({"owner": "other", "beat": 0}).encode()
        return real(self, data, key, version)

    monkeypatch.setattr(S3Storage, "put_if_unchanged", too_late)
    with pytest.raises(LockedError), lease():
        raise AssertionError("two drivers hold the lease")
    assert driver(fake_s3)["owner"] == "other"


def test_a_request_whose_answer_is_lost_has_succeeded(fake_s3):
    """boto3 sends it again, and the server says that the condition does not hold any more."""
    files = S3Storage(ROOT)
    first = files.put_if_unchanged(b"first", "a", None)
    assert first is not None and files.put_if_unchanged(b"first", "a", None) == first
    second = files.put_if_unchanged(b"second", "a", first)
    assert second is not None and files.put_if_unchanged(b"second", "a", first) == second
    assert files.put_if_unchanged(b"third", "a", first) is None
    assert files.put_if_unchanged(b"third", "b", first) is None, "a file that is gone is no longer that version"
    assert files.get_version("a") == second and files.get_version("b") is None


def test_an_outage_of_the_storage_does_not_end_a_lease(fake_s3):
    with lease():
        fake_s3.gone = lambda request: True
        time.sleep(0.2)
        fake_s3.gone = None
        before = int(driver(fake_s3)["beat"])
        wait_until(lambda: int(driver(fake_s3)["beat"]) > before)
    assert not is_leased(ROOT)


def test_a_file_deleted_by_hand_is_written_again(fake_s3):
    with lease():
        with fake_s3.lock:
            del fake_s3.objects[KEY]
        wait_until(lambda: KEY in fake_s3.objects)
    assert not is_leased(ROOT)


def test_servers_are_asked_what_they_know(fake_s3):
    for conditions, known in (("obeyed", True), ("ignored", False), ("refused", False)):
        fake_s3.conditions = conditions
        assert S3Storage(ROOT).conditional_writes() == known
    fake_s3.conditions, fake_s3.bare_etags = "obeyed", True
    assert S3Storage(ROOT).conditional_writes()
    assert fake_s3.objects == {}
    with pytest.raises(TrackingError, match="NoSuchBucket"):
        S3Storage("s3://other/x").conditional_writes()


def test_the_window_of_a_server_that_ignores_conditions(fake_s3, caplog, monkeypatch):
    """What is known to go wrong there: both drivers hold the lease, and the one that wrote first notices it."""
    monkeypatch.setattr(bucket_lease, "HEARTBEAT_S", 4.0)
    fake_s3.conditions = "ignored"
    slow = threading.Event()

    def delay(request: str) -> float:
        if request == f"PUT {KEY}" and not slow.is_set():
            slow.set()
            return 2.0
        return 0.0

    fake_s3.delay = delay
    both, end = threading.Barrier(2, timeout=30), threading.Event()

    def hold() -> None:
        with lease(lambda text: None):
            both.wait()
            end.wait(30)

    with caplog.at_level(logging.WARNING):
        threads = [threading.Thread(target=hold), threading.Thread(target=hold)]
        threads[0].start()
        wait_until(slow.is_set)  # it has read, and its request is under way
        threads[1].start()
        both_hold = False
        with suppress(threading.BrokenBarrierError):
            wait_until(lambda: any("taken over" in text for text in caplog.messages))
            both_hold = not both.broken
        end.set()
        for thread in threads:
            thread.join()
    assert both_hold


def simultaneous_starts(root: str, starts: int) -> list[list[str]]:
    """What two drivers, processes of their own, say to each of so many starts at the same instant."""
    env = {**os.environ, "PYTHONPATH": str(DRIVER_SCRIPT.parents[2])}
    drivers = [
        subprocess.Popen(
            [sys.executable, str(DRIVER_SCRIPT), root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
            bufsize=1,
        )
        for _ in range(2)
    ]
    assert [child.stdout.readline() for child in drivers] == ["conditional_writes: True\n"] * 2
    answers = []
    for _ in range(starts):
        instant = time.time() + 0.2
        for child in drivers:
            child.stdin.write(f"{instant}\n")
        answers.append([child.stdout.readline().strip() for child in drivers])
        for child in drivers:
            child.stdin.write("release\n")
        wait_until(lambda: not is_leased(root))
    for child in drivers:
        child.stdin.close()
        assert child.wait(30) == 0
    return answers


def check_one_wins(root: str, starts: int) -> None:
    busy = f"{root.rpartition('/')[2]} is being trained by another process on this storage"
    answers = simultaneous_starts(root, starts)
    assert [sorted(pair) for pair in answers] == [sorted([busy, "held"])] * starts
    # Both win at times, or there was no race.
    assert {pair.index("held") for pair in answers} == {0, 1}


@pytest.mark.slow
def test_of_two_drivers_that_start_together_one_wins(fake_s3):
    check_one_wins(ROOT, 20)


@pytest.mark.slow
def test_of_two_drivers_that_start_together_one_wins_on_a_real_server(monkeypatch):
    url = os.environ.get("IPCNN_TEST_S3_URL")
    if not url:
        pytest.skip("needs a real S3 server: set IPCNN_TEST_S3_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"ipcnn-test-{secrets.token_hex(4)}"
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=bucket)
    try:
        check_one_wins(f"s3://{bucket}/runs/sweep-12345678", STARTS)
    finally:
        for entry in s3.list_objects_v2(Bucket=bucket).get("Contents", []):
            s3.delete_object(Bucket=bucket, Key=entry["Key"])
        s3.delete_bucket(Bucket=bucket)
