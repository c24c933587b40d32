"""Findings: what was tested, with its interval, what chance says of it, and the smallest effect that the sample could
have shown."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Literal

import numpy as np
import numpy.typing as npt

from burnish.stats import clustered_mean, clustered_proportion, effective_number

Array = npt.NDArray[np.float64]
Side = Literal["both", "more"]
EXACT = 12  # clusters up to which every way of signs is tried
DRAWN = 500  # up to which ways are drawn; beyond, their sum is normal
DRAWS = 9999
POWER = 0.8
FEWEST = 12  # clusters below which nothing is tested


@dataclass(frozen=True)
class Tested:
    """One figure held against the value it has where there is nothing to find: `rows` outcomes in `n` clusters, `p` of
    chance, `error` its standard error where there is nothing, `step` how far one outcome can be from that value."""

    name: str
    what: str
    value: float
    ci_low: float
    ci_high: float
    null: float
    n: int
    rows: int
    side: Side
    p: float
    error: float
    step: float


@dataclass(frozen=True)
class Finding:
    """A tested figure among others: `q` is its p corrected for their number (Benjamini and Hochberg 1995), `seen`
    whether q is at most the false-discovery level; `smallest` the effect that would be seen in 80 of 100 samples like
    this one, were it the only one there is."""

    name: str
    what: str
    value: float
    ci_low: float
    ci_high: float
    null: float
    n: int
    rows: int
    p: float
    q: float
    seen: bool
    smallest: float


def flip_test(values: Array, clusters: Sequence[Hashable], *, side: Side, seed: int) -> float:
    """p of a mean this far from 0, where every cluster's sum might as well have had the other sign (Fisher's
    randomisation test): all ways for few clusters, 9,999 drawn ones for more, their normal limit for many."""
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.bincount([index[c] for c in clusters], weights=values, minlength=len(index))
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    seen = float(sums.sum())
    if len(sums) <= EXACT:
        drawn = np.array(list(product((-1.0, 1.0), repeat=len(sums)))) @ sums
        extra = 0
    elif len(sums) <= DRAWN:
        signs = np.random.default_rng(seed).integers(0, 2, size=(DRAWS, len(sums)), dtype=np.int8) * 2 - 1
        drawn = signs.astype(np.float64) @ sums
        extra = 1  # what was seen is one of the ways
    else:
        z = seen / math.sqrt(float(sums @ sums))
        tail = NormalDist().cdf(-z if side == "more" else -abs(z))
        return tail if side == "more" else 2 * tail
    slack = 1e-9 * float(np.abs(sums).sum())
    hits = (drawn >= seen - slack) if side == "more" else (np.abs(drawn) >= abs(seen) - slack)
    return (int(hits.sum()) + extra) / (len(drawn) + extra)


def mean_against(
    name: str,
    what: str,
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    null: float = 0.0,
    side: Side = "both",
    seed: int = 0,
    confidence: float = 0.95,
) -> Tested | None:
    """A mean held against `null`, around which outcomes are as likely to lie on one side as on the other where there is
    nothing to find, whole clusters at a time; None with fewer than 12 clusters. Outcomes in [0, 1] get
    Wilson's interval on their effective number, others Student's by the spread of their cluster sums."""
    n = len(set(clusters))
    if n < FEWEST:
        return None
    x = np.asarray(values, dtype=np.float64)
    off = x - null
    if null and x.min() >= 0 and x.max() <= 1:
        found = clustered_proportion(x.tolist(), clusters, confidence=confidence)
    else:
        found = clustered_mean(x.tolist(), clusters, confidence=confidence)
    index = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    sums = np.bincount([index[c] for c in clusters], weights=off)
    step = float(np.abs(off).max()) or 0.5
    return Tested(
        name=name,
        what=what,
        value=found.value,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        null=null,
        n=n,
        rows=len(x),
        side=side,
        p=flip_test(off, clusters, side=side, seed=seed),
        error=math.sqrt(float(sums @ sums)) / len(x),
        step=step,
    )


def share_against(
    name: str,
    what: str,
    hits: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    most: float,
    side: Side = "more",
    confidence: float = 0.95,
) -> Tested | None:
    """A share held against the `most` that is let pass (or, on both sides, against what is expected), by the binomial
    distribution of its effective number of trials: outcomes of a cluster tell the same again, more or less. None with
    fewer than 12 clusters."""
    n = len(set(clusters))
    if n < FEWEST:
        return None
    from scipy.stats import binomtest

    found = clustered_proportion(hits, clusters, confidence=confidence)
    trials = max(1, round(effective_number(hits, clusters)))
    way = "greater" if side == "more" else "two-sided"
    p = float(binomtest(round(found.value * trials), trials, most, alternative=way).pvalue)
    error = math.sqrt(most * (1 - most) / trials)
    return Tested(
        name, what, found.value, found.ci_low, found.ci_high, most, n, len(hits), side, p, error, 1.0 - most
    )


def findings(all_tested: Sequence[Tested | None], level: float = 0.05) -> list[Finding]:
    """The tests that could be made, corrected for their number: of those that are `seen`, a share of `level` at most is
    expected to be chance."""
    made = [t for t in all_tested if t is not None]
    if not made:
        return []
    from scipy.stats import false_discovery_control

    corrected = false_discovery_control([t.p for t in made])
    return [
        Finding(
            t.name,
            t.what,
            t.value,
            t.ci_low,
            t.ci_high,
            t.null,
            t.n,
            t.rows,
            t.p,
            float(q),
            bool(q <= level),
            smallest_effect(t, level / len(made)),
        )
        for t, q in zip(made, corrected, strict=True)
    ]


def smallest_effect(test: Tested, level: float) -> float:
    """How far from its null a mean must be to come to significance at `level` in 80 of 100 samples: (z_level + z_power)
    standard errors, and no less than so many outcomes that all point one way as have a p of `level`."""
    sides = 2 if test.side == "both" else 1
    z = NormalDist().inv_cdf(1 - level / sides) + NormalDist().inv_cdf(POWER)
    outcomes = math.ceil(math.log2(sides / level))
    return max(z * test.error, test.step * min(1.0, outcomes / test.n))
