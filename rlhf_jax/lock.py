"""One process a run directory: a lock that goes with the process, however it ends."""

import fcntl
import json
import os
import socket
import sys
import time
from pathlib import Path

from rlhf_jax.errors import UserError

LOCK_FILE = ".lock"
_held: dict[Path, int] = {}  # directory -> open file, for as long as this process lives


class LockedError(UserError):
    """Another process has the directory; names it."""


def take_lock(directory: str | Path) -> None:
    """Makes a directory this process's own, until it ends. No reference.

    The operating system lets go of the lock when the process is gone, a killed one
    too. Asking again in the same process changes nothing.

    Args:
      directory: a run directory, which is there and can be written.

    Raises:
      LockedError: another process has it; says which one, and since when.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> take_lock(directory)
    >>> take_lock(directory)
    """
    directory = Path(directory).resolve()
    path = directory / LOCK_FILE
    if directory in _held and path.exists():
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(file, 1000).decode(errors="replace").strip()
        os.close(file)
        raise LockedError(
            f"--run-dir {directory}: another process has it, {owner or 'unnamed'}: "
            "wait for it or stop it, or choose another directory"
        ) from error
    except OSError as error:  # some network disks have no locks
        print(
            f"warning: {path}: cannot be locked ({error.strerror}): see that no other "
            "process has this directory",
            file=sys.stderr,
        )
    owner = {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "since": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    os.ftruncate(file, 0)
    os.write(file, (json.dumps(owner) + "\n").encode())
    _held[directory] = file
