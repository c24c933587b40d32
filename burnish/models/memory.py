"""Memory limits: how many rows a model takes at once, and where activations are kept."""

from __future__ import annotations

import ctypes
import gc
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import TypeVar
from weakref import finalize

import numpy as np
import torch

from burnish.errors import ran_out

T = TypeVar("T")

OnReduce = Callable[[str, int, str], None]
"""Callback with the name of the work, its new number of rows at once, and the reason."""

CHUNK = 64 << 20  # bytes of one file of activations
DEFAULT_BUDGET = 4 << 30


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def give_back() -> None:
    """Return unused memory to the system.

    This frees models in reference cycles, and memory that torch and the C library keep for reuse
    (for small tensors, gigabytes).
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc's
        trim(0)


class Memory:
    """Memory limits of one base.

    `budget` bytes of activations stay where they were computed. All others go to temporary files in
    `folder` (by default the system's). These files are private and are deleted with the last row
    that is read from them. `on_reduce` is called when memory runs out and the rows of a loop are
    halved.
    """

    def __init__(
        self,
        budget: int = DEFAULT_BUDGET,
        folder: Path | None = None,
        on_reduce: OnReduce = lambda what, rows, why: None,
    ) -> None:
        self.budget = budget
        self.folder = folder
        self.on_reduce = on_reduce
        self._kept = 0  # bytes
        self._rows: dict[str, int] = {}
        self._lock = Lock()
        self._file = np.empty(0, np.float32)
        self._used = 0  # elements of the file

    def fit(self, what: str, rows: int, work: Callable[[int], T]) -> T:
        """Return `work(rows)`, restarted with half as many rows each time memory runs out.

        Later calls for the same `what` never use more rows. `work` must be able to restart, and its
        result must not depend on the number of rows except for rounding.
        """
        while True:
            rows = min(rows, self._rows.get(what, rows))
            try:
                return work(rows)
            except Exception as error:
                if rows <= 1 or not ran_out(error):
                    raise
                why = first_line(error)
            # Outside the handler, nothing refers to tensors of the failed attempt.
            give_back()
            self._rows[what] = rows // 2
            self.on_reduce(what, rows // 2, why)

    def keep(self, rows: torch.Tensor) -> torch.Tensor:
        """Return `rows` (length, D), or an equal CPU tensor that is stored in a file."""
        size = rows.numel() * rows.element_size()
        with self._lock:
            if self._kept + size <= self.budget:
                self._kept += size
                finalize(rows, self._release, size)
                return rows
            place = self._allot(rows.numel()).view(rows.shape)
        place.copy_(rows)
        return place

    def _release(self, size: int) -> None:
        # Without the lock: garbage collection may run while this thread holds it.
        self._kept -= size

    def _allot(self, n: int) -> torch.Tensor:
        if self._used + n > len(self._file):
            with tempfile.TemporaryFile(dir=self.folder) as file:
                self._file = np.memmap(file, np.float32, "w+", shape=(max(n, CHUNK // 4),))
            self._used = 0
        self._used += n
        return torch.from_numpy(self._file[self._used - n : self._used])
