"""A directory belongs to one process, until that is gone."""

import errno
import fcntl
import os
import subprocess
import sys
import time

import pytest

from rlhf_jax.lock import LockedError, take_lock

HOLDER = """
import sys, time
from rlhf_jax.lock import take_lock
take_lock(sys.argv[1])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.fault(9)
def test_the_second_process_is_told_the_first(tmp_path, holder):
    start = time.monotonic()
    with pytest.raises(LockedError, match=f'"pid": {holder.pid}') as error:
        take_lock(tmp_path)
    assert time.monotonic() - start < 5
    assert str(tmp_path) in str(error.value) and "choose another" in str(error.value)


@pytest.mark.fault(9)
def test_the_lock_goes_with_a_killed_process(tmp_path, holder):
    holder.kill()
    holder.wait()
    take_lock(tmp_path)
    take_lock(tmp_path)  # it is this process's own
    assert f'"pid": {os.getpid()}' in (tmp_path / ".lock").read_text()


def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    take_lock(tmp_path)
    assert "cannot be locked (No locks available)" in capsys.readouterr().err
