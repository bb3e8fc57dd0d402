"""Requests that are refused, and what every answer tells the browser."""

import json
import socket
import threading
import time
from http.client import HTTPConnection
from pathlib import Path

import pytest
from feedback.page.running import Running, event, serving, write_rows

from rlhf_jax.feedback.page.config import ServeConfig

pytestmark = pytest.mark.fault(31)

pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    rows = [{"prompt": f"p{i}", "completions": ["a", "b"]} for i in range(9)]
    config = ServeConfig(
        folder / "run",
        completions=write_rows(folder / "c.jsonl", rows),
        annotators=("ann", "ben"),
        public=("https://labels.example.org",),
    )
    with serving(config) as running:
        yield running


def votes(page: Running) -> int:
    return page.ask("(overview)", "/api/overview")[1]["votes"]


def refused(page: Running, status: int, headers: dict[str, str], body=None) -> str:
    """The message to a vote that is good but for its headers, or for its body."""
    before = votes(page)
    vote = event(page.task("ann"), "vote", ranks=[0, 1])
    answer = page.ask("ann", "/api/events", body or vote, **headers)
    assert answer[0] == status, answer
    assert votes(page) == before
    return answer[1]["error"]


def test_a_vote_with_all_that_it_needs_is_taken(page):
    before = votes(page)
    page.post("ann", page.task("ann"), "vote", ranks=[0, 1])
    public = {"Origin": "https://labels.example.org", "Host": "labels.example.org"}
    vote = event(page.task("ann"), "vote", ranks=[0, 1])
    assert page.ask("ann", "/api/events", vote, **public)[0] == 200
    assert votes(page) == before + 2


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": ""},
        {"Origin": "https://127.0.0.1"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_a_post_from_another_site_is_refused(page, headers):
    assert "another site" in refused(page, 403, headers)


def test_what_a_form_of_another_site_can_send_is_refused(page):
    for kind in ("application/x-www-form-urlencoded", "text/plain", ""):
        assert "application/json" in refused(page, 415, {"Content-Type": kind})


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer no", "Basic {token}", "{token}"],
)
def test_a_post_without_the_token_is_refused(page, authorization):
    sent = authorization.format(token=page.token("ann"))
    assert "no token" in refused(page, 401, {"Authorization": sent})
    status, _ = page.ask("ann", "/api/task", Authorization=sent)
    assert status == 401


def test_a_token_opens_what_it_is_for_and_nothing_else(page):
    assert page.ask("ann", "/api/overview")[0] == 403
    assert page.ask("(overview)", "/api/task")[0] == 403
    vote = event(page.task("ann"), "vote", ranks=[0, 1])
    assert page.ask("(overview)", "/api/events", vote)[0] == 403
    status, found = page.ask("ben", "/api/events", vote)
    assert (status, found) == (404, {"error": "no such task of yours"})


def test_a_token_in_the_address_is_no_token(page):
    status, _ = page.ask("", f"/api/task?token={page.token('ann')}")
    assert status == 401


@pytest.mark.parametrize("host", ["evil.example", "evil.example:{port}", "127.0.0.1"])
def test_another_name_for_this_machine_is_refused(page, host):
    """DNS rebinding: the other site's own name, pointed here, asks as same-origin."""
    host = host.format(port=page.port)
    sent = {"Host": host, "Origin": f"http://{host}"}
    assert "not the address" in refused(page, 421, sent)
    assert page.ask("ann", "/api/task", Host=host)[0] == 421


@pytest.mark.parametrize("method", ["PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused(page, method):
    asking = HTTPConnection("127.0.0.1", page.port)
    asking.request(method, "/api/events", headers={"Origin": page.origin})
    assert asking.getresponse().status == 405
    asking.close()


@pytest.mark.parametrize("body", ["{", "[" * 60000, "[]", "null", '"x"', b"\xff"])
def test_what_is_no_event_is_refused(page, body):
    refused(page, 400, {}, body)


def memory() -> int:
    """Most bytes that this process, the server in it, has ever had."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.parametrize("announced", [True, False])
def test_a_large_body_is_refused_before_it_is_read(page, announced):
    size, before = 50 * 2**20, memory()
    length = f"Content-Length: {size}" if announced else "Transfer-Encoding: chunked"
    head = (
        f"POST /api/events HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n"
        f"Origin: {page.origin}\r\nAuthorization: Bearer {page.token('ann')}\r\n"
        f"Content-Type: application/json\r\n{length}\r\n\r\n"
    )
    piece = b" " * 2**16
    framed = piece if announced else b"10000\r\n" + piece + b"\r\n"
    sent, answer = 0, b""
    with socket.create_connection(("127.0.0.1", page.port), timeout=20) as sending:
        sending.sendall(head.encode())

        def send() -> None:
            nonlocal sent
            try:
                while sent < size:
                    sending.sendall(framed)
                    sent += len(piece)
            except OSError:
                pass  # the server has hung up, as it should

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        try:
            while part := sending.recv(2**16):
                answer += part
        except OSError:
            pass
        thread.join(20)
    assert answer.startswith(b"HTTP/1.1 413") or not answer and sent < size
    assert sent < size / 2, "the whole body was taken"
    assert memory() - before < 2**23
    assert page.ask("ann", "/api/task")[0] == 200  # it goes on serving


def test_an_announced_length_is_refused_before_anything_is_sent(page):
    head = (
        f"POST /api/events HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\n"
        f"Origin: {page.origin}\r\nContent-Type: application/json\r\n"
        "Content-Length: 65537\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", page.port), timeout=10) as sending:
        sending.sendall(head.encode())  # and no body: whoever reads it waits
        assert sending.recv(2**16).startswith(b"HTTP/1.1 413")


def test_a_body_just_over_the_limit_is_told_so(page):
    assert "more than 65536" in refused(page, 413, {}, b" " * 65537)


def test_many_slow_bodies_do_not_stop_the_others(page):
    slow = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(50)]
    head = f"POST /api/events HTTP/1.1\r\nHost: 127.0.0.1:{page.port}\r\nOrigin: "
    head += (
        f"{page.origin}\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
    )
    for sending in slow:
        sending.sendall(head.encode() + b"{")
    began = time.monotonic()
    assert page.ask("ann", "/api/task")[0] == 200
    assert time.monotonic() - began < 5
    for sending in slow:
        sending.close()


@pytest.mark.parametrize("path", ["/", "/overview", "/static/page.js", "/no"])
def test_every_answer_forbids_what_the_page_does_not_need(page, path):
    asking = HTTPConnection("127.0.0.1", page.port)
    asking.request("GET", path)
    answer = asking.getresponse()
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "script-src 'self'" in policy
    assert "unsafe" not in policy and "http" not in policy
    for door in ("base-uri", "form-action", "frame-ancestors"):
        assert f"{door} 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert answer.headers["X-Frame-Options"] == "DENY"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Set-Cookie"] is None
    asking.close()


@pytest.mark.parametrize(
    "path", ["/static/../serve.py", "/static/%2e%2e/serve.py", "/labels.sqlite"]
)
def test_nothing_else_is_served(page, path):
    asking = HTTPConnection("127.0.0.1", page.port)
    asking.request("GET", path)
    assert asking.getresponse().status == 404
    asking.close()


def test_no_token_is_in_what_is_served_without_one(page):
    tokens = [page.token(name) for name in page.links]
    for path in ("/", "/overview", "/static/page.js"):
        asking = HTTPConnection("127.0.0.1", page.port)
        asking.request("GET", path)
        text = asking.getresponse().read().decode()
        assert not any(token in text for token in tokens)
        asking.close()
    assert json.dumps(page.task("ann")).count(page.token("ann")) == 0
