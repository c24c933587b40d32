"""Ledger of a judge's answers and costs, written to disk before the next question."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from filelock import FileLock, Timeout

from burnish.errors import DataError, RunError

Vote = Literal["first", "second", "tie"]


@dataclass(frozen=True)
class Answer:
    """Judge's verdict on two answers in one order.

    It has the log-odds that the answer shown first is better, or a vote, or neither and the reason
    `why`. The last case is an abstention, which never becomes a label. `again` means that another
    try may help, `final` that it should wait for a later run. `billed` says whether the answer was
    paid for; None means unknown, which counts as paid at its highest price.
    """

    log_odds: float | None = None
    vote: Vote | None = None
    why: str | None = None
    again: bool = False
    final: bool = False
    billed: bool | None = False
    tokens_in: int = 0
    tokens_out: int = 0


class Ledger:
    """Append-only file of answers, by the content of their question, and of dollars spent.

    One line is written before a question is sent (its highest cost) and one when it is answered
    (its actual cost). If a process is killed in between, the highest cost counts. Spending stays
    within `budget` dollars, including all questions under way.
    """

    def __init__(self, path: Path, budget: float | None = None) -> None:
        self.path = path
        self.budget = budget
        self.answers: dict[str, Answer] = {}
        self.reserved: dict[str, float] = {}
        self.spent = 0.0
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(path.with_name(f"{path.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"{path} is in use: another process is asking its judge; wait until it ends"
            ) from None
        if path.exists():
            self._read()
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        self._file.close()
        self._lock.release()

    def _read(self) -> None:
        lines = self.path.read_text(encoding="utf-8").split("\n")
        if lines[-1]:  # the last line is incomplete: its question stays reserved
            self.path.write_text("\n".join([*lines[:-1], ""]), encoding="utf-8")
        for number, line in enumerate(lines[:-1], 1):
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(
                    f"{self.path}, line {number}, is not JSON ({error}); move the file away to send all questions again"
                ) from None
            self._take(row)
        self.spent += sum(self.reserved.values())
        self.reserved.clear()

    def _take(self, row: dict[str, Any]) -> None:
        key = row["key"]
        if "reserved" in row:
            # A reservation without a result belongs to a killed attempt, which counts at its highest cost.
            self.spent += self.reserved.pop(key, 0.0)
            self.reserved[key] = row["reserved"]
            return
        self.reserved.pop(key, None)
        self.spent += row["cost"]
        self.answers[key] = Answer(**row["answer"])

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._file.flush()

    def known(self, key: str) -> Answer | None:
        """Return the stored answer; None if there is none or if asking again may help."""
        answer = self.answers.get(key)
        return None if answer is None or answer.again else answer

    def fits(self, most: float) -> bool:
        """Check whether a question of at most `most` dollars fits the budget beside those under way."""
        return self.budget is None or self.spent + sum(self.reserved.values()) + most <= self.budget

    def reserve(self, key: str, most: float) -> None:
        """Record the highest cost of a question before it is sent."""
        assert self.fits(most)
        self.reserved[key] = most
        self._write({"key": key, "reserved": most})

    def settle(self, key: str, answer: Answer, cost: float) -> None:
        """Record the answer to a question and its actual cost."""
        self.reserved.pop(key, None)
        self.spent += cost
        self.answers[key] = answer
        self._write({"key": key, "cost": cost, "answer": asdict(answer)})
