"""The gate before PPO: every outcome from figures alone, and what a reward made of shuffled labels meets."""

from __future__ import annotations

import pytest

from burnish.config.ppo import PPOConfig
from burnish.pipeline.gate import barely_moved
from burnish.records import Interval
from burnish.reward.gate import gate
from burnish.stats import clustered_proportion

BETTER, WORSE, UNSURE = (Interval(v, v - 0.2, v + 0.2, 64) for v in (0.5, -0.5, 0.1))


def figures(value: float, n: int = 200) -> dict[str, float]:
    hits = round(value * n)
    interval = clustered_proportion([1.0] * hits + [0.0] * (n - hits), range(n))
    return {"value": interval.value, "ci_low": interval.ci_low, "ci_high": interval.ci_high, "n": n}


@pytest.mark.parametrize(
    ("value", "lift", "outcome", "told"),
    [
        (0.75, BETTER, "go", "better to the watcher too"),
        (0.75, UNSURE, "warn", "not significantly better"),
        (0.75, None, "too few", "no watcher is accurate enough"),
        (0.75, WORSE, "stop", "worse to the watcher"),
        (0.60, BETTER, "too few", "labelled pairs would settle it"),
        (0.55, BETTER, "stop", "is no better than a trivial rule"),
        (0.40, None, "stop", "'longer wins' at 0.560"),
    ],
)
def test_every_outcome(value: float, lift: Interval | None, outcome: str, told: str) -> None:
    found, decision = gate(figures(value), {"longer": 0.56, "shorter": 0.44}, 1000, lift)
    assert found == outcome
    assert told in decision.reason
    assert decision.action == f"gate_{outcome.replace(' ', '_')}"
    assert decision.evidence["baseline"] == "longer"


def test_how_many_labels_would_settle_it() -> None:
    """0.60 is .04 above the rule, its lower bound .07 below itself: three times as many prompts."""
    accuracy = figures(0.60)
    _, decision = gate(accuracy, {"longer": 0.56}, 1000, BETTER)
    wanted = decision.evidence["pairs_wanted"]
    assert 2500 < wanted < 3500
    assert gate(figures(0.60, 200 * wanted // 1000 + 40), {"longer": 0.56}, wanted, BETTER)[0] == "go"


def test_chance_is_a_rule_too() -> None:
    assert gate(figures(0.49), {"first": 0.45}, 100, BETTER)[0] == "stop"


def row(step: int, kl: float, score: float, attempt: int = 0) -> dict[str, float]:
    return {"step": step, "attempt": attempt, "kl": kl, "score": score}


def test_a_run_that_hardly_moved_and_one_whose_score_stayed_say_so() -> None:
    config = PPOConfig()
    still = barely_moved([row(i, 0.01, 0.0) for i in range(9)], 0, config)
    assert still is not None
    assert still.action == "hardly_moved"
    assert "0.01 nats of a target of 4" in still.reason
    noise = barely_moved([row(i, i / 3, -i / 100) for i in range(9)], 0, config)
    assert noise is not None
    assert noise.action == "score_did_not_rise"
    assert barely_moved([row(i, i / 3, i / 10) for i in range(9)], 0, config) is None
    before = [row(i, 0.01, 0.0) for i in range(9)]
    after = [row(i, i / 3, i / 10, attempt=1) for i in range(9)]
    assert barely_moved(before + after, 1, config) is None, "the attempt that was kept"
