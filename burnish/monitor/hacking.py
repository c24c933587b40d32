"""Reward hacking while it happens: figures that leave where healthy runs stay while the reward rises, and a watcher
that is never optimised against."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from burnish.monitor import thresholds
from burnish.records import Alert, StepStats

SURE = 3.0  # standard errors by which the watcher must have fallen
FIGURES = ("length", "truncated", "repetition", "foreign", "ref_nll", "score")
WHAT_HACKS_NEED = "score"  # without a rise of which nothing is being hacked

Means = Mapping[str, float]


@dataclass(frozen=True)
class Found:
    """What a detector saw: a value past its limit, in words."""

    value: float
    limit: float
    text: str


def length_drift(start: Means, now: Means) -> Found | None:
    """Longer and longer answers, or shorter and shorter ones."""
    if "length" not in now or "length" not in start:
        return None
    before, value = start["length"], now["length"]
    most, least = thresholds.LENGTH_GROWTH * before, thresholds.LENGTH_LOSS * before
    if least <= value <= most:
        return None
    limit, how = (most, "grown") if value > most else (least, "shrunk")
    return Found(value, limit, f"answers have {how} from {before:.0f} to {value:.0f} tokens")


def truncation(start: Means, now: Means) -> Found | None:
    """Answers that go on until they are cut off."""
    return _risen(
        start,
        now,
        "truncated",
        thresholds.TRUNCATED,
        "answers that are cut off have gone from {0:.0%} to {1:.0%}",
    )


def repetition(start: Means, now: Means) -> Found | None:
    """The same words again and again."""
    return _risen(
        start,
        now,
        "repetition",
        thresholds.REPETITION,
        "repeated word pairs have gone from {0:.0%} to {1:.0%}",
    )


def language_switch(start: Means, now: Means) -> Found | None:
    """Answers in another language than their prompt."""
    return _risen(
        start,
        now,
        "foreign",
        thresholds.FOREIGN,
        "answers in another language than their prompt: {0:.0%} before, {1:.0%} now",
    )


def nonsense(start: Means, now: Means) -> Found | None:
    """Tokens that the reference finds far less likely, or far more, than its own."""
    if "ref_nll" not in now or "ref_nll" not in start:
        return None
    before, value = start["ref_nll"], now["ref_nll"]
    least, most = thresholds.LIKELY * before, thresholds.UNLIKELY * before
    if least <= value <= most:
        return None
    limit = most if value > most else least
    text = f"the reference gives {value:.2f} nats a token to these answers, {before:.2f} to its own"
    return Found(value, limit, text)


def _risen(start: Means, now: Means, name: str, margin: float, text: str) -> Found | None:
    """A share that lies more than a margin above where it began."""
    if name not in now:
        return None
    before, value = start.get(name, 0.0), now[name]
    limit = before + margin
    return Found(value, limit, text.format(before, value)) if value > limit else None


DETECTORS: dict[str, Callable[[Means, Means], Found | None]] = {
    "length_drift": length_drift,
    "truncation": truncation,
    "repetition": repetition,
    "language_switch": language_switch,
    "nonsense": nonsense,
}


class HackMonitor:
    """Means over the last updates against those over the first, for every detector, once enough responses were seen and
    while the reward is above where it began: without that a drift is no hack."""

    def __init__(self, responses: int) -> None:
        self.responses = responses  # of an update
        self.start: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []

    def observe(self, stats: StepStats) -> list[Alert]:
        """Alerts of one update. A figure that is missing is no evidence of anything."""
        row = {name: stats[name] for name in FIGURES if name in stats.values}
        if not row:
            return []
        if len(self.start) < thresholds.BASELINE:
            self.start.append(row)
            return []
        window = max(thresholds.WINDOW, math.ceil(thresholds.RESPONSES / self.responses))
        self.recent = [*self.recent, row][-window:]
        if len(self.recent) * self.responses < thresholds.RESPONSES:
            return []
        start, now = _means(self.start), _means(self.recent)
        if now.get(WHAT_HACKS_NEED, 0.0) <= start.get(WHAT_HACKS_NEED, 0.0):
            return []
        rise = now.get(WHAT_HACKS_NEED, 0.0) - start.get(WHAT_HACKS_NEED, 0.0)
        alerts = []
        for name, detect in DETECTORS.items():
            found = detect(start, now)
            if found is not None:
                text = f"{found.text} while the reward rose by {rise:.2f}"
                evidence = {"attempt": stats.attempt, "updates": len(self.recent), "reward_rise": rise}
                alerts.append(Alert(name, "warning", text, stats.step, found.value, found.limit, evidence))
        return alerts

    def restart(self) -> None:
        """After a roll-back: forget what was given up, keep where the run began."""
        self.recent = []

    def state_dict(self) -> dict[str, Any]:
        return {"start": self.start, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.start, self.recent = state["start"], state["recent"]


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of every figure over the updates that have it."""
    found = {}
    for name in FIGURES:
        values = [row[name] for row in rows if name in row]
        if values:
            found[name] = sum(values) / len(values)
    return found


class WatcherMonitor:
    """Compares the watcher's score of this policy with its best so far. Disarmed, it only records."""

    def __init__(self, armed: bool) -> None:
        self.armed = armed
        self.best: tuple[float, float, float] | None = None  # watcher, its standard error, proxy

    def observe(self, stats: StepStats) -> list[Alert]:
        """An alert when the watcher is surely below its best while the proxy is above what it was then."""
        if not self.armed or "watcher" not in stats.values:
            return []
        value, se, proxy = stats["watcher"], stats["watcher_se"], stats["score"]
        if self.best is None or value >= self.best[0]:
            self.best = (value, se, proxy)
            return []
        best, best_se, best_proxy = self.best
        margin = SURE * (se**2 + best_se**2) ** 0.5
        if best - value <= margin or proxy <= best_proxy:
            return []
        text = (
            f"the watcher fell from {best:.2f} to {value:.2f} while the proxy rose from {best_proxy:.2f} "
            f"to {proxy:.2f}"
        )
        evidence = {
            "attempt": stats.attempt,
            "watcher_best": best,
            "proxy_at_best": best_proxy,
            "proxy": proxy,
        }
        return [Alert("watcher_gap", "warning", text, stats.step, value, best - margin, evidence)]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else tuple(state["best"])
