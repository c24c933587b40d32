"""AI judges as annotators: both orders, soft labels, abstentions and a budget.

An abstention never becomes a label. Averaging the log-odds of both orders removes a constant bias
towards the answer shown first. Lee et al. 2023 average probabilities, which shrinks sure answers;
section 4 of their paper measures the bias itself.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from burnish.config.judge import JudgeConfig
from burnish.labels.ledger import Answer, Ledger
from burnish.labels.rubric import Rubric
from burnish.records import Comparison, Label, content_id
from burnish.stats import clustered_proportion, wilson

SHARES = {"first": 1.0, "second": 0.0, "tie": 0.5}
WAIT, LONGEST_WAIT = 0.5, 20.0  # seconds before another attempt
OVERHEAD = 64  # tokens of a chat template around a question


class Judge(Protocol):
    """Interface of a judge."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def settings(self) -> str:
        """Settings that affect the answers."""
        ...

    async def ask(self, question: str) -> Answer:
        """Answer one question."""

    async def close(self) -> None:
        """Close connections."""


@dataclass
class Judged:
    """Result of judging: labels in the order of the comparisons, and the judge's answers."""

    labels: list[Label] = field(default_factory=list)
    both: dict[str, tuple[Answer, Answer]] = field(
        default_factory=dict
    )  # by comparison: answers in its order and swapped
    unasked: int = 0  # because the budget was spent
    cost: float = 0.0


def annotator(judge: Judge, rubric: Rubric) -> str:
    """Return a judge's name in the store: its model, and a hash of its settings and rubric."""
    return f"judge:{judge.name}@{content_id('judge', judge.settings, rubric.id)[:12]}"


def preference(forth: Answer, back: Answer) -> float | None:
    """Return the preference for the first answer from both orders; None if either abstained.

    With log-odds l of the answer shown first it is sigmoid((l_AB - l_BA) / 2). With votes it is
    their mean, so a vote that turns with the order gives one half.
    """
    if forth.why is not None or back.why is not None:
        return None
    ties = "tie" in (forth.vote, back.vote)
    if forth.log_odds is not None and back.log_odds is not None and not ties:
        lean = (forth.log_odds - back.log_odds) / 2
        return 1.0 / (1.0 + math.exp(-max(-50.0, min(50.0, lean))))
    a, b = side(forth), side(back)
    return None if a is None or b is None else (a + 1.0 - b) / 2


def side(answer: Answer) -> float | None:
    """Return 1 for the answer shown first, 0 for the second, one half for a tie, or None."""
    if answer.vote is not None:
        return SHARES[answer.vote]
    if answer.log_odds is None:
        return None
    return 0.5 if answer.log_odds == 0 else float(answer.log_odds > 0)


def open_judge(config: JudgeConfig) -> Judge:
    """Return the judge that a configuration names: behind its endpoint, or in this process."""
    if config.endpoint is not None:
        from burnish.labels.endpoint import EndpointJudge

        return EndpointJudge(config)
    from burnish.labels.local import LocalJudge

    return LocalJudge(config)


def judge_comparisons(
    comparisons: Sequence[Comparison],
    judge: Judge,
    rubric: Rubric,
    ledger: Ledger,
    config: JudgeConfig,
    on_progress: Callable[[int], None] = lambda done: None,
    time: str = "",
) -> Judged:
    """Query the judge about every comparison in both orders, `config.concurrency` at once.

    Questions that the ledger has answered for the same `time` are not sent again. No further question
    is sent once the budget does not cover it.
    """
    return asyncio.run(_Round(judge, rubric, ledger, config, on_progress, time).carry_out(comparisons))


@dataclass
class _Round:
    judge: Judge
    rubric: Rubric
    ledger: Ledger
    config: JudgeConfig
    on_progress: Callable[[int], None]
    time: str = ""
    under_way: dict[str, asyncio.Event] = field(default_factory=dict)
    done: int = 0
    spent_out: bool = False

    async def carry_out(self, comparisons: Sequence[Comparison]) -> Judged:
        self.settled = asyncio.Condition()
        before = self.ledger.spent
        waiting = iter(comparisons)
        found: dict[str, tuple[Answer, Answer]] = {}
        workers = [self._work(waiting, found) for _ in range(self.config.concurrency)]
        try:
            await asyncio.gather(*workers)
        finally:
            await self.judge.close()
        judged = Judged(both=found, unasked=len(comparisons) - len(found), cost=self.ledger.spent - before)
        name = annotator(self.judge, self.rubric)
        for c in comparisons:
            value = preference(*found[c.id]) if c.id in found else None
            if value is not None:
                cost = sum(self._cost(answer) for answer in found[c.id])
                label = Label(c.id, name, value, "judge", cost=cost, guidelines=self.rubric.guidelines.id)
                judged.labels.append(label)
        return judged

    async def _work(self, waiting: Iterator[Comparison], found: dict[str, tuple[Answer, Answer]]) -> None:
        for c in waiting:
            text = c.prompt.text
            forth = await self._once(self.rubric.question(text, c.first.text, c.second.text))
            back = None
            if forth is not None:
                back = await self._once(self.rubric.question(text, c.second.text, c.first.text))
            if forth is None or back is None:
                return
            found[c.id] = (forth, back)
            self.done += 1
            self.on_progress(self.done)

    async def _once(self, question: str) -> Answer | None:
        """Return the answer to one question; None if the budget does not cover it."""
        parts = ("judge", self.judge.name, self.judge.settings, question)
        key = content_id(*parts, self.time) if self.time else content_id(*parts)
        while key in self.under_way:  # another comparison has the same question
            await self.under_way[key].wait()
        known = self.ledger.known(key)
        if known is not None:
            return known
        self.under_way[key] = asyncio.Event()
        try:
            return await self._tried(key, question)
        finally:
            self.under_way.pop(key).set()

    async def _tried(self, key: str, question: str) -> Answer | None:
        """Try a question until answered or out of retries, with growing waits; book every try."""
        for attempt in range(self.config.retries + 1):
            answer = await self._try(key, question)
            if answer is None or not answer.again or answer.final or attempt == self.config.retries:
                return answer
            await asyncio.sleep(min(WAIT * 2**attempt, LONGEST_WAIT))
        raise AssertionError("the last try returns")

    async def _try(self, key: str, question: str) -> Answer | None:
        """Try a question once; return None if the budget does not cover it."""
        most = self._most(question)
        async with self.settled:
            await self.settled.wait_for(
                lambda: self.spent_out or self.ledger.fits(most) or not self.ledger.reserved
            )
            if self.spent_out or not self.ledger.fits(most):
                self.spent_out = True
                self.settled.notify_all()
                return None
            self.ledger.reserve(key, most)
        try:
            answer = await self.judge.ask(question)
        except BaseException:
            async with self.settled:
                self.spent_out = True  # waiting tasks stop asking
                self.settled.notify_all()
            raise
        async with self.settled:
            # It is unknown whether a lost answer was billed, and some endpoints do not report usage.
            unknown = answer.billed is None or (answer.why is None and not answer.tokens_in)
            self.ledger.settle(key, answer, most if unknown else self._cost(answer))
            self.settled.notify_all()
        return answer

    def _most(self, question: str) -> float:
        """Return the most dollars that a question may cost: every byte counts as a token."""
        tokens = len(question.encode()) + OVERHEAD
        return (tokens * self.config.price_in + self.config.max_tokens * self.config.price_out) / 1e6

    def _cost(self, answer: Answer) -> float:
        return (answer.tokens_in * self.config.price_in + answer.tokens_out * self.config.price_out) / 1e6


def behaviour(judged: Judged, comparisons: Iterable[Comparison], confidence: float = 0.95) -> dict[str, Any]:
    """Summarise a judge's behaviour.

    `flips` is how often its verdict turned with the order (ties excluded). `first` is how often it
    preferred the answer shown first (one half without bias), and `position_log_odds` the mean
    log-odds it adds for that. `abstentions` are by reason. `longer` is how often the longer answer
    won; compare any accuracy of the judge with it. `cost` is in dollars.
    """
    known = {c.id: c for c in comparisons}
    answered = {i: pair for i, pair in judged.both.items() if all(a.why is None for a in pair)}
    firm = [(a, b) for a, b in ((side(x), side(y)) for x, y in answered.values()) if 0.5 not in (a, b)]
    flips = sum(a == b for a, b in firm)
    sides = [(s, i) for i, pair in answered.items() for a in pair if (s := side(a)) is not None]
    odds = [
        (x.log_odds + y.log_odds) / 2
        for x, y in answered.values()
        if x.log_odds is not None and y.log_odds is not None
    ]
    reasons = Counter(a.why for pair in judged.both.values() for a in pair if a.why is not None)
    longer = []
    for label in judged.labels:
        c = known[label.comparison_id]
        a, b = len(c.first.text.split()), len(c.second.text.split())
        if a != b and label.preference != 0.5:
            longer.append((label.preference > 0.5) == (a > b))
    return {
        "asked": len(judged.both),
        "labels": len(judged.labels),
        "unasked_for_want_of_budget": judged.unasked,
        "abstentions": dict(reasons),
        "to_be_asked_again": sum(any(a.again for a in pair) for pair in judged.both.values()),
        "flips": asdict(wilson(flips, len(firm), confidence)) if firm else None,
        "first": asdict(
            clustered_proportion([s for s, _ in sides], [i for _, i in sides], confidence=confidence)
        )
        if sides
        else None,
        "position_log_odds": sum(odds) / len(odds) if odds else None,
        "longer": asdict(wilson(sum(longer), len(longer), confidence)) if longer else None,
        "cost": judged.cost,
        "cost_per_label": judged.cost / len(judged.labels) if judged.labels else None,
    }
