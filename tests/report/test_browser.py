"""The page in a browser: on a desk and on a phone, light and dark."""

import pytest
from chromium import chromium
from feedback.page.browsing import axe, js

SEEN = {"ppo/report.html": "light", "both.html": "dark"}
SIZES = """[...document.querySelectorAll("svg text, main p, td, dd, figcaption")]
  .map(e => e.getBoundingClientRect().height).filter(height => height > 0)"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as running:
        yield running


@pytest.mark.parametrize("file", SEEN)
@pytest.mark.parametrize("width", [1280, 380])
def test_it_can_be_read_by_everybody(browser, root, width, file):
    size = {"viewport": {"width": width, "height": 800}}
    window = browser.new_context(**size, color_scheme=SEEN[file]).new_page()
    problems = []
    window.on("console", lambda message: problems.append(message.text))
    window.on("pageerror", lambda error: problems.append(str(error)))
    window.goto((root / file).as_uri())
    js(window, "document.querySelectorAll('details').forEach(d => d.open = true)")
    assert problems == [] and "ppo" in window.title()
    assert js(window, "document.documentElement.scrollWidth") <= width
    assert axe(window) == []
    # The letters of the pictures, too: as large as small print, in the scheme's ink.
    assert min(js(window, SIZES)) >= 10
    style = lambda of: f"getComputedStyle(document.querySelector('{of}'))"
    ink = js(window, f"{style('.unit')}.color")
    assert js(window, f"{style('svg text')}.fill") == ink
    window.context.close()
