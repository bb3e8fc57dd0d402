"""A browser without a window, where the system has one."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from feedback.page.running import IMAGE, SCRIPT, serving, write_rows

from rlhf_jax.feedback.page import ServeConfig


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, without a window."""
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


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Two prompts with answers that would be scripts, if anything read them as HTML."""
    folder = tmp_path_factory.mktemp("hostile")
    texts = [SCRIPT, IMAGE, "\u202eright to left\u202c <b>bold</b>", "x" * 300]
    rows = [{"prompt": f"{i} {SCRIPT}{IMAGE}", "completions": texts} for i in range(6)]
    file = folder / "mine.md"
    file.write_text(f"# Mine\n\nNot **bold {SCRIPT}** nor `{IMAGE}`.\n\n- {IMAGE}\n")
    config = ServeConfig(
        folder / "run",
        completions=write_rows(folder / "c.jsonl", rows),
        annotators=("ann", IMAGE),
        instructions=file,
        votes=2,
    )
    with serving(config) as page:
        yield page
