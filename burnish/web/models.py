"""A run's models, in a process of their own: what they do keeps no page waiting, and takes none down."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from burnish.environment import prepare_environment
from burnish.errors import BurnishError

PATIENCE = 300.0  # seconds for one answer


class ModelRoom:
    """One process, one question at a time; a process that died, or takes too long, is replaced."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self.patience = patience
        self._one = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, what: Callable[..., Any], *given: Any) -> Any:
        """What a function of the package returns. Raises BurnishError, the function's own or that it failed."""
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
                    "the models' process died, perhaps for want of memory; ask again"
                ) from None

    def _drop(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            for process in list(pool._processes.values()):  # no public way before Python 3.14
                process.kill()
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        self._drop()
