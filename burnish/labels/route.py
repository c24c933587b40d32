"""Routing of comparisons to a judge alone or to people.

The judge's temperature is fitted on people's labels. It answers alone where it is surer than a
bound above which it agrees with people at the target rate.

The bound follows Jung et al. 2024 (Trust or Escalate). Bounds are tested from the strictest on,
each by the binomial distribution, up to the first that fails. Agreement is then below the target in
at most one of twenty calibrations.
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
RISK = 0.05  # of agreement below the target
STEPS = 16  # number of bounds that are tested
TORN = 1e-9  # surety below which the judge prefers no side
LIMIT = 1e-6  # least distance of a judge's probability from 0 and 1
HOTTEST = 1000.0  # highest fitted temperature: a judge that votes is equally sure of everything
FEWEST = 30  # fewest comparisons with both labels for a fit


@dataclass(frozen=True)
class Calibrated:
    """Verdicts of a judge and of people on the same N comparisons.

    `surety` is the distance of the judge's log-odds from 0, `agrees` whether people chose the same
    side, and `groups` are the prompts. `temperature` fits `surety` to `agrees`.
    """

    surety: Array
    agrees: npt.NDArray[np.bool_]
    groups: Sequence[str]
    temperature: float

    def confidence(self, surety: Array) -> Array:
        """Return the probability that people choose the same side, in [0.5, 1)."""
        return sigmoid(surety / self.temperature)


def surety_of(preferences: Sequence[float]) -> Array:
    """Return |log-odds| of a judge's preferences.

    A judge that votes is about equally sure of every comparison on which it has no tie.
    """
    p = np.clip(np.asarray(preferences, dtype=np.float64), LIMIT, 1 - LIMIT)
    return np.asarray(np.abs(np.log(p) - np.log1p(-p)))


def calibrated(judge: Sequence[float], people: Sequence[float], groups: Sequence[str]) -> Calibrated:
    """Calibrate a judge on people's preferences for the first side.

    People's ties are left out. A tie of the judge counts as agreement in about half of the cases.
    Raises ValueError if fewer than 30 comparisons are left.
    """
    j, h = np.asarray(judge, dtype=np.float64), np.asarray(people, dtype=np.float64)
    kept = np.flatnonzero(h != 0.5)
    if len(kept) < FEWEST:
        raise ValueError(
            f"{len(kept)} comparisons have a judge's label and a person's; at least {FEWEST} are needed"
        )
    j, h = j[kept], h[kept]
    surety = surety_of(j.tolist())
    # A judge's tie needs a side: every other tie counts as agreement.
    torn = j == 0.5
    agrees = np.where(torn, np.cumsum(torn) % 2 == 1, (j > 0.5) == (h > 0.5))
    temperature = fitted_temperature(np.where(agrees, surety, -surety)[:, None], HOTTEST)
    return Calibrated(surety, agrees, [groups[int(i)] for i in kept], temperature)


@dataclass(frozen=True)
class Bound:
    """Surety from which the judge is trusted (None: never), and its agreement in calibration."""

    surety: float | None
    agreement: dict[str, Any] | None
    kept: int
    needed: int  # comparisons above a bound that prove the target if none disagrees


def bound_for(target: float, known: Calibrated) -> Bound:
    """Return the least surety at which agreement is at least `target`, with a risk of 5 %.

    Raises ValueError for a target outside (0.5, 1).
    """
    if not 0.5 < target < 1:
        raise ValueError(f"target={target:g} must lie between 0.5 and 1: a coin agrees half of the time")
    from scipy.stats import binom

    order = np.argsort(-known.surety, kind="stable")
    surety, agrees = known.surety[order], known.agrees[order].astype(np.float64)
    groups = [known.groups[i] for i in order]
    needed = math.ceil(math.log(RISK) / math.log(target))
    best = None
    for size in _sizes(needed, len(order)):
        # Comparisons with the same surety belong to the same bound.
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
    # Even where all comparisons are trusted, a judge's tie names no side.
    least = TORN if best == len(order) else max(TORN, float(surety[best - 1]))
    return Bound(least, asdict(seen), best, needed)


def _sizes(first: int, last: int) -> list[int]:
    """Return how many of the surest comparisons each bound includes, up to all.

    The first bound has a fifth of all, and at least twice the fewest that could prove anything. An
    early bound with few comparisons fails by one disagreement and ends the testing. Starting from
    the fewest, or testing several bounds at a share of the risk each, was tried and keeps half as
    much.
    """
    if first > last:
        return []
    steps = np.geomspace(min(last, max(2 * first, last // 5)), last, STEPS)
    return sorted({round(s) for s in steps})


@dataclass(frozen=True)
class Prices:
    """Dollars and seconds of one label by a judge and by a person.

    `people_each` people see a comparison. `check` is the share of the judge's comparisons that they
    also see.
    """

    judge: float
    person: float
    seconds: float
    people_each: int = 1
    check: float = 0.0  # share of the judge's comparisons that people also see


def plan_of(target: float, known: Calibrated, pool: Array, unjudged: int, prices: Prices) -> dict[str, Any]:
    """Return the bound for a target, the share that the judge keeps, and the cost of the rest.

    `pool` has the sureties of comparisons without a person's label. `unjudged` counts those without
    a judge's label; the judge is expected to keep the same share of them.
    """
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
    """Measure how well the judge's probabilities match people's choices.

    They are measured as given and with a temperature. Each half of the prompts gets the temperature
    fitted on the other half.
    """
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
