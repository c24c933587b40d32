"""Hypothesis tests with intervals, corrected p values and smallest detectable effects."""

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
EXACT = 12  # clusters up to which all sign patterns are tried
DRAWN = 500  # clusters up to which sign patterns are drawn; beyond, their sum is normal
DRAWS = 9999
POWER = 0.8
FEWEST = 12  # fewest clusters for a test


@dataclass(frozen=True)
class Tested:
    """Statistic tested against its value under the null hypothesis.

    It comes from `rows` outcomes in `n` clusters. `p` is the p value, `error` the standard error
    under the null hypothesis, and `step` the largest distance of one outcome from the null value.
    """

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
    """Test result corrected for the number of tests.

    `q` is p corrected for their number (Benjamini and Hochberg 1995). `seen` says whether q is at
    most the false-discovery level. `smallest` is the effect that 80 of 100 samples like this one
    would show if it were the only effect.
    """

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
    """Return the p value of a mean this far from 0 (Fisher's randomisation test).

    Under the null hypothesis, every cluster's sum could equally have the opposite sign. The test
    uses all sign patterns for up to 12 clusters, 9,999 drawn ones for up to 500, and their normal
    limit for more.
    """
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
        extra = 1  # the observed signs are one of the patterns
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
    """Test a mean against `null` by flipping the signs of whole clusters.

    Under the null hypothesis, outcomes are equally likely on either side of `null`. Outcomes in
    [0, 1] with a non-zero `null` get Wilson's interval on their effective number. Others get Student's
    interval from the spread of their cluster sums. Return None with fewer than 12 clusters.
    """
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
    """Test a share against `most` by the binomial distribution of its effective number of trials.

    `most` is the largest share that passes, or the expected share in a two-sided test. Outcomes of
    a cluster repeat each other to some degree, which the effective number accounts for. Return None
    with fewer than 12 clusters.
    """
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
    """Correct the tests that could be made for their number.

    Of the findings that are `seen`, a share of at most `level` is expected to be chance.
    """
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
    """Return the distance from the null that is significant at `level` in 80 of 100 samples.

    It is (z_level + z_power) standard errors. The least value is the effect of the fewest outcomes
    that have a p of `level` if all point one way.
    """
    sides = 2 if test.side == "both" else 1
    z = NormalDist().inv_cdf(1 - level / sides) + NormalDist().inv_cdf(POWER)
    outcomes = math.ceil(math.log2(sides / level))
    return max(z * test.error, test.step * min(1.0, outcomes / test.n))
