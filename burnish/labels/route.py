"""Which comparisons a judge may answer alone, and which people are to see: where the judge, its temperature fitted on
people's labels, is surer than a bound above which it agrees with people as often as is asked.

The bound is that of Jung et al. 2024 (Trust or Escalate): bounds are tested from the strictest on, each by the binomial
distribution, up to the first that fails, so that agreement is below the target in one of twenty calibrations at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.records import Interval
from burnish.stats import (
    calibration,
    clustered_proportion,
    effective_number,
    fitted_temperature,
    sigmoid,
    wilson,
)

Array = npt.NDArray[np.float64]
RISK = 0.05  # that agreement is below the target after all
STEPS = 16  # bounds that are tested
TORN = 1e-9  # surety below which no side is named
LIMIT = 1e-6  # how near to 0 or 1 a judge's probability is taken
HOTTEST = 1000.0  # temperature that is fitted: a judge by votes is as sure of all
FEWEST = 30  # comparisons with both labels from which anything is fitted


@dataclass(frozen=True)
class Calibrated:
    """What a judge and people said of the same N comparisons: `surety` how far the judge's log-odds are from 0,
    `agrees` whether people chose the same side, `groups` their prompts; `temperature` fits the first to the second."""

    surety: Array
    agrees: npt.NDArray[np.bool_]
    groups: Sequence[str]
    temperature: float

    def confidence(self, surety: Array) -> Array:
        """Probability that people say the same, in [0.5, 1)."""
        return sigmoid(surety / self.temperature)


def surety_of(preferences: Sequence[float]) -> Array:
    """|log-odds| of a judge's preferences; a judge by votes is about as sure of all it is not torn about."""
    p = np.clip(np.asarray(preferences, dtype=np.float64), LIMIT, 1 - LIMIT)
    return np.asarray(np.abs(np.log(p) - np.log1p(-p)))


def calibrated(judge: Sequence[float], people: Sequence[float], groups: Sequence[str]) -> Calibrated:
    """From both preferences for the first side; ties of people say nothing and are left out, a tie of the judge agrees
    with half of them. Raises ValueError with fewer than 30 that are left."""
    j, h = np.asarray(judge, dtype=np.float64), np.asarray(people, dtype=np.float64)
    kept = np.flatnonzero(h != 0.5)
    if len(kept) < FEWEST:
        raise ValueError(
            f"{len(kept)} comparisons have a judge's label and a person's; at least {FEWEST} are needed"
        )
    j, h = j[kept], h[kept]
    surety = surety_of(j.tolist())
    # A judge that is torn has to be taken one way: every other one as people said.
    torn = j == 0.5
    agrees = np.where(torn, np.arange(len(j)) % 2 == 0, (j > 0.5) == (h > 0.5))
    temperature = fitted_temperature(np.where(agrees, surety, -surety)[:, None], HOTTEST)
    return Calibrated(surety, agrees, [groups[int(i)] for i in kept], temperature)


@dataclass(frozen=True)
class Bound:
    """From which surety on the judge is trusted (None: never), and what was seen there in calibration."""

    surety: float | None
    agreement: dict[str, Any] | None
    kept: int
    needed: int  # comparisons above a bound without a single disagreement that would prove the target


def bound_for(target: float, known: Calibrated) -> Bound:
    """The least surety at which agreement is at least `target`, but for a risk of 5 %. Raises ValueError for a target
    outside (0.5, 1)."""
    if not 0.5 < target < 1:
        raise ValueError(f"target={target:g} must lie between 0.5 and 1: half is what a coin agrees")
    from scipy.stats import binom

    order = np.argsort(-known.surety, kind="stable")
    surety, agrees = known.surety[order], known.agrees[order].astype(np.float64)
    groups = [known.groups[i] for i in order]
    needed = math.ceil(math.log(RISK) / math.log(target))
    best = None
    for size in _sizes(needed, len(order)):
        # All that are as sure as the last of them belong to the same bound.
        size = int(np.searchsorted(-surety, -surety[size - 1], side="right"))
        hits = agrees[:size].tolist()
        trials = max(1, round(effective_number(hits, groups[:size])))
        right = math.floor(agrees[:size].mean() * trials + 1e-9)
        if binom.sf(right - 1, trials, target) > RISK:
            break
        best = size
    if best is None:
        return Bound(None, None, 0, needed)
    seen = clustered_proportion(agrees[:best].tolist(), groups[:best])
    # Where all are trusted, however unsure, a judge that is torn still names no side.
    least = TORN if best == len(order) else max(TORN, float(surety[best - 1]))
    return Bound(least, asdict(seen), best, needed)


def _sizes(first: int, last: int) -> list[int]:
    """How many of the surest each bound takes in, up to all. From a fifth of all, and twice the fewest that could prove
    anything: an early bound with few above it fails by one disagreement, and ends the testing (tried: from the fewest
    on, and several bounds at a share of the risk each, keep half as much)."""
    if first > last:
        return []
    steps = np.geomspace(min(last, max(2 * first, last // 5)), last, STEPS)
    return sorted({round(s) for s in steps})


@dataclass(frozen=True)
class Prices:
    """Dollars and seconds of one label: a judge's, and a person's; how many people see a comparison, and which share is
    checked."""

    judge: float
    person: float
    seconds: float
    people_each: int = 1
    check: float = 0.0  # share of what the judge keeps that people see all the same


def plan_of(target: float, known: Calibrated, pool: Array, unjudged: int, prices: Prices) -> dict[str, Any]:
    """What a target comes to: the bound, the share of comparisons that the judge keeps, and what the rest costs. `pool`
    are sureties of comparisons without a person's label, `unjudged` how many have no label of the judge's yet (as many
    of them as of the others are expected to be kept)."""
    bound = bound_for(target, known)
    sample = pool if len(pool) >= FEWEST else known.surety
    kept = 0 if bound.surety is None else int((sample >= bound.surety).sum())
    coverage = Interval(0.0, 0.0, 0.0, len(sample)) if bound.surety is None else wilson(kept, len(sample))
    waiting = len(pool) + unjudged
    shares = (coverage.value, coverage.ci_high, coverage.ci_low)
    to_people = [waiting * (1 - c * (1 - prices.check)) for c in shares]
    judge_cost = unjudged * prices.judge
    each = prices.person * prices.people_each
    return {
        "target": target,
        "confidence": None if bound.surety is None else float(known.confidence(np.array([bound.surety]))[0]),
        "surety": bound.surety,
        "agreement": bound.agreement,
        "needed": bound.needed,
        "coverage": asdict(coverage),
        "to_people": to_people[0],
        "cost": judge_cost + to_people[0] * each,
        "cost_low": judge_cost + to_people[1] * each,
        "cost_high": judge_cost + to_people[2] * each,
        "hours": to_people[0] * prices.people_each * prices.seconds / 3600,
    }


def reliability(known: Calibrated) -> dict[str, Any]:
    """How well the judge's probabilities meet what people say, as given and with the temperature, which every half of
    the comparisons gets from the other."""
    raw = sigmoid(known.surety)
    half = np.array([i % 2 for i in _numbers(known.groups)], dtype=bool)
    fitted = raw.copy()
    if 0 < half.sum() < len(half):
        for side in (half, ~half):
            gaps = np.where(known.agrees, known.surety, -known.surety)[~side]
            fitted[side] = sigmoid(known.surety[side] / fitted_temperature(gaps[:, None], HOTTEST))
    right = known.agrees.tolist()
    (before, bins), (after, bins_fitted) = (calibration(p.tolist(), right) for p in (raw, fitted))
    return {
        "temperature": known.temperature,
        "ece": before,
        "ece_fitted": after,
        "brier": float(np.square(raw - known.agrees).mean()),
        "brier_fitted": float(np.square(fitted - known.agrees).mean()),
        "bins": bins,
        "bins_fitted": bins_fitted,
    }


def _numbers(groups: Sequence[str]) -> list[int]:
    names = {g: i for i, g in enumerate(dict.fromkeys(groups))}
    return [names[g] for g in groups]
