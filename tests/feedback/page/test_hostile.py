"""What a model says, and what other sites do, in a browser."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from feedback.page.browsing import answers, count, js, opened
from feedback.page.running import IMAGE, SCRIPT, event, wait_for

pytestmark = pytest.mark.fault(31)

pytest.importorskip("uvicorn")


def test_scripts_in_texts_are_text(browser, hostile):
    page = opened(browser, hostile.links["ann"])
    assert set(answers(page)) > {SCRIPT, IMAGE}
    assert page.inner_text("#prompt").endswith(f" {SCRIPT}{IMAGE}")
    assert SCRIPT in page.inner_text("#text strong")
    assert IMAGE in page.inner_text("#text code")
    assert page.locator("main script, main img, main b, aside img").count() == 0
    look = opened(browser, hostile.links["(overview)"])
    assert IMAGE in look.inner_text("#people")
    for window in (page, look):
        assert window.title() != "taken" and window.problems == []
        window.context.close()


def test_what_the_policy_of_the_page_forbids(browser, hostile):
    """Even a mistake in the page's scripts would not run what a model says."""
    page = opened(browser, hostile.links["ann"])
    with pytest.raises(RuntimeError, match="TrustedHTML"):
        js(page, "document.body.innerHTML = '<img src=x>'")
    js(page, "document.head.append(document.createElement('style'))")
    js(page, "document.querySelector('style').textContent = 'body {margin: 9px}'")
    assert js(page, "getComputedStyle(document.body).marginTop") != "9px"
    assert js(page, "document.cookie") == ""
    assert hostile.token("ann") not in page.url
    page.context.close()


@pytest.fixture
def elsewhere():
    """Another site, on this machine, so that the browser lets it try."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<form method=post><button>You won!</button></form>")

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_another_site_cannot_post(browser, hostile, elsewhere):
    """Not a form of it, and not even a script that knows the token."""
    done = hostile.task("ann")["done"]
    vote = json.dumps(event(hostile.task("ann"), "vote", ranks=[0, 1, 2, 3]))
    address = f"{hostile.origin}/api/events"
    headers = {"Authorization": f"Bearer {hostile.token('ann')}"}
    headers |= {"Content-Type": "application/json"}
    page = browser.new_context().new_page()
    statuses: list[int] = []
    page.on("response", lambda answer: statuses.append(answer.status))
    page.goto(elsewhere)
    sent = json.dumps({"method": "POST", "headers": headers, "body": vote})
    with pytest.raises(RuntimeError, match="Failed to fetch"):
        js(page, f"fetch({address!r}, {sent})")
    js(page, f"document.forms[0].action = {address!r}")
    page.click("button")
    wait_for(lambda: page.wait_for_timeout(50) or statuses[-1] == 403)
    assert hostile.task("ann")["done"] == done
    page.context.close()


def test_a_wrong_link_says_what_to_do(browser, hostile):
    for link in (hostile.origin, f"{hostile.origin}/#{'x' * 32}"):
        page = browser.new_context().new_page()
        page.goto(link)
        page.wait_for_selector("text=opens with the link that you were given")
        assert not page.is_visible("#save")
        page.context.close()


def test_a_vote_that_gets_no_answer_is_sent_again_after_a_reload(browser, hostile):
    page = opened(browser, hostile.links["ann"])
    before = count(page)
    held = []  # the server does not hear, or its answer is lost

    def lose(route: Any) -> None:
        held.append(route.fetch() if len(held) == 1 else None)
        route.abort()

    page.route("**/api/events", lose)
    for key in "1234":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Not saved yet")
    wait_for(lambda: page.wait_for_timeout(50) or len(held) >= 2)
    page.unroute("**/api/events")
    page.reload()
    page.wait_for_selector(f"#count:text-matches('^{before + 1} of')")
    assert hostile.task("ann")["done"] == before + 1
    page.context.close()
