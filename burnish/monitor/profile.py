"""Traces of PPO updates by torch.profiler."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TypeVar

import torch
from torch.profiler import ProfilerActivity, profile

from burnish.distributed import collectives

T = TypeVar("T")

WARM_UP = 1  # updates before the trace, in which memory is allocated and kernels are chosen


def profiled(updates: Iterator[T], n: int, folder: Path) -> Iterator[T]:
    """Yield updates, and write a trace of `n` of them to `folder`, after the first.

    With `n` 0, or if the folder has a trace, nothing is traced. Only process 0 of several is
    traced. The file is opened by chrome://tracing or ui.perfetto.dev.
    """
    file = folder / f"ppo-{n}-updates.json.gz"
    if not n or file.exists() or not collectives.leads():
        yield from updates
        return
    for _ in range(WARM_UP):
        yield from _next(updates)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    done: list[T] = []
    with profile(activities=activities, record_shapes=True) as trace:
        done += _next(updates)
        for _ in range(n - 1):
            yield from done
            done = _next(updates)
    if done:
        folder.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(file))
    yield from done
    yield from updates


def _next(updates: Iterator[T]) -> list[T]:
    """Return the next update in a list, which is empty after the last."""
    return list(islice(updates, 1))
