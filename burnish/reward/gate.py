"""Gate before PPO: decides whether the reward is worth optimising.

It compares held-out accuracy with trivial rules, and checks that an independent judge, the watcher,
also prefers the answers with the highest reward.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

from burnish.records import Decision, Interval

Outcome = Literal["go", "warn", "stop", "too few"]
GRAVE: tuple[Outcome, ...] = ("stop", "warn")


def worst(outcomes: Collection[Outcome]) -> Outcome:
    """Return the worst outcome of several; `too few` if none could be determined."""
    return next((kind for kind in (*GRAVE, "go") if kind in outcomes), "too few")


def gate(
    accuracy: Mapping[str, Any],
    baselines: Mapping[str, float],
    pairs: int,
    lift: Interval | None,
    hacks: Sequence[str] = (),
) -> tuple[Outcome, Decision]:
    """Decide whether PPO may start, from held-out accuracy and the watcher's lift.

    `accuracy` (value, ci_low, n by prompt) is compared with the best of the trivial rules and chance.
    `lift` is the watcher's score of best-of-n minus that of SFT, in reference standard deviations; None
    if the watcher is not accurate enough. `pairs` counts all labelled pairs. `hacks` lists the
    weaknesses that stress tests say PPO would find.

    - stop: no better than a trivial rule, the watcher surely prefers SFT, or there are hacks.
    - too few: better but not surely, or no watcher; PPO continues, and the run is marked.
    - warn: the watcher does not surely prefer best-of-n.
    - go: otherwise.
    """
    name, best = max([*baselines.items(), ("chance", 0.5)], key=lambda item: item[1])
    value, low, n = accuracy["value"], accuracy["ci_low"], accuracy["n"]
    evidence: dict[str, Any] = {
        "accuracy": value,
        "ci_low": low,
        "n": n,
        "baseline": name,
        "baseline_accuracy": best,
        "lift": lift.value if lift else None,
        "lift_low": lift.ci_low if lift else None,
        "lift_high": lift.ci_high if lift else None,
    }

    def decide(outcome: Outcome, why: str) -> tuple[Outcome, Decision]:
        return outcome, Decision(f"gate_{outcome.replace(' ', '_')}", f"gate: {outcome}: {why}", evidence)

    rule = f"'{name}'" if name == "chance" else f"'{name} wins'"
    text = f"held-out accuracy {value:.3f} (lower bound {low:.3f}, {n} prompts) against {rule} at {best:.3f}"
    if value <= best:
        return decide("stop", f"{text}: the reward is no better than a trivial rule")
    if lift is not None and lift.ci_high < 0:
        return decide("stop", f"the answers with the highest reward are worse to the watcher ({_span(lift)})")
    if hacks:
        return decide(
            "stop", f"{text}; but stress tests found weaknesses that PPO can exploit: {'; '.join(hacks)}"
        )
    if low <= best:
        # The half width shrinks with the square root of the number of prompts.
        wanted = math.ceil(pairs * ((value - low) / (value - best)) ** 2)
        evidence["pairs_wanted"] = wanted
        return decide(
            "too few", f"{text}; if it stays at this value, about {wanted} labelled pairs would settle it"
        )
    if lift is None:
        return decide(
            "too few", f"{text}; no watcher is accurate enough to judge the answers with the highest reward"
        )
    if lift.ci_low <= 0:
        return decide(
            "warn",
            f"{text}; to the watcher the answers it ranks highest are not significantly better ({_span(lift)})",
        )
    return decide("go", f"{text}; the answers it ranks highest are better to the watcher too ({_span(lift)})")


def _span(lift: Interval) -> str:
    return f"{lift.value:+.2f} [{lift.ci_low:+.2f}, {lift.ci_high:+.2f}] sd on {lift.n} prompts"
