"""What several processes share: rows, gradients, decisions, and failures."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from burnish.distributed import collectives
from burnish.errors import Diverged, PeerFailed
from burnish.runs.files import read_json, write_json
from tests.processes import shared


def test_alone_nothing_is_shared() -> None:
    assert (collectives.size(), collectives.rank(), collectives.leads(), collectives.processes()) == (
        1,
        0,
        True,
        1,
    )
    assert collectives.mine(range(5)) == [0, 1, 2, 3, 4]
    assert collectives.gather(3, lambda own: (torch.tensor(own),))[0].tolist() == [0, 1, 2]
    assert collectives.deal(["a", "b"], lambda own: [x * 2 for x in own]) == ["aa", "bb"]
    assert collectives.from_lead(lambda: 7) == 7


@pytest.mark.e2e
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("rows", [1, 2, 5])
def test_rows_come_back_in_their_order_from_whoever_had_them(n: int, rows: int) -> None:
    """Also where they do not come out even, and where a process has none."""

    def work(number: int) -> tuple[list[int], list[list[float]]]:
        asked: list[int] = []

        def read(own: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
            asked.extend(own)
            return torch.tensor(own), torch.tensor([[i, 10.0 * i] for i in own])

        first, second = collectives.gather(rows, read)
        assert first.tolist() == list(range(rows))
        return asked, second.tolist()

    found = shared(n, work)
    assert [asked for asked, _ in found] == [list(range(rows))[k::n] for k in range(n)]
    assert all(rest == [[i, 10.0 * i] for i in range(rows)] for _, rest in found)


@pytest.mark.e2e
def test_a_process_without_rows_gets_them_on_the_device_of_the_others() -> None:
    """`torch.device` on the CPU alone: a fake device type is sent along with each tensor."""

    class Elsewhere(torch.Tensor):
        """A tensor that says it lives on the meta device; its numbers are read from the CPU."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

        def cpu(self) -> torch.Tensor:  # type: ignore[override]
            return self.as_subclass(torch.Tensor)  # type: ignore[attr-defined]

        def detach(self) -> torch.Tensor:  # type: ignore[override]
            return self

    def work(number: int) -> str:
        def read(own: list[int]) -> tuple[torch.Tensor]:
            return (torch.ones(len(own)).as_subclass(Elsewhere),)  # type: ignore[attr-defined]

        return collectives.gather(1, read)[0].device.type

    assert shared(2, work) == ["meta", "meta"]


@pytest.mark.e2e
def test_results_for_process_0_are_not_sent_to_the_others() -> None:
    def work(number: int) -> list[str]:
        return collectives.deal(list("abc"), lambda own: [x * 2 for x in own], to_lead=True)

    assert shared(2, work) == [["aa", "bb", "cc"], []]

    def fails(number: int) -> list[str]:
        def job(own: list[str]) -> list[str]:
            if "b" in own:
                raise Diverged("job b")
            return own

        return collectives.deal(list("abc"), job, to_lead=True)

    found = shared(2, fails)
    assert [type(error) for error in found] == [Diverged, Diverged], "a failure is raised by all"


@pytest.mark.e2e
def test_gradients_and_figures_are_added_up_and_a_process_without_rows_counts_as_zero() -> None:
    def work(number: int) -> tuple[list[float], dict[str, float]]:
        p = nn.Parameter(torch.ones(3))
        q = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))

        def gradient() -> dict[str, float]:
            if number == 2:
                return {}
            ((number + 1) * (p.sum() + q.sum())).backward()
            return {"loss": float(number + 1)}

        figures = collectives.add([p, q], gradient)
        assert p.grad is not None
        assert q.grad is not None
        return [*p.grad.tolist(), *q.grad.flatten().tolist()], figures

    assert shared(3, work) == [([3.0] * 7, {"loss": 3.0})] * 3


@pytest.mark.e2e
def test_whole_jobs_are_dealt_and_nothing_is_shared_within_one() -> None:
    def work(number: int) -> list[tuple[str, int, int]]:
        return collectives.deal(
            ["a", "b", "c"],
            lambda own: [(name, number, collectives.size()) for name in own if collectives.mine([3]) == [3]],
        )

    assert shared(2, work) == [[("a", 0, 1), ("b", 1, 1), ("c", 0, 1)]] * 2


@pytest.mark.e2e
def test_a_job_may_take_longer_than_anybody_waits_for_an_answer() -> None:
    def work(number: int) -> list[int]:
        def job(own: list[int]) -> list[int]:
            if number == 1:
                time.sleep(7)
            return own

        return collectives.deal([10, 11, 12], job)

    assert shared(2, work, timeout=5) == [[10, 11, 12]] * 2


@pytest.mark.e2e
def test_what_fails_in_one_process_fails_in_all_with_the_same_kind_of_error() -> None:
    def work(number: int) -> None:
        def read(own: list[int]) -> tuple[torch.Tensor]:
            if number == 1:
                raise Diverged("logits are nan")
            return (torch.tensor(own),)

        with pytest.raises(Diverged, match="logits are nan"):
            collectives.gather(4, read)

        def other() -> dict[str, float]:
            if number == 1:
                raise ZeroDivisionError("by zero")
            return {}

        with pytest.raises((PeerFailed, ZeroDivisionError), match="by zero"):
            collectives.add([], other)
        collectives.settled()  # and all can go on

    assert shared(2, work) == [None, None]


@pytest.mark.e2e
def test_the_leader_s_word_is_waited_for_and_so_is_its_error(tmp_path: Path) -> None:
    def work(number: int) -> tuple[int, str]:
        def slow() -> int:
            assert number == 0, "only the leader does it"
            time.sleep(7)
            return 41

        def failing() -> int:
            raise Diverged("no")

        found = collectives.from_lead(slow)
        with pytest.raises(Diverged, match="no"):
            collectives.from_lead(failing)
        write_json(tmp_path / "file.json", {"written by": number})
        return found, str(read_json(tmp_path / "file.json"))

    assert shared(2, work, timeout=5) == [(41, "{'written by': 0}")] * 2, (
        "a word may take longer than the timeout"
    )


@pytest.mark.e2e
def test_memory_that_runs_out_in_one_process_is_told_as_that() -> None:
    class Refused(Diverged):
        """A kind that errors.py does not know."""

    def work(number: int) -> tuple[str, str]:
        def read(own: list[int]) -> tuple[torch.Tensor]:
            if number == 1:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
            return (torch.tensor(own),)

        def refuse() -> None:
            if number == 1:
                raise Refused("no")

        kinds = []
        for what in (lambda: collectives.gather(4, read), lambda: collectives.each(refuse)):
            try:
                what()
            except Exception as error:  # noqa: BLE001 - its kind is what is looked at
                kinds.append(type(error).__name__)
        return kinds[0], kinds[1]

    assert shared(2, work) == [("OutOfMemory", "Diverged"), ("OutOfMemoryError", "Refused")]


@pytest.mark.slow("several")
@pytest.mark.e2e
def test_processes_of_a_machine_take_turns_and_one_that_fails_fails_all() -> None:
    def work(number: int) -> tuple[float, float]:
        def slow() -> tuple[float, float]:
            began = time.monotonic()
            time.sleep(5)
            return began, time.monotonic()

        def failing() -> None:
            if number == 0:
                raise Diverged("no")

        found = collectives.in_turns(slow)  # longer than anybody waits for an answer
        with pytest.raises(Diverged, match="no"):
            collectives.in_turns(failing)
        return found

    first, second = shared(2, work, timeout=4)
    assert not isinstance(first, Exception), first
    assert first[1] <= second[0]


@pytest.mark.e2e
def test_processes_that_went_different_ways_are_told() -> None:
    def word(number: int) -> None:
        if number:
            collectives.from_lead(lambda: 1)
        else:
            collectives.from_lead(lambda: 1)

    def jobs(number: int) -> None:
        if number:
            collectives.deal([1, 2], list)
        else:
            collectives.deal([1, 2], list)

    for way in (word, jobs):

        def work(number: int, way: Callable[[int], None] = way) -> str:
            collectives.settled()
            try:
                way(number)
                return ""
            except PeerFailed as error:
                return str(error)

        told = shared(2, work, timeout=20)
        assert "they took different paths" in told[1]
        assert f"process 0 shares work at {__name__}, line " in told[1]


@pytest.mark.e2e
def test_replicas_that_differ_are_noticed() -> None:
    def work(number: int) -> str:
        weights = [torch.ones(4), torch.full((2,), 1.0 + (number == 1) * 1e-7)]
        collectives.check_replicas(weights[:1], "the policy")
        with pytest.raises(PeerFailed) as told:
            collectives.check_replicas(weights, "the policy")
        return str(told.value)

    (told, again) = shared(2, work)
    assert told == again
    assert "the policy differ between process 0 and 1" in told


@pytest.mark.slow("several")
@pytest.mark.e2e
@pytest.mark.parametrize("sleeper", [0, 1])
@pytest.mark.parametrize("how", ["gather", "word"])
def test_a_process_that_hangs_ends_the_others_in_words_within_the_timeout(sleeper: int, how: str) -> None:
    """Stopped as a whole, as by the system: it sends no heartbeat."""

    def gather() -> None:
        collectives.gather(4, lambda own: (torch.tensor(own),))

    def word() -> None:
        collectives.from_lead(lambda: 1)
        collectives.settled()

    ways = {"gather": gather, "word": word}

    def work(number: int) -> bool:
        collectives.settled()
        if number == sleeper:
            os.kill(os.getpid(), signal.SIGSTOP)
        with pytest.raises(PeerFailed, match="had no answer from another one within 6 s"):
            ways[how]()
        return True

    def guarded(number: int) -> bool:
        try:
            return work(number)
        finally:
            if number != sleeper:
                for line in Path(f"/proc/{os.getppid()}/task/{os.getppid()}/children").read_text().split():
                    if int(line) != os.getpid():
                        os.kill(int(line), signal.SIGKILL)

    assert shared(2, guarded, timeout=6)[1 - sleeper] is True


@pytest.mark.e2e
def test_a_process_that_is_killed_ends_the_others_in_words() -> None:
    def work(number: int) -> str:
        collectives.settled()
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        with pytest.raises(PeerFailed) as told:
            collectives.settled()
        return str(told.value)

    told, gone = shared(2, work, timeout=20)
    assert gone is None
    assert "continues from the last checkpoint" in told
