"""A process that is gone from one moment to the next, as by `kill -9` or a power cut."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import warnings
from collections.abc import Callable
from typing import Any

LONGEST = 1500  # seconds, for one that hangs


def killed(work: Callable[[Callable[[], None]], object]) -> None:
    """Do `work` in a process of its own, which must end by the function that it is handed: SIGKILL to itself, after
    which nothing runs any more: no handler, no `finally`, no flush."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of other threads, of which the child needs none
        child = os.fork()
    if not child:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LONGEST)
        try:
            work(lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)  # it came to an end, or failed
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed: it came to an end"
    assert os.WTERMSIG(status) == signal.SIGKILL


def wait_until(seen: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """Look until it is there. AssertionError where the process ends before; the test's time-out where it hangs."""
    while not seen():
        assert process.poll() is None, f"it ended with {process.returncode} before it was stopped"
        time.sleep(0.01)


def kill_at(seen: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    """SIGKILL to a process as soon as something is there."""
    wait_until(seen, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
