"""The page without a pointer, without colour, on a phone."""

import re
from typing import Any

import pytest
from feedback.page.browsing import axe, count, js, opened
from feedback.page.running import IMAGE

pytest.importorskip("uvicorn")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 360])
def test_nothing_is_inaccessible(browser, hostile, scheme, width):
    size = {"viewport": {"width": width, "height": 800}, "color_scheme": scheme}
    page = opened(browser, hostile.links["ann"], **size)
    assert axe(page) == []
    page.click("#keys summary")
    page.click("label[for=place-0-0]")
    page.click("#save")  # answers are missing: an error is on the page
    assert page.inner_text("#status").startswith("Give a place to ")
    assert axe(page) == []
    page.click("#skip")
    assert axe(page) == []
    width_used = js(page, "document.documentElement.scrollWidth")
    assert width_used <= width  # nothing makes a phone scroll sideways
    page.context.close()
    look = opened(browser, hostile.links["(overview)"], **size)
    assert axe(look) == []
    look.context.close()


def focused(page: Any) -> str:
    return js(page, "document.activeElement.id || document.activeElement.tagName")


def test_all_is_reached_by_tab_in_order_and_shows_its_focus(browser, hostile):
    page = opened(browser, hostile.links["ann"])
    order: list[str] = []
    for _ in range(40):
        page.keyboard.press("Tab")
        if focused(page) in ("BODY", *order[:1]):
            break
        order.append(focused(page))
        shows = "input:focus-visible + label, :focus-visible:not(input)"
        style = f"getComputedStyle(document.querySelector('{shows}'))"
        outline = js(page, f"{style}.outlineStyle + {style}.outlineWidth")
        assert outline == "solid3px", order[-1]
    stops = [re.sub(r"^place-(\d)-0$", r"answer \1", at) for at in order]
    answered = [at for at in stops if at.startswith("answer")]
    assert answered == ["answer 0", "answer 1", "answer 2", "answer 3"]
    assert stops.index("answer 3") < stops.index("undo") < stops.index("save")
    assert stops[0] == "A"  # skips to the task
    page.context.close()


def test_the_dialog_works_without_a_pointer(browser, hostile):
    page = opened(browser, hostile.links[IMAGE])
    before = count(page)
    page.keyboard.press("s")
    page.wait_for_selector("#skip-dialog[open]")
    page.keyboard.press("Escape")
    assert not page.is_visible("#skip-dialog") and count(page) == before
    page.keyboard.press("s")
    page.keyboard.press("ArrowDown")
    for _ in range(3):
        page.keyboard.press("Tab")
    assert page.inner_text(":focus") == "Skip it"
    page.keyboard.press("Enter")
    page.wait_for_selector(f"#count:text-matches('^{before + 1} of')")
    page.context.close()


def test_keys_can_be_turned_off(browser, hostile):
    page = opened(browser, hostile.links["ann"])
    page.click("#keys summary")
    page.uncheck("#keys-on")
    page.click("#prompt")
    for key in "1s":
        page.keyboard.press(key)
    assert page.locator("#answers input:checked").count() == 0
    assert not page.is_visible("#skip-dialog")
    page.reload()
    page.wait_for_selector("#form:visible")
    page.keyboard.press("1")
    assert page.locator("#answers input:checked").count() == 0
    page.context.close()


def test_changes_are_announced_and_motion_is_spared(browser, hostile):
    page = opened(browser, hostile.links["ann"], reduced_motion="reduce")
    status = page.locator("#status")
    assert status.get_attribute("aria-live") == "polite"
    assert status.get_attribute("role") == "status"
    card = page.locator(".card").first
    assert card.evaluate("e => getComputedStyle(e).transitionDuration") == "0s"
    page.context.close()
    page = opened(browser, hostile.links["ann"])
    card = page.locator(".card").first
    assert card.evaluate("e => getComputedStyle(e).transitionDuration") != "0s"
    page.context.close()
