"""Sequential test for a fall of the watcher's score while the proxy's score rises.

The watcher is an independent reward model that PPO does not optimise.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from burnish.records import Alert, StepStats

ERROR = 0.05  # probability of an alert in a run whose watcher never falls
CRITICAL = (1.645, 2.35, 2.84, 3.23, 3.53, 3.80, 4.06, 4.25, 4.46, 4.63)
"""Critical values for 2, 4, 8, ... 1024 looks: the quantile 1 - `ERROR` of the largest z of all comparisons of a run,
simulated with normal looks of equal variance (`tests/monitor/test_watcher.py` repeats it)."""


@dataclass(frozen=True)
class Look:
    """Scores of one update's responses.

    `watcher` is the watcher's mean score, `se` its standard error clustered by prompt, `prompts`
    the number of prompts, `proxy` the mean score of the proxy.
    """

    watcher: float
    se: float
    prompts: float
    proxy: float


@dataclass(frozen=True)
class Fall:
    """Two groups of evaluations whose means differ by more than chance."""

    before: float
    after: float
    limit: float  # a mean after the fall lies below it
    proxy_before: float
    proxy_after: float
    looks: int  # after the fall


class WatcherMonitor:
    """Monitor that compares the last looks with earlier ones, as a sequential test.

    Each look compares the mean of the last 1, 2, 4, ... looks with two means: that of the 1, 2, 4,
    ... looks before those, and that of all before. A comparison is a one-sided Welch test against
    `critical_value(looks)`. So a run of `looks` looks raises a false alert with probability
    `ERROR`, over all its comparisons together.

    A verdict stands until the next look, so the guard sees it on each update in between. When the
    guard acts on a verdict, the looks of the fall are dropped. Later comparisons test only looks
    after the action. A monitor that is not `armed` raises no alerts.

    `looks`: planned looks of the run. State: `taken` (looks that are compared), `since` (how many
    of these preceded the guard's last action) and `verdict`.
    """

    def __init__(self, armed: bool, looks: int) -> None:
        assert looks > 0
        self.armed = armed
        self.looks = looks
        self.critical = critical_value(looks)
        self.taken: list[Look] = []
        self.since = 0
        self.verdict: Alert | None = None

    def observe(self, stats: StepStats) -> list[Alert]:
        """Return the current verdict, which each evaluation of the watcher updates."""
        values = stats.values
        if not self.armed:
            return []
        if "watcher" in values and "watcher_se" in values:
            prompts = values.get("prompts", math.inf)  # older runs do not record it
            self.taken.append(Look(values["watcher"], values["watcher_se"], prompts, values["score"]))
            self.verdict = self._verdict(stats)
        return [] if self.verdict is None else [replace(self.verdict, step=stats.step)]

    def _verdict(self, stats: StepStats) -> Alert | None:
        pairs = windows(len(self.taken), self.since)
        found = [fall(self.taken, *pair, self.critical) for pair in pairs]
        surest = min(
            (f for f in found if f is not None), key=lambda f: (f.after - f.limit, f.looks), default=None
        )
        if surest is None:
            return None
        text = (
            f"the watcher fell from {surest.before:.2f} to {surest.after:.2f} ({_looks(surest.looks)}) while the "
            f"proxy rose from {surest.proxy_before:.2f} to {surest.proxy_after:.2f}"
        )
        evidence = {
            "attempt": stats.attempt,
            "watcher_before": surest.before,
            "proxy_before": surest.proxy_before,
            "proxy": surest.proxy_after,
            "looks": surest.looks,
        }
        return Alert("watcher_gap", "warning", text, stats.step, surest.after, surest.limit, evidence)

    def acted(self) -> None:
        """Clear the verdict after the guard acts, and discard the evaluations that showed the fall.

        Later evaluations are compared with those before the fall.
        """
        if self.verdict is not None:
            del self.taken[-int(self.verdict.evidence["looks"]) :]
        self.verdict = None
        self.since = len(self.taken)

    def state_dict(self) -> dict[str, Any]:
        """Return the looks and the verdict, ready for JSON."""
        verdict = None if self.verdict is None else asdict(self.verdict)
        return {
            "taken": [list(asdict(look).values()) for look in self.taken],
            "since": self.since,
            "verdict": verdict,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned; the test restarts from checkpoints of older versions."""
        self.taken = [Look(*look) for look in state.get("taken", [])]
        self.since = state.get("since", 0)
        verdict = state.get("verdict")
        self.verdict = None if verdict is None else Alert(**verdict)


def windows(n: int, since: int) -> Iterator[tuple[int, int]]:
    """Yield the lengths (before, after) of the adjacent windows to compare after `n` looks.

    The later windows begin no earlier than look `since`.
    """
    for after in _doubling(n - since):
        earlier = n - after
        yield from ((before, after) for before in sorted({*_doubling(earlier), earlier} - {0}))


def _looks(n: int) -> str:
    return "one look" if n == 1 else f"mean of {n} looks"


def _doubling(most: int) -> Iterator[int]:
    size = 1
    while size <= most:
        yield size
        size *= 2


def critical_value(looks: int) -> float:
    """Return the z that a comparison must exceed in a run of `looks` evaluations.

    It is `CRITICAL`, interpolated linearly in the logarithm of `looks` and extrapolated with its
    last step.
    """
    place = max(math.log2(looks) - 1, 0.0)
    low = min(int(place), len(CRITICAL) - 2)
    return CRITICAL[low] + (place - low) * (CRITICAL[low + 1] - CRITICAL[low])


def fall(looks: Sequence[Look], before: int, after: int, critical: float) -> Fall | None:
    """Return the fall of the watcher between two groups of evaluations, or None.

    The mean of the last `after` evaluations, and the last one itself, must lie below the mean of the
    `before` evaluations preceding them. The proxy must have risen. A one-sided Welch test must be
    significant at the level at which a normal exceeds `critical`.
    """
    late, early = looks[-after:], looks[-after - before : -after]
    high, low = fmean(x.watcher for x in early), fmean(x.watcher for x in late)
    proxy = fmean(x.proxy for x in early), fmean(x.proxy for x in late)
    if max(low, late[-1].watcher) >= high or proxy[1] <= proxy[0]:
        return None
    parts = [((x.se / len(group)) ** 2, x.prompts - 1) for group in (early, late) for x in group]
    variance = sum(v for v, _ in parts)
    if variance == 0:  # each look has one score for all responses, so there is no noise
        return Fall(high, low, high, *proxy, after)
    from scipy.special import ndtr, stdtrit  # imported here so that reading a log does not load scipy

    freedom = variance**2 / (sum(v**2 / n for v, n in parts) or variance**2 / 1e6)
    limit = high + float(stdtrit(freedom, ndtr(-critical))) * math.sqrt(variance)
    return Fall(high, low, limit, *proxy, after) if low < limit else None
