"""Separate process for a run's models, so that they cannot block or crash the pages."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from burnish.environment import prepare_environment
from burnish.errors import BurnishError, Busy

PATIENCE = 300.0  # seconds for one answer
WAITING = 4  # requests that may wait; each occupies a thread of the server


class ModelRoom:
    """Process that answers one question at a time; it is replaced if it dies or takes too long.

    At most `waiting` questions wait, so that pages without models keep their threads.
    """

    def __init__(self, patience: float = PATIENCE, waiting: int = WAITING) -> None:
        self.patience, self.waiting = patience, waiting
        self._one, self._count = threading.Lock(), threading.Lock()
        self._asked = 0  # running or waiting
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, what: Callable[..., Any], *given: Any) -> Any:
        """Return the result of a function of the package, called in the process.

        Raises the function's own error, BurnishError if the process dies or takes too long, and Busy if too
        many questions wait.
        """
        with self._count:
            if self._asked > self.waiting:
                raise Busy(
                    f"the models are busy; {self._asked} questions are before yours in the queue; ask again in a minute"
                )
            self._asked += 1
        try:
            return self._ask(what, *given)
        finally:
            with self._count:
                self._asked -= 1

    def _ask(self, what: Callable[..., Any], *given: Any) -> Any:
        with self._one:
            if self._pool is None:
                spawn = multiprocessing.get_context("spawn")
                self._pool = ProcessPoolExecutor(1, mp_context=spawn, initializer=prepare_environment)
            try:
                return self._pool.submit(what, *given).result(self.patience)
            except TimeoutError:
                self._drop()
                raise BurnishError(f"the models did not answer within {self.patience:.0f} seconds") from None
            except BrokenProcessPool:
                self._drop()
                raise BurnishError(
                    "the models' process died, perhaps because memory ran out; ask again"
                ) from None

    def _drop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list(pool._processes.values()):  # no public method before Python 3.14
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Kill the process."""
        self._drop()
