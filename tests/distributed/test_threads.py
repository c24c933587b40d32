"""Loops side by side: the order of what they yield, their errors, and what is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from burnish.distributed.threads import side_by_side


def count(name: str, n: int, wait_for: threading.Event | None = None) -> Iterator[str]:
    for i in range(n):
        if wait_for is not None:
            assert wait_for.wait(10)
        yield f"{name}{i}"


def test_one_of_each_in_turn_whoever_is_faster() -> None:
    late = threading.Event()

    def slow() -> Iterator[str]:
        yield "a0"
        late.set()
        yield "a1"

    found = list(side_by_side([slow(), count("b", 3, late), count("c", 1)]))
    assert found == [(0, "a0"), (1, "b0"), (2, "c0"), (0, "a1"), (1, "b1"), (1, "b2")]


def test_without_threads_they_take_turns_in_this_one() -> None:
    def where(name: str, n: int) -> Iterator[str]:
        for i in range(n):
            yield f"{name}{i} {threading.current_thread().name}"

    me = threading.current_thread().name
    found = list(side_by_side([where("a", 2), where("b", 3), where("c", 1)], in_threads=False))
    assert found == [
        (n, f"{what} {me}") for n, what in ((0, "a0"), (1, "b0"), (2, "c0"), (0, "a1"), (1, "b1"), (1, "b2"))
    ]


def test_each_has_its_share_of_the_threads_and_all_come_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:

        def look() -> Iterator[tuple[int, str]]:
            yield torch.get_num_threads(), threading.current_thread().name

        seen = [item for _, item in side_by_side([look(), look(), look()])]
        assert [n for n, _ in seen] == [1, 1, 1]
        assert threading.current_thread().name not in {name for _, name in seen}
        assert torch.get_num_threads() == 4
        assert next(side_by_side([look()]))[1] == (4, threading.current_thread().name)
    finally:
        torch.set_num_threads(before)


def test_an_error_in_one_stops_all_and_is_raised() -> None:
    before = torch.get_num_threads(), threading.active_count()

    def breaks() -> Iterator[str]:
        yield "b0"
        raise ValueError("no such pair")

    with pytest.raises(ValueError, match="no such pair"):
        list(side_by_side([count("a", 10**9), breaks()]))
    assert (torch.get_num_threads(), threading.active_count()) == before


def test_leaving_early_stops_the_loops() -> None:
    before = threading.active_count()
    both = side_by_side([count("a", 10**9), count("b", 10**9)])
    assert next(both) == (0, "a0")
    both.close()
    assert threading.active_count() == before
