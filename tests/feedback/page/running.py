"""A page in a thread of the test, and requests to it."""

import contextlib
import json
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from rlhf_jax.feedback.page.config import ServeConfig
from rlhf_jax.feedback.page.serve import build, fill, links, read_instructions
from rlhf_jax.feedback.page.store import connect, settle

SCRIPT = "<script>document.title = 'taken'</script>"
IMAGE = "<img src=x onerror=\"document.title = 'taken'\">"


@dataclass(frozen=True)
class Running:
    """A page that is served."""

    run_dir: Path
    port: int
    links: dict[str, str]  # name -> link

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def token(self, name: str) -> str:
        return self.links[name].partition("#")[2]

    def ask(
        self, name: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, Any]:
        """(status, answer) to what a page of that annotator asks."""
        sent = {"Authorization": f"Bearer {self.token(name)}"} if name else {}
        if body is not None:
            sent |= {"Origin": self.origin, "Content-Type": "application/json"}
            body = body if isinstance(body, str | bytes) else json.dumps(body)
        sent |= {k.replace("_", "-"): v for k, v in headers.items()}
        asking = HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(asking):
            asking.request("GET" if body is None else "POST", path, body, sent)
            answer = asking.getresponse()
            return answer.status, json.loads(answer.read())

    def task(self, name: str) -> dict[str, Any]:
        status, found = self.ask(name, "/api/task")
        assert status == 200, found
        return found

    def post(self, name: str, found: dict[str, Any], kind: str, **value: Any) -> Any:
        status, answer = self.ask(name, "/api/events", event(found, kind, **value))
        assert status == 200, answer
        return answer


def event(found: dict[str, Any], kind: str, **value: Any) -> dict[str, Any]:
    """What the page posts about the task that it was given."""
    return {
        "id": secrets.token_hex(16),
        "kind": kind,
        "task": None if kind == "undo" else found["task"]["task"],
        "seconds": 1.5,
        "instructions": found["instructions"]["sha256"],
    } | value


@contextlib.contextmanager
def serving(config: ServeConfig) -> Iterator[Running]:
    """The page of a configuration, in a thread."""
    uvicorn = pytest.importorskip("uvicorn")
    db = connect(config.run_dir, create=True)
    settle(db, mode=config.mode, scale=config.scale, votes=config.votes)
    fill(db, config)
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    origins = [f"http://127.0.0.1:{port}", *config.public]
    app = build(db, config, read_instructions(config), origins)
    options = {"log_config": None, "ws": "none", "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, **options))
    thread = threading.Thread(target=server.run, args=([listening],))
    thread.start()
    try:
        wait_for(lambda: server.started)
        own = ServeConfig(config.run_dir, annotators=config.annotators)
        yield Running(config.run_dir, port, links(db, own, origins))
    finally:
        server.should_exit = True
        thread.join()
        db.close()


def wait_for(true: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "not in time"
        time.sleep(0.01)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
