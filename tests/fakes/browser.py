"""A real browser without a screen: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

OPTIONS = (
    *("--disable-gpu", "--no-first-run", "--disable-quic"),
    # Without these, Chromium looks for updates and synchronises in the background.
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
PATIENCE_MS = 120_000
"""Time limit of a step: machines that run tests are busy."""


@contextmanager
def chromium() -> Iterator[object]:
    """A browser of Playwright; skips the test where Chromium or Playwright is missing."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on the PATH (Debian: apt-get install chromium)")
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install -e .[dev]")
    options = [*OPTIONS, *(["--no-sandbox"] if os.geteuid() == 0 else [])]  # root has no sandbox
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()
