"""Several processes of one run: how they start, who writes, and that they agree.

Each host of a TPU pod runs the same command. What the processes tell each other here
goes through JAX's coordination service, which process 0 keeps: it needs no device, and
works where they do not run the same program.
"""

import contextlib
import itertools
import json
import os
import time
from collections.abc import Callable, Mapping

import jax

# JAX has no public name for the service's keys and values; Orbax takes this one, too.
from jax._src import distributed

from rlhf_jax.errors import UserError

COORDINATOR = "RLHF_COORDINATOR"  # host:port of process 0, or AUTO
PROCESSES = "RLHF_PROCESSES"  # how many there are
PROCESS = "RLHF_PROCESS"  # which one this is, from 0
HEARTBEAT = "RLHF_HEARTBEAT"  # seconds of silence after which one counts as dead
AUTO = "auto"  # a TPU pod, Slurm, Open MPI or Kubernetes, as JAX finds them

_AGREE_S = 40.0  # for the slowest process to say what it has
_FIRST_S = 600.0  # for what process 0 does for all
_SHOWN = 60  # characters of a value in a message
_rounds = itertools.count()  # the same in all processes: they make the same calls


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins the other processes of a run, if there are any. No reference.

    To be called before the first computation. What is not given is read from the
    environment: RLHF_COORDINATOR, RLHF_PROCESSES, RLHF_PROCESS. With none of them this
    process is alone, and nothing happens.

    Args:
      coordinator: host:port where process 0 listens; "auto" where JAX knows all three:
        on TPU pods, and under Slurm, Open MPI and Kubernetes.
      processes: how many there are.
      process: which one this is, 0 … processes − 1.

    Raises:
      UserError: some of the three are missing, or no numbers; or no cluster was found.

    >>> initialize()
    >>> count()
    1
    """
    coordinator = coordinator or os.environ.get(COORDINATOR)
    processes = _number(PROCESSES, least=1) if processes is None else processes
    process = _number(PROCESS, least=0) if process is None else process
    if coordinator is None and processes is None and process is None:
        return
    alone = coordinator == AUTO
    if not alone and (coordinator is None or processes is None or process is None):
        raise UserError(
            f"{COORDINATOR} = {coordinator}, {PROCESSES} = {processes}, {PROCESS} = "
            f"{process}: expected all three, or {COORDINATOR}={AUTO} on a TPU pod"
        )
    if processes is not None and process is not None and process >= processes:
        raise UserError(
            f"{PROCESS} = {process} of {processes} processes: expected 0 to "
            f"{processes - 1}"
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # JAX's own watch ends a process without a word of what to do: `watchdog` comes
    # first, and that is for a process in which no thread of Python runs any more.
    last = 4 * round(heartbeat_s())
    try:
        jax.distributed.initialize(
            None if alone else coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=last,
        )
    except ValueError as error:
        raise UserError(
            f"{COORDINATOR}={coordinator}: {error} Name process 0's host:port, and set "
            f"{PROCESSES} and {PROCESS}"
        ) from error


def _number(name: str, *, least: int) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not text.isdecimal() or int(text) < least:
        raise UserError(f"{name}={text}: expected an integer ≥ {least}")
    return int(text)


def heartbeat_s() -> float:
    """Seconds of silence after which a process counts as dead; RLHF_HEARTBEAT, or 60.

    No reference.

    Raises:
      UserError: RLHF_HEARTBEAT is less than 5, or no integer.

    >>> heartbeat_s()
    60.0
    """
    return float(_number(HEARTBEAT, least=5) or 60)


def count() -> int:
    """How many processes there are; no backend starts. No reference."""
    return distributed.global_state.num_processes


def index() -> int:
    """Which of them this is, 0 if it is alone; no backend starts. No reference."""
    return distributed.global_state.process_id


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress.

    No reference.
    """
    return index() == 0


def coordinator_address() -> str:
    """host:port of process 0's coordination service. No reference."""
    return distributed.global_state.coordinator_address or ""


def tell(key: str, text: str) -> None:
    """Keeps a text where all processes can read it, in place of an older one.

    No reference.
    """
    client = distributed.global_state.client
    assert client is not None
    client.key_value_set(f"rlhf/{key}", text, allow_overwrite=True)


def tell_once(key: str, text: str) -> None:
    """Keeps a text where all processes can read it; the first one stays.

    No reference.
    """
    client = distributed.global_state.client
    assert client is not None
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # there is one already
        client.key_value_set(f"rlhf/{key}", text, allow_overwrite=False)


def told(folder: str) -> dict[str, str]:
    """All texts whose keys begin with ``folder/``, by the rest of the key.

    No reference.
    """
    client = distributed.global_state.client
    assert client is not None
    pairs = client.key_value_dir_get(f"rlhf/{folder}")
    return {key.rpartition("/")[-1]: text for key, text in pairs}


def _wait_for(key: str, seconds: float) -> str | None:
    """The text of a key as soon as it is there; None if it does not come in time."""
    client = distributed.global_state.client
    assert client is not None
    try:
        return client.blocking_key_value_get(f"rlhf/{key}", round(1000 * seconds))
    except jax.errors.JaxRuntimeError as error:
        if "DEADLINE_EXCEEDED" in str(error):
            return None
        raise


def by_first(make: Callable[[], object]) -> None:
    """Process 0 does it, the others wait until it is done. No reference.

    Args:
      make: writes files that all processes share.

    Raises:
      UserError: that of process 0, in all of them.

    >>> by_first(lambda: print("made"))
    made
    """
    if count() == 1:
        make()
        return
    key = f"first/{next(_rounds)}"
    if not is_first():
        found = _wait_for(key, _FIRST_S)
        if found is None:
            raise UserError(f"process 0 has not come so far within {_FIRST_S:.0f} s")
        if found:
            raise UserError(found)
        return
    try:
        make()
    except UserError as error:
        tell(key, str(error))
        raise
    tell(key, "")


def agree(what: Mapping[str, str], *, seconds: float = _AGREE_S) -> None:
    """Compares what all processes say of the same names. No reference.

    To be called by all of them, before anything is compiled: programs that differ wait
    for one another for ever. A process alone agrees with itself.

    Args:
      what: texts by name, such as options by field.
      seconds: to wait for the slowest process.

    Raises:
      UserError: they differ, in all processes: each name, with the texts of all; or a
        process has said nothing in time.

    >>> agree({"seed": "0"})
    """
    if count() == 1:
        return
    folder, end = f"agree/{next(_rounds)}", time.monotonic() + seconds
    tell(f"{folder}/{index()}", json.dumps(dict(what)))
    said: list[dict[str, str]] = []
    for process in range(count()):
        left = max(end - time.monotonic(), 0.001)
        if (text := _wait_for(f"{folder}/{process}", left)) is None:
            raise UserError(
                f"process {process} has not said its {', '.join(what)[:_SHOWN]} within "
                f"{seconds:.0f} s: expected the same command and program in all"
            )
        said.append(json.loads(text))
    names = dict.fromkeys(name for one in said for name in one)
    if wrong := [name for name in names if len({one.get(name) for one in said}) > 1]:
        raise UserError(
            f"the processes differ in {'; '.join(_compared(n, said) for n in wrong)}: "
            "start all of them with the same options, data and program"
        )


def _compared(name: str, said: list[dict[str, str]]) -> str:
    """``name: process 0 has a, process 1 has b``."""
    values = (
        f"process {process} has {_short(one.get(name, '(nothing)'))}"
        for process, one in enumerate(said)
    )
    return f"{name}: {', '.join(values)}"


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
