"""The system's Chromium, for tests of pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser without a window; where the system has none, the test is skipped."""
    driver = pytest.importorskip("playwright.sync_api")
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: apt-get install chromium")
    flags = "no-sandbox disable-gpu disable-quic no-first-run disable-sync"
    flags += " disable-background-networking disable-component-update"
    args = [f"--{flag}" for flag in flags.split()]
    with driver.sync_playwright() as playwright:
        running = playwright.chromium.launch(
            executable_path=found, args=args, timeout=120_000
        )
        yield running
        running.close()
