"""2,000 votes by 20 people while the server is killed: none lost, none twice."""

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import pytest
from feedback.page.running import event, wait_for, write_rows

from rlhf_jax.feedback.page import export
from rlhf_jax.feedback.page.store import connect

pytestmark = pytest.mark.fault(31)

pytest.importorskip("uvicorn")
ROOT = Path(__file__).parents[3]
PEOPLE, ITEMS, KILLS = 20, 100, 3


class Server:
    """The command, in a process that can be killed and started again."""

    def __init__(self, *options: str):
        self.options, self.port = options, 0
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "rlhf_jax.feedback", "serve", *self.options]
            + ["--port", str(self.port)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        printed = ""
        while "Ctrl-C" not in printed:
            line = self.process.stdout.readline()
            assert line, "the server did not start"
            printed += line
        self.links = dict(re.findall(r"^  (\S+) +(http://\S+)$", printed, re.M))
        self.port = int(re.findall(r":(\d+)/", printed)[0])

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


class Annotator(threading.Thread):
    """Judges all that there is; sends again what was not acknowledged."""

    def __init__(self, server: Server, name: str):
        super().__init__(daemon=True)
        self.server, self.token = server, server.links[name].partition("#")[2]
        self.acknowledged: dict[str, tuple[int, list[int]]] = {}  # id -> task, ranks
        self.sent_again = 0
        self.draw = random.Random(name)
        self.connection = HTTPConnection("127.0.0.1", server.port, timeout=20)

    def ask(self, path: str, body=None):
        """Asks until there is an answer; what it was."""
        while True:
            try:
                headers = {
                    "Authorization": f"Bearer {self.token}",
                    "Origin": f"http://127.0.0.1:{self.server.port}",
                    "Content-Type": "application/json",
                }
                method = "POST" if body else "GET"
                sent = json.dumps(body) if body else None
                self.connection.request(method, path, sent, headers)
                answer = self.connection.getresponse()
                found = json.loads(answer.read())
                assert answer.status == 200, found
                return found
            except (OSError, HTTPException):
                self.connection.close()
                self.sent_again += bool(body)
                time.sleep(0.05)

    def run(self) -> None:
        found = self.ask("/api/task")
        while found["task"]:
            ranks = self.draw.choice([[0, 1, 2], [2, 1, 0], [0, 0, 1], [1, 0, 0]])
            vote = event(found, "vote", ranks=ranks)
            following = self.ask("/api/events", vote)
            self.acknowledged[vote["id"]] = found["task"]["task"], ranks
            found = following
        self.connection.close()


def written(run_dir: Path) -> dict[str, tuple[int, list[int]]]:
    """{id: (task, ranks in the order shown)} of every vote in the log."""
    found = {}
    with contextlib.closing(connect(run_dir)) as db:
        for row in db.execute(
            "SELECT events.id, task, value, shown FROM events "
            "JOIN tasks ON tasks.id = task"
        ):
            ranks = json.loads(row["value"])["ranks"]
            shown = json.loads(row["shown"])
            found[row["id"]] = row["task"], [ranks[i] for i in shown]
    return found


def test_acknowledged_votes_survive_and_count_once(tmp_path):
    rows = [{"prompt": f"p{i}", "completions": ["a", "b", "c"]} for i in range(ITEMS)]
    people = [f"p{i:02d}" for i in range(PEOPLE)]
    server = Server(
        *("--run-dir", str(tmp_path / "run"), "--votes", str(PEOPLE)),
        *("--completions", str(write_rows(tmp_path / "c.jsonl", rows))),
        *("--annotators", *people),
    )
    began = time.monotonic()
    annotators = [Annotator(server, name) for name in people]
    done = lambda: sum(len(annotator.acknowledged) for annotator in annotators)
    links = server.links
    for annotator in annotators:
        annotator.start()
    for kill in range(KILLS):
        wait_for(lambda at=(kill + 1) * 500: done() >= at, 60)
        server.kill()
        server.start()
        assert server.links == links
    for annotator in annotators:
        annotator.join(60)
    seconds = time.monotonic() - began
    server.kill()  # the last votes, too, are on disk and not only in its memory

    assert done() == PEOPLE * ITEMS
    export(tmp_path / "run")
    lines = (tmp_path / "run/rankings.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines]
    assert len(found) == PEOPLE * ITEMS
    by_whom = Counter((row["annotator_name"], row["item"]) for row in found)
    assert len(by_whom) == len(found)  # none twice
    given = {i: v for a in annotators for i, v in a.acknowledged.items()}
    assert written(tmp_path / "run") == given
    again = sum(annotator.sent_again for annotator in annotators)
    assert again >= KILLS  # the kills did hit somebody
    print(f"{len(found)} votes in {seconds:.1f} s, {again} requests sent again")
