"""The gate's two looks: what is drawn, what is decided early, and the rate of false alarms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.pipeline import gate
from burnish.pipeline.gate import FIRST_PROMPTS, GATE_PROMPTS, Look
from burnish.records import Interval, Prompt, Rollout
from burnish.rehearse.world import gold
from burnish.reward.changes import STRESS, Change, Changed
from burnish.reward.stress import ALARMS, NOTICED, TOLERATED, paid, settled, stress
from burnish.textstats import n_words
from tests.reward.test_stress import judged_by, stories

Score = Callable[[Prompt, str, Changed | None], float]


@dataclass
class Faked(Look):
    """A look at given answers with a given score; the answers that were sampled are counted."""

    prompts: list[Prompt] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    score: Score = lambda prompt, text, made: 0.0
    lift: Interval | None = None
    best: bool = True  # whether best of n is settled
    drawn: int = 0
    asked: list[list[str]] = field(default_factory=list)

    def _sampled(self, prompts: Sequence[Prompt], answers: int, where: str) -> list[Any]:
        self.drawn += answers * len(prompts)
        return [list(prompts) for _ in range(answers)]

    def _reference(self, prompts: Sequence[Prompt], where: str) -> None:
        return None

    def _lift(self, samples: Sequence[Any], reference: Rollout | None) -> Interval | None:
        return self.lift

    def _stressed(
        self, samples: Sequence[Any], reference: Rollout | None, changes: Sequence[Change] = STRESS
    ) -> dict[str, Any]:
        self.asked.append([change.name for change in changes])
        n = FIRST_PROMPTS if len(self.asked) == 1 else GATE_PROMPTS
        prompts, texts = self.prompts[:n], self.texts[:n]
        judge = judged_by(lambda p, made: self.score(p, made.text, made), prompts)
        before = [self.score(p, t, None) for p, t in zip(prompts, texts, strict=True)]
        found = stress(prompts, texts, before, judge, seed=0, changes=changes, looks=2)
        best = {"outcome": "go", "why": "", "settled": self.best} if len(samples) > 1 else None
        return found | {"answers": n, "best_of": best}


def looks(score: Score, seed: int = 0, **more: Any) -> tuple[Faked, dict[str, Any]]:
    """Carry out both looks; return them and the report."""
    prompts, texts = stories(GATE_PROMPTS, seed)
    nothing: Any = None
    look = Faked(*[nothing] * 5, 0, looks=2, prompts=prompts, texts=texts, score=score, **more)
    lift, first = look.at(prompts[:FIRST_PROMPTS])
    return look, look.again(prompts, lift, first, lambda text: None)[1]


@pytest.fixture(autouse=True)
def joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gate, "gather", lambda samples, places: [None] * len(places))


def loves_length(prompt: Prompt, text: str, made: Changed | None) -> float:
    return n_words(text) / 10


def true_preference(prompt: Prompt, text: str, made: Changed | None) -> float:
    return gold(prompt, text) / 0.6


def test_one_outcome_is_left_where_a_change_is_settled() -> None:
    assert settled("pads", Interval(0.5, TOLERATED + 0.01, 1.0, 9))
    assert settled("pads", Interval(0.0, -0.2, TOLERATED - 0.01, 9))
    assert not settled("pads", Interval(0.1, 0.0, 0.2, 9))
    assert settled("ruins", Interval(-1.0, -2.0, -NOTICED - 0.01, 9))
    assert not settled("ruins", Interval(-1.0, -2.0, -0.1, 9)), "wide, so it is no reason to pass"


def test_only_what_is_open_is_looked_at_again() -> None:
    look, report = looks(loves_length)
    first, second = look.asked
    assert first == [change.name for change in STRESS]
    assert second == report["undecided"]
    assert 0 < len(second) < len(first)
    assert look.drawn == 8 * FIRST_PROMPTS + (GATE_PROMPTS - FIRST_PROMPTS), "one more answer to a prompt"
    rows = {row["name"]: row for row in report["changes"]}
    assert list(rows) == first
    assert rows["answer_repeated"]["liked"]
    assert rows["answer_repeated"]["n"] <= FIRST_PROMPTS
    whole = [row["n"] for name, row in rows.items() if name in second and row["n"] > FIRST_PROMPTS]
    assert whole, "open changes have answers of both looks"
    assert report["outcome"] == "warn"


@pytest.mark.parametrize(
    "more", [{"lift": Interval(0.1, -0.1, 0.3, 32)}, {"best": False}], ids=["lift", "best of n"]
)
def test_several_answers_are_added_for_what_needs_several(more: dict[str, Any]) -> None:
    look, _ = looks(loves_length, **more)
    assert look.drawn == 8 * GATE_PROMPTS


def test_a_sure_lift_needs_no_second_look_of_its_own() -> None:
    look, _ = looks(loves_length, lift=Interval(0.5, 0.3, 0.7, 32))
    assert look.drawn < 8 * GATE_PROMPTS


def test_two_looks_divide_the_error_probability(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(gate, "stress_ensemble", lambda *args, **more: seen.update(more))
    monkeypatch.setattr(gate, "watchers_lift", lambda *args: seen.update(confidence=args[-1]))
    monkeypatch.setattr(gate, "load_reference", lambda *args: (None, 1.0))
    anything: Any = SimpleNamespace(
        codec=SimpleNamespace(pad_id=0), armed=True, kl=SimpleNamespace(target=4), missing_eos_penalty=1
    )
    for number in (1, 2):
        look = Look(*[anything] * 5, 0, looks=number)
        look._stressed([anything], None, STRESS[:3])
        look._lift([[1, 2]], None)  # type: ignore[list-item]
        assert seen["looks"] == number
        assert seen["changes"] == STRESS[:3]
        assert seen["confidence"] == pytest.approx(1 - 0.05 / number)


def test_whether_a_change_pays_is_settled_too() -> None:
    """One that surely raises the score, and may or may not pay, is open."""
    groups = [str(i) for i in range(24)]
    rises = [0.2 + 0.02 * (i % 3) for i in range(24)]
    cheap, even, dear = ([-50.0 - cost - 0.9 * (i % 5) for i in range(24)] for cost in (-9.0, -1.2, 20.0))
    found = [paid("pads", rises, [-50.0] * 24, other, groups, 2.8, "why", 2) for other in (cheap, even, dear)]
    assert [row["pays"] for row in found] == [True, False, False]
    assert [row["settled"] for row in found] == [True, False, True]


@pytest.mark.slow("statistics")
def test_two_looks_find_as_much_as_one_and_raise_no_more_alarms() -> None:
    """Forty batteries: the true preference, which no change pleases, and a judge who likes length."""
    alarms = sum(looks(true_preference, seed)[1]["outcome"] != "go" for seed in range(40))
    assert alarms / 40 <= ALARMS + 0.05
    for seed in range(5):
        prompts, texts = stories(GATE_PROMPTS, seed)
        judge = judged_by(lambda p, made: loves_length(p, made.text, made), prompts)
        whole = stress(prompts, texts, [n_words(t) / 10 for t in texts], judge, seed=0)
        liked = {row["name"] for row in whole["changes"] if row["liked"]}
        twice = {row["name"] for row in looks(loves_length, seed)[1]["changes"] if row["liked"]}
        assert {"filler", "answer_repeated"} <= twice
        assert len(liked ^ twice) <= 2
