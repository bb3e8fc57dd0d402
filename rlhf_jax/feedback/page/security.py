"""What is refused before anything looks at it, and what every answer forbids a browser.

The page keeps its token in the tab and sends it in a header. There is no cookie, so
another site's page has nothing to ride on; that its requests are refused by their
origin, too, is the second lock on the same door.
"""

from collections.abc import Callable
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 * 1024  # bytes; a judgement has some hundred

# Nothing is loaded from elsewhere, no script is inline, and no text becomes HTML.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cache-Control": "no-store",
}


def protect(app: ASGIApp, origins: frozenset[str]) -> ASGIApp:
    """The application behind its doors. No reference.

    Args:
      app: what answers.
      origins: where the page is at home, as ``http://127.0.0.1:8000``. A request to
        another host is refused, so that a name that somebody points at this machine
        (DNS rebinding) opens nothing; so is a post from another origin.
    """
    hosts = {origin.partition("://")[2] for origin in origins}

    async def protected(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        send = _with_headers(send)
        headers = Headers(scope=scope)
        refusal = _refusal(scope["method"], headers, hosts, origins)
        if refusal is None and scope["method"] == "POST":
            body = await _read(receive)
            if body is None:
                refusal = 413, f"a body of more than {MAX_BODY} bytes"
            else:
                receive = _replay(body, receive)
        if refusal is None:
            await app(scope, receive, send)
            return
        status, message = refusal
        # What the body still holds is never read: the connection ends here.
        answer = JSONResponse({"error": message}, status, {"Connection": "close"})
        await answer(scope, receive, send)

    return protected


def _refusal(
    method: str, headers: Headers, hosts: set[str], origins: frozenset[str]
) -> tuple[int, str] | None:
    if headers.getlist("host") not in [[host] for host in hosts]:
        return 421, "not the address of this page; the server's --public names others"
    if method in ("GET", "HEAD"):
        return None
    if method != "POST":
        return 405, "expected GET or POST"
    if headers.get("origin") not in origins:
        return 403, "a post from another site"
    if headers.get("sec-fetch-site", "same-origin") != "same-origin":
        return 403, "a post from another site"
    if headers.get("content-type", "").partition(";")[0] != "application/json":
        return 415, "expected application/json"
    length = headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > MAX_BODY:
        return 413, f"a body of more than {MAX_BODY} bytes"
    return None


async def _read(receive: Receive) -> bytes | None:
    """The body, or None as soon as it is too long."""
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > MAX_BODY:
            return None
    return body


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return replayed


def _with_headers(send: Send) -> Callable[[Message], Any]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
        await send(message)

    return sending
