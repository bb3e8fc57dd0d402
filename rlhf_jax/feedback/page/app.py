"""The page's three addresses for data, and its files.

Everything runs in one thread with one connection: judgements are written one after
another, and each answer is sent after its commit.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from rlhf_jax.feedback.page.events import REASONS, Refused, parse_event, record
from rlhf_jax.feedback.page.items import Mode
from rlhf_jax.feedback.page.overview import overview
from rlhf_jax.feedback.page.security import protect
from rlhf_jax.feedback.page.store import add_instructions, transaction
from rlhf_jax.feedback.page.tasks import Plan, next_task, progress

STATIC = Path(__file__).parent / "static"
VIEWER = -1  # in place of an annotator: may look at the overview, and nothing else


@dataclass(frozen=True)
class Page:
    """What a server serves."""

    db: sqlite3.Connection
    mode: Mode
    scale: int  # ratings are 1 … scale, where mode is "scale"
    plan: Plan
    tokens: Mapping[str, int]  # sha256 of a token -> annotator, or VIEWER
    instructions: Callable[[], str]  # as they are now: the owner may edit them


def hashed(token: str) -> str:
    """Tokens are looked up by their hash: how long that takes tells nothing."""
    return hashlib.sha256(token.encode()).hexdigest()


def make_app(page: Page, origins: frozenset[str]) -> ASGIApp:
    """The application; ``origins`` as `protect` says. No reference."""

    def answer(endpoint: Callable[[Page, int, Any], Any], *, viewer: bool) -> Any:
        async def answered(request: Request) -> Response:
            try:
                who = _who(page, request, viewer=viewer)
                body = await _json(request) if request.method == "POST" else None
                return JSONResponse(endpoint(page, who, body))
            except Refused as refused:
                return JSONResponse({"error": str(refused)}, refused.status)

        return answered

    html = lambda name: lambda request: FileResponse(STATIC / name)
    routes = [
        Route("/", html("index.html")),
        Route("/overview", html("overview.html")),
        Route("/api/task", answer(_task, viewer=False)),
        Route("/api/events", answer(_event, viewer=False), methods=["POST"]),
        Route("/api/overview", answer(_overview, viewer=True)),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return protect(Starlette(routes=routes), origins)


def _who(page: Page, request: Request, *, viewer: bool) -> int:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    who = page.tokens.get(hashed(token)) if kind == "Bearer" else None
    if who is None:
        raise Refused("no token, or one that is not valid; use the link you got", 401)
    if (who == VIEWER) != viewer:
        raise Refused("this link is for another page", 403)
    return who


async def _json(request: Request) -> Any:
    try:
        return json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise Refused("expected JSON") from error


def _task(page: Page, who: int, body: None) -> dict[str, Any]:
    """What is next, how far this annotator is, and the instructions."""
    text = page.instructions()
    # Read to its end: what is half read keeps another process's rows out.
    [name] = page.db.execute("SELECT name FROM annotators WHERE id = ?", (who,))
    task = next_task(page.db, who, page.plan)
    done, left = progress(page.db, who, page.plan)
    return {
        "task": task,
        "annotator": name["name"],
        "done": done,
        "left": left,
        "mode": page.mode,
        "scale": page.scale,
        "reasons": REASONS,
        "instructions": {"text": text, "sha256": add_instructions(page.db, text)},
    }


def _event(page: Page, who: int, body: Any) -> dict[str, Any]:
    """Written, and on disk, before the answer; which has what comes next."""
    event = parse_event(body, page.mode, page.scale)
    with transaction(page.db):
        record(page.db, who, event)
        return _task(page, who, None)


def _overview(page: Page, who: int, body: None) -> dict[str, Any]:
    return {"mode": page.mode} | overview(page.db, page.plan)
