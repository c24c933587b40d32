"""Traces of updates: all updates are passed on, and the trace holds as many as were asked for."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import torch

from burnish.monitor.profile import profiled


def updates(n: int) -> Iterator[int]:
    for i in range(n):
        torch.linalg.vector_norm(torch.ones(3))  # one operation an update, to be counted in the trace
        yield i


def traced(folder: Path) -> list[int]:
    """Number of the operation in every trace."""
    found = []
    for file in sorted(folder.glob("*.json.gz")):
        events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
        found.append(sum(event.get("name") == "aten::linalg_vector_norm" for event in events))
    return found


def test_a_trace_holds_the_updates_after_the_first(tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    assert list(profiled(updates(5), 2, folder)) == [0, 1, 2, 3, 4]
    assert traced(folder) == [2]
    assert list(profiled(updates(3), 2, folder)) == [0, 1, 2], "a trace that is there is kept"
    assert traced(folder) == [2]


def test_without_a_number_or_without_updates_there_is_no_trace(tmp_path: Path) -> None:
    folder = tmp_path / "profile"
    assert list(profiled(updates(2), 0, folder)) == [0, 1]
    assert list(profiled(updates(1), 3, folder)) == [0]
    assert not folder.exists()
    assert list(profiled(updates(3), 9, folder)) == [0, 1, 2]
    assert traced(folder) == [2], "fewer are left than were asked for"
