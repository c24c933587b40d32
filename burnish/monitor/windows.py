"""Where a figure began, where it is now, and how far apart the two could be by chance. Medians throughout, so that one
update that went wrong is no drift."""

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


def drift(start: Rows, recent: Rows, window: int, name: str, *, share_of: int | None = None) -> Drift | None:
    """How a figure moved from `start` to the last `window` of the `recent` updates, None where too few of either have
    it. The noise of an update comes from the differences between one update and the next, over all that are given, so
    that a steady drift is none; for a share of `share_of` responses an update it is at least the binomial one, since
    a share of 0 does not vary."""
    first = [row[name] for row in start if name in row]
    last = [row[name] for row in recent[-window:] if name in row]
    if len(first) < min(len(start), thresholds.FEWEST) or len(last) < thresholds.FEWEST:
        return None
    seen = [row[name] for row in recent if name in row]
    steps = [abs(b - a) for part in (first, seen) for a, b in itertools.pairwise(part)]
    sd = MAD * median(steps) / math.sqrt(2)
    before, now = median(first), median(last)
    if share_of is not None:
        n = share_of * (len(first) + len(last))
        p = (share_of * (sum(first) + sum(last)) + 1) / (n + 2)
        sd = max(sd, math.sqrt(max(p * (1 - p), 0.0) / share_of))
    return Drift(before, now, MEDIAN * sd * math.sqrt(1 / len(first) + 1 / len(last)))
