"""A process that is gone from one moment to the next, as by `kill -9` or a power cut."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable


def killed(work: Callable[[Callable[[], None]], object]) -> None:
    """Do `work` in a process of its own, which must end by the function that it is handed: SIGKILL to itself, after
    which nothing runs any more: no handler, no `finally`, no flush."""
    child = os.fork()
    if not child:
        try:
            work(lambda: os.kill(os.getpid(), signal.SIGKILL))
        finally:
            os._exit(1)  # it came to an end, or failed
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "it was not killed: it came to an end"
    assert os.WTERMSIG(status) == signal.SIGKILL
