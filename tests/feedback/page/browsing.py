"""What the tests do in a browser: open the page, look, judge, ask axe-core."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest


def opened(browser: Any, link: str, **options: Any) -> Any:
    """The page behind a link, in a window of its own; errors in it are errors here."""
    page = browser.new_context(**options).new_page()
    page.set_default_timeout(60_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: m.type == "error" and page.problems.append(m.text))
    page.goto(link)
    page.wait_for_selector("#form:visible, #notice:has-text('Nothing'), #found:visible")
    return page


def js(page: Any, expression: str) -> Any:
    """What an expression is in the page; asked as a debugger, whom no policy stops."""
    asked = {"expression": expression, "returnByValue": True, "awaitPromise": True}
    session = page.context.new_cdp_session(page)
    found = session.send("Runtime.evaluate", asked)
    session.detach()
    if "exceptionDetails" in found:
        raise RuntimeError(found["exceptionDetails"]["exception"]["description"])
    return found["result"].get("value")


def answers(page: Any) -> list[str]:
    return page.locator("#answers .said").all_inner_texts()


def count(page: Any) -> int:
    return int(page.inner_text("#count").split()[0])


def save(page: Any, press: bool) -> None:
    before = count(page)
    if press:
        page.keyboard.press("Enter")
    else:
        page.click("#save")
    page.wait_for_selector(f"#count:text-matches('^{before + 1} of')")


def axe(page: Any) -> list[str]:
    """What axe-core finds: against WCAG 2.2, A and AA, and its own advice."""
    found = find_spec("axe_playwright_python")
    if found is None or found.origin is None:
        pytest.skip("no axe-core here: pip install axe-playwright-python")
    js(page, (Path(found.origin).parent / "axe.min.js").read_text() + ";0")
    report = js(page, "axe.run()")
    assert len(report["passes"]) > 10
    return [
        f"{broken['id']}: {node['html']} {node['failureSummary']}"
        for broken in report["violations"]
        for node in broken["nodes"]
    ]
