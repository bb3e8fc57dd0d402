"""A browser without a window, where the system has one."""

from collections.abc import Iterator
from typing import Any

import pytest
from chromium import chromium
from feedback.page.running import IMAGE, SCRIPT, serving, write_rows

from rlhf_jax.feedback.page import ServeConfig


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium of the system, without a window."""
    with chromium() as running:
        yield running


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
