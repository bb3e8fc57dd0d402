"""A stand-in for gcloud, on the PATH in its place: slices are folders of this machine.

The folder STANDIN has ``scenario.json`` and what has come of it, ``state.json``:

  queue: states that a new request goes through, one a look; queue_now: what is left
    of them, "" at the end where it then is gone
  fail: of an action, such as "create" or "ssh", what its next calls say; "" is none
  taken: for each slice in turn, how it goes once its program holds: "preempted",
    or "silent", where gcloud says that all is well and ssh fails

Each slice has a new folder, with one for each worker in it: its home. What is run on a
worker really runs, as a process of this machine.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(os.environ.get("STANDIN", "no stand-in"))  # doctests import this, too
STATE = HERE / "state.json"


def main(arguments: list[str]) -> int:
    assert arguments[:2] == ["compute", "tpus"], arguments
    kind, action, name, *options = arguments[2:]
    with (HERE / "calls.jsonl").open("a") as file:
        file.write(json.dumps(arguments) + "\n")
    state = json.loads(STATE.read_text())
    take_away(state)
    try:
        said = state["fail"].get(action, [])
        if said and (text := said.pop(0)):
            return refuse(action, text)
        return {
            "create": create,
            "describe": describe_request if kind == "queued-resources" else describe,
            "delete": delete,
            "scp": copy,
            "ssh": connect,
        }[action](state, name, options)
    finally:
        STATE.write_text(json.dumps(state))


def refuse(action: str, text: str, status: int = 1) -> int:
    print(f"ERROR: (gcloud.compute.tpus.{action}) {text}", file=sys.stderr)
    return status


def take_away(state: dict[str, Any]) -> None:
    """What the scenario says, once the program waits for it and was asked about."""
    if (HERE / "holds").exists() and (HERE / "holds").read_text() == "seen":
        (HERE / "holds").unlink()
        how = state["taken"].pop(0)
        kill(state)
        state["silent"] = how == "silent"
        if how == "preempted":
            state["queue_now"], state["node"] = ["SUSPENDING"], "PREEMPTED"


def kill(state: dict[str, Any]) -> None:
    for pid in HERE.glob(f"slice-{state['slices']}/*/run/pid"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(int(pid.read_text()), signal.SIGKILL)


def create(state: dict[str, Any], name: str, options: list[str]) -> int:
    if any(state["queue_now"]):
        return refuse("create", f"ALREADY_EXISTS: Resource '{name}' already exists")
    state["queue_now"], state["node"] = list(state["queue"]), "READY"
    state["slices"] += 1
    state["silent"] = False
    for worker in range(state["workers"]):
        (HERE / f"slice-{state['slices']}" / str(worker)).mkdir(parents=True)
    return 0


def describe_request(state: dict[str, Any], name: str, options: list[str]) -> int:
    assert options[:2] == ["--format", "value(state.state)"], options
    if not any(states := state["queue_now"]):
        return refuse("describe", f"NOT_FOUND: Resource '{name}' was not found")
    print(states.pop(0) if len(states) > 1 else states[0])
    return 0


def describe(state: dict[str, Any], name: str, options: list[str]) -> int:
    assert options[:2] == ["--format", "value(state)"], options
    print(state["node"])
    return 0


def delete(state: dict[str, Any], name: str, options: list[str]) -> int:
    if not state["queue_now"]:
        return refuse("delete", f"NOT_FOUND: Resource '{name}' was not found")
    assert "--force" in options and "--quiet" in options
    kill(state)
    shutil.rmtree(HERE / f"slice-{state['slices']}")
    state["queue_now"], state["node"] = [], "ABSENT"
    return 0


def unreachable(state: dict[str, Any], action: str) -> int:
    if state["queue_now"] != ["ACTIVE"] or state["node"] != "READY":
        return refuse(action, f"The TPU is in state {state['node']}")
    return refuse(action, "[/usr/bin/ssh] exited with return code [255].", 255)


def reachable(state: dict[str, Any]) -> bool:
    up = state["queue_now"] == ["ACTIVE"] and state["node"] == "READY"
    return up and not state["silent"]


def homes(state: dict[str, Any], options: list[str]) -> list[Path]:
    (which,) = (x.partition("=")[2] for x in options if x.startswith("--worker="))
    workers = range(state["workers"]) if which == "all" else [int(which)]
    return [HERE / f"slice-{state['slices']}" / str(worker) for worker in workers]


def copy(state: dict[str, Any], source: str, options: list[str]) -> int:
    if not reachable(state):
        return unreachable(state, "scp")
    for home in homes(state, options):
        shutil.copy(source, home / options[0].partition(":")[2])
    return 0


def connect(state: dict[str, Any], name: str, options: list[str]) -> int:
    if not reachable(state):
        return unreachable(state, "ssh")
    command = options[options.index("--command") + 1]
    if state["taken"] and "status" in command and (HERE / "holds").exists():
        (HERE / "holds").write_text("seen")
    running = [run(home, command) for home in homes(state, options)]
    for process in running:
        out, error = process.communicate()
        sys.stdout.write(out)
        sys.stderr.write(error)
    return next((process.returncode for process in running if process.returncode), 0)


def run(home: Path, command: str) -> subprocess.Popen[str]:
    path = f"{HERE / 'machine'}:{os.environ['PATH']}"
    own = {"HOME": str(home), "WORKER": home.name, "PATH": path}
    return subprocess.Popen(
        ["bash", "-c", command],
        cwd=home,
        env=os.environ | own,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
