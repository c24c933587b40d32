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

    The trace includes what the caller does with each of them. With `n` 0, or if the folder has a
    trace, nothing is traced. Only process 0 of several is traced. The file is opened by
    chrome://tracing or ui.perfetto.dev.
    """
    file = folder / f"ppo-{n}-updates.json.gz"
    if not n or file.exists() or not collectives.leads():
        yield from updates
        return
    yield from islice(updates, WARM_UP)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    traced = 0
    with profile(activities=activities, record_shapes=True) as trace:
        for update in islice(updates, n):
            traced += 1
            yield update
    if traced:
        folder.mkdir(exist_ok=True)
        trace.export_chrome_trace(str(file))
    yield from updates
