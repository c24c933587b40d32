"""A figure's median over the first updates and over the last, and how far the two may differ by chance. Medians, so
that a single outlying update is not a drift."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from burnish.monitor import thresholds

MAD = 1.4826  # times the median absolute deviation: a normal's standard deviation
MEDIAN = 1.2533  # times the standard error of a mean: that of a normal's median

Rows = Sequence[dict[str, float]]


@dataclass(frozen=True)
class Drift:
    """A figure's median over the first updates and over the last, and the standard error of the difference."""

    before: float
    now: float
    se: float

    @property
    def change(self) -> float:
        return self.now - self.before

    @property
    def sure(self) -> bool:
        """Whether the two differ by more than chance allows."""
        return abs(self.change) > thresholds.SURE * self.se


def drift(start: Rows, recent: Rows, window: int, name: str, *, share: bool = False) -> Drift | None:
    """How a figure moved from `start` to the last `window` of the `recent` updates; None where too few of either have
    it. The noise of an update comes from the differences between consecutive updates, over all that are given, so that
    a steady drift is not noise. A share of 0 does not vary, so the noise of a share is at least binomial, over the
    `prompts` of an update: several responses to one prompt may all be alike."""
    first = [row for row in start if name in row]
    last = [row for row in recent[-window:] if name in row]
    if len(first) < min(len(start), thresholds.FEWEST) or len(last) < thresholds.FEWEST:
        return None
    seen = [row for row in recent if name in row]
    steps = [abs(b[name] - a[name]) for part in (first, seen) for a, b in itertools.pairwise(part)]
    sd = MAD * median(steps) / math.sqrt(2)
    if share:
        prompts = [row["prompts"] for row in (*first, *last)]
        n = sum(prompts)
        p = (sum(row[name] * k for row, k in zip((*first, *last), prompts, strict=True)) + 1) / (n + 2)
        sd = max(sd, math.sqrt(max(p * (1 - p), 0.0) * len(prompts) / n))
    before, now = (median(row[name] for row in part) for part in (first, last))
    return Drift(before, now, MEDIAN * sd * math.sqrt(1 / len(first) + 1 / len(last)))
