"""Starts the labelling page: items, annotators, links, and the server."""

import contextlib
import importlib
import secrets
import socket
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlhf_jax.data import prompts as prompt_records
from rlhf_jax.data import read_rows
from rlhf_jax.errors import UserError
from rlhf_jax.feedback.page.config import ServeConfig
from rlhf_jax.feedback.page.items import Item, make_items, read_items
from rlhf_jax.feedback.page.store import add_annotator, add_items, connect, settle
from rlhf_jax.feedback.page.tasks import Plan


def serve(config: ServeConfig) -> None:
    """Serves until it is stopped; started again, it goes on. No reference.

    Raises:
      UserError: something in the configuration or its files, or a port in use.
    """
    uvicorn = _uvicorn()
    instructions = read_instructions(config)
    with (
        _listen(config.host, config.port) as listening,
        contextlib.closing(connect(config.run_dir, create=True)) as db,
    ):
        settle(db, mode=config.mode, scale=config.scale, votes=config.votes)
        fill(db, config)
        origins = _origins(config, listening.getsockname()[1])
        app = build(db, config, instructions, origins)
        _tell(db, config, origins)
        # Without a log_config: it would close the handlers of others.
        quiet = {"log_config": None, "log_level": "warning", "server_header": False}
        with contextlib.suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn.Config(app, ws="none", **quiet)).run([listening])


def _tell(db: sqlite3.Connection, config: ServeConfig, origins: list[str]) -> None:
    [(items,)] = db.execute("SELECT count(*) FROM items")
    print(f"\n{items} items in {config.run_dir}. The links:\n")
    for name, link in links(db, config, origins).items():
        print(f"  {name:<20} {link}")
    if not items:
        print("\nNo items yet: --completions adds some, or --prompts and --policy.")
    print("\nCtrl-C stops the page; every judgement is on disk.", flush=True)


def build(
    db: sqlite3.Connection,
    config: ServeConfig,
    instructions: Callable[[], str],
    origins: list[str],
) -> Any:
    """The ASGI application of a run; `serve` puts it on a socket. No reference."""
    from rlhf_jax.feedback.page.app import VIEWER, Page, hashed, make_app

    tokens = {
        hashed(row["token"]): row["id"]
        for row in (add_annotator(db, name) for name in config.annotators)
    }
    tokens[hashed(_overview_token(db))] = VIEWER
    page = Page(
        db=db,
        mode=config.mode,
        scale=config.scale,
        plan=Plan(config.votes, config.repeats, config.seed),
        tokens=tokens,
        instructions=instructions,
    )
    return make_app(page, frozenset(origins))


def fill(db: sqlite3.Connection, config: ServeConfig) -> None:
    """Adds the items that the files hold and the run does not have yet. No reference.

    A prompt that the policy answered at an earlier start is not answered again.
    """
    if config.completions is not None:
        items, left_out = read_items(read_rows(config.completions), config.mode)
        _add(db, items, left_out, config)
    if config.prompts is not None and config.policy is not None:
        from rlhf_jax.feedback.assistant import sample_completions
        from rlhf_jax.stages import load_policy

        known = {row["prompt"] for row in db.execute("SELECT prompt FROM items")}
        asked = [row.prompt for row in prompt_records(read_rows(config.prompts))]
        asked = [text for text in dict.fromkeys(asked) if text not in known]
        if not asked:
            return
        print(f"{config.policy} answers {len(asked)} prompts …", flush=True)
        policy = load_policy(config.policy)
        drawn = sample_completions(policy, asked, config.sampling, seed=config.seed)
        for prompt, completions in drawn:
            _add(db, *make_items(prompt, completions, config.mode), config)


def _add(
    db: sqlite3.Connection, items: list[Item], left_out: int, config: ServeConfig
) -> None:
    add_items(db, items)
    if left_out:
        print(
            f"{config.run_dir}: {left_out} completions left out: empty, the same as "
            "another, or the only one of a prompt"
        )


def links(
    db: sqlite3.Connection, config: ServeConfig, origins: list[str]
) -> dict[str, str]:
    """{annotator: link}, and that of the overview. No reference.

    The token is behind the #, which browsers keep to themselves: it is in no request,
    no log and no Referer.
    """
    at = config.public[0] if config.public else origins[0]
    found = {
        name: f"{at}/#{add_annotator(db, name)['token']}" for name in config.annotators
    }
    return found | {"(overview)": f"{at}/overview#{_overview_token(db)}"}


def read_instructions(config: ServeConfig) -> Callable[[], str]:
    """A function that reads them anew; where that fails, the last good text."""
    kind = "ranking" if config.mode == "ranking" else "rating"
    path = config.instructions or Path(__file__).parent / f"instructions_{kind}.md"
    try:
        last = [path.read_text(encoding="utf-8")]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--instructions {path}: cannot be read ({error}); expected a text file in "
            "UTF-8"
        ) from error

    def current() -> str:
        # In the middle of an edit the file may be empty, or not there.
        with contextlib.suppress(OSError, UnicodeDecodeError):
            last[0] = path.read_text(encoding="utf-8") or last[0]
        return last[0]

    return current


def _overview_token(db: sqlite3.Connection) -> str:
    db.execute(
        "INSERT OR IGNORE INTO settings VALUES ('overview', ?)",
        (secrets.token_urlsafe(24),),
    )
    found = db.execute("SELECT value FROM settings WHERE name = 'overview'")
    return found.fetchone()["value"]


def _origins(config: ServeConfig, port: int) -> list[str]:
    host = f"[{config.host}]" if ":" in config.host else config.host
    at = "" if port == 80 else f":{port}"  # which browsers leave out
    local = [f"http://{host}{at}", f"http://localhost{at}"]
    return [*dict.fromkeys(local), *config.public]


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {error.strerror}; choose another --port"
        ) from error


def _uvicorn() -> Any:
    try:
        importlib.import_module("starlette")
        return importlib.import_module("uvicorn")
    except ImportError as error:
        raise UserError(
            f"the labelling page needs {error.name}: pip install 'rlhf_jax[label]'"
        ) from error
