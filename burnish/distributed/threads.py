"""Independent loops in parallel, each in a thread with its share of the machine's cores.

Small models keep two cores busy only half the time when every product is split over both. Two loops
of one core each do not wait for each other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from queue import SimpleQueue
from threading import Event
from typing import TypeVar

import torch

T = TypeVar("T")


class _Mark(Enum):
    END = 0


def side_by_side(loops: Sequence[Iterator[T]], *, in_threads: bool = True) -> Iterator[tuple[int, T]]:
    """Yield items of the loops with the loop's number, one of each in turn.

    Timing does not change this order. Each loop runs ahead in a thread with its share of torch's
    threads (all of them, for a single loop). Loops must not share state that they change, nor draw
    from torch's global generator. An error in one stops all, and is raised. Without `in_threads`
    (another device does the work), the loops take turns in the calling thread.
    """
    if len(loops) < 2 or not in_threads:
        running = dict(enumerate(loops))
        while running:
            for number, loop in list(running.items()):
                item = next(loop, _Mark.END)
                if isinstance(item, _Mark):
                    del running[number]
                else:
                    yield number, item
        return
    threads, stop = torch.get_num_threads(), Event()
    queues: list[SimpleQueue[T | _Mark]] = [SimpleQueue() for _ in loops]

    def drive(loop: Iterator[T], out: SimpleQueue[T | _Mark]) -> None:
        try:
            for item in loop:
                out.put(item)
                if stop.is_set():
                    break
        finally:
            out.put(_Mark.END)

    torch.set_num_threads(max(1, threads // len(loops)))
    try:
        with ThreadPoolExecutor(len(loops)) as pool:
            ends = [pool.submit(drive, *pair) for pair in zip(loops, queues, strict=True)]
            waiting = dict(enumerate(queues))
            try:
                while waiting:
                    for number, queue in list(waiting.items()):
                        item = queue.get()
                        if not isinstance(item, _Mark):
                            yield number, item
                            continue
                        del waiting[number]
                        ends[number].result()  # raises what the loop raised
            finally:
                stop.set()
    finally:
        torch.set_num_threads(threads)
