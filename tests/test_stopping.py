"""Signals that ask to stop."""

import os
import signal
import threading
import time

import pytest

from rlhf_jax.stopping import stop_signals


def send(number):
    os.kill(os.getpid(), number)
    time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_one_asks(number, capsys):
    before = signal.getsignal(number)
    with stop_signals() as asked:
        assert asked() is None
        send(number)
        assert asked() == number.name
    assert signal.getsignal(number) is before
    shown = capsys.readouterr().err
    assert f"{number.name}: stopping after this step" in shown
    assert ("Ctrl-C again" in shown) == (number == signal.SIGINT)


def test_more_of_sigterm_change_nothing(capsys):
    with stop_signals() as asked:
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert asked() == "SIGTERM"
    assert capsys.readouterr().err.count("stopping") == 1


def test_after_the_first_ctrl_c_the_next_one_is_not_ours():
    with stop_signals() as asked:
        send(signal.SIGINT)
        assert asked() == "SIGINT"
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL


def test_another_thread_has_no_signals():
    found = []

    def run():
        with stop_signals() as asked:
            found.append(asked())

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [None]
    assert signal.getsignal(signal.SIGTERM) is before
