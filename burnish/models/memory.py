"""What a machine has room for: how many rows go through a model at once, and where activations are kept."""

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
"""What is done, how many rows it is done for at once from now on, why."""

CHUNK = 64 << 20  # bytes of one file of activations
DEFAULT_BUDGET = 4 << 30
AT_ONCE = {
    "cpu": 64
}  # rows of a forward pass that keeps nothing for a backward one: more help no core, but a GPU
AT_ONCE_ELSEWHERE = 256


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def give_back() -> None:
    """Return unused memory to the system: models in reference cycles, and what torch and the C
    library keep for the next who asks (for small tensors, gigabytes)."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:  # glibc's
        trim(0)


class Memory:
    """The room of one base. `budget` bytes of activations are kept where they were computed, all beyond that in
    temporary files of `folder` (the system's own without one), which are private and are deleted with the last row
    that is read from them. `on_reduce` is called when memory ran out and the rows of a loop are halved."""

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
        """`work(rows)`, begun anew for half as many rows at once when memory runs out, and for no more from then on.
        `work` must be able to begin anew; what it makes must not depend on the number of rows but for rounding."""
        while True:
            rows = min(rows, self._rows.get(what, rows))
            try:
                return work(rows)
            except Exception as error:
                if rows <= 1 or not ran_out(error):
                    raise
                why = first_line(error)
            # Here nothing holds on to what the failed attempt had made.
            give_back()
            self._rows[what] = rows // 2
            self.on_reduce(what, rows // 2, why)

    def keep(self, rows: torch.Tensor) -> torch.Tensor:
        """`rows` (length, D), or an equal tensor on the CPU whose numbers lie in a file."""
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
        # Without the lock: the collector may come by while this thread holds it.
        self._kept -= size

    def _allot(self, n: int) -> torch.Tensor:
        if self._used + n > len(self._file):
            with tempfile.TemporaryFile(dir=self.folder) as file:
                self._file = np.memmap(file, np.float32, "w+", shape=(max(n, CHUNK // 4),))
            self._used = 0
        self._used += n
        return torch.from_numpy(self._file[self._used - n : self._used])


def at_once(device: torch.device) -> int:
    """How many rows one forward pass without a backward one is given on a device."""
    return AT_ONCE.get(device.type, AT_ONCE_ELSEWHERE)
