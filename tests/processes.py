"""Several processes of one run, forked from the test: each knows the others by the variables that torchrun sets."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from burnish.distributed import collectives

LONGEST = 1500  # seconds, for one that hangs


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def shared(n: int, work: Callable[[int], Any], timeout: float = 60.0) -> list[Any]:
    """What `work`, given its number, comes to in each of `n` processes that share a run: its value, or the error; None
    where a process was killed."""
    port = free_port()
    with tempfile.TemporaryDirectory() as room:
        children = []
        for number in range(n):
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", DeprecationWarning
                )  # of other threads, of which no child needs any
                child = os.fork()
            if not child:
                _take_part(n, number, port, work, timeout, Path(room) / str(number))
            children.append(child)
        for child in children:
            os.waitpid(child, 0)
        files = [Path(room) / str(number) for number in range(n)]
        return [pickle.loads(file.read_bytes()) if file.exists() else None for file in files]


def _take_part(
    n: int, number: int, port: int, work: Callable[[int], Any], timeout: float, file: Path
) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(LONGEST)
    try:
        os.environ |= {
            "RANK": str(number),
            "WORLD_SIZE": str(n),
            "LOCAL_RANK": str(number),
            "LOCAL_WORLD_SIZE": str(n),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        found: Any = None
        try:
            with collectives.together(timeout):
                found = work(number)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            found = error
        try:
            told = pickle.dumps(found)
        except Exception:  # noqa: BLE001 - an error that cannot be sent is told in words
            told = pickle.dumps(RuntimeError(repr(found)))
        file.with_suffix(".new").write_bytes(told)
        file.with_suffix(".new").replace(file)
    finally:
        os._exit(0)
