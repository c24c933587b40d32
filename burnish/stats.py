"""Confidence intervals, calibration and correlations; each interval gives its number of units."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from burnish.records import Interval

Array = npt.NDArray[np.float64]
DECIDED = 30  # prompts won or lost; with fewer, a bootstrap has too few values to keep its level


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion (Wilson 1927); raise ValueError for n = 0."""
    if n < 1:
        raise ValueError(f"n={n} trials; an interval needs at least one")
    if not 0 <= successes <= n:
        raise ValueError(f"successes={successes} must lie between 0 and n={n}; count both on the same trials")
    return _wilson(successes / n, n, confidence)


def clustered_proportion(
    outcomes: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> Interval:
    """Return the mean of outcomes in [0, 1] with Wilson's interval on their effective number.

    n is the number of clusters. Outcomes of a cluster repeat part of the same information. The
    effective number is the one at which independent outcomes would have the variance that the
    cluster sums show. It is made smaller by (z / t)^2, for the number of clusters behind that
    variance (Korn and Graubard 1998). It is never more than the number of outcomes, and equals the
    number of clusters if all outcomes agree. With one outcome a cluster, the interval is Wilson's
    own. Raises ValueError for no outcomes and for one outside [0, 1].
    """
    x = _unit("outcomes", outcomes)
    n = _cluster_index(clusters, len(x))[1]
    p = float(x.mean())
    effective = float(n)
    if 1 < n < len(x) and np.ptp(x) > 0:
        from scipy.stats import t  # loads in half a second, which reading a report does not need

        shrunk = (_z(confidence) / float(t.ppf(0.5 + confidence / 2, n - 1))) ** 2
        effective = effective_number(outcomes, clusters) * shrunk
    return replace(_wilson(p, effective, confidence), n=n)


def effective_number(outcomes: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return how many independent outcomes in [0, 1] would have the variance of the cluster sums.

    It is never more than the number of outcomes. It is the number of clusters if all outcomes
    agree, or if there is one cluster.
    """
    x = _unit("outcomes", outcomes)
    index, n = _cluster_index(clusters, len(x))
    if n == 1 or n == len(x) or np.ptp(x) == 0:
        return float(n)
    p = float(x.mean())
    residuals = np.bincount(index, weights=x - p, minlength=n)
    variance = n / (n - 1) * float(residuals @ residuals) / len(x) ** 2
    return float(len(x) if variance == 0 else min(len(x), p * (1 - p) / variance))


def clustered_mean(
    values: Sequence[float], clusters: Sequence[Hashable], *, confidence: float = 0.95
) -> Interval:
    """Return the mean with Student's interval from the spread of the cluster sums.

    The variance is that of the linearised ratio; n is the number of clusters. Raises ValueError for
    fewer than two.
    """
    error, mean, n = clustered_error(values, clusters), float(np.mean(values)), len(set(clusters))
    from scipy.stats import t  # loads in half a second, which reading a report does not need

    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * error
    return Interval(mean, mean - half, mean + half, n)


def clustered_error(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Return the standard error of the mean from the spread of the cluster sums.

    The variance is that of the linearised ratio. Raises ValueError for fewer than two clusters.
    """
    x = _finite("values", values)
    index, n = _cluster_index(clusters, len(x))
    if n < 2:
        raise ValueError(f"{n} cluster; a clustered interval needs at least two")
    residuals = np.bincount(index, weights=x - x.mean(), minlength=n)
    return math.sqrt(n / (n - 1) * float(residuals @ residuals)) / len(x)


def earliest_near_best(looks: Sequence[Sequence[float]], clusters: Sequence[Hashable]) -> int:
    """Return the index of the first look that is within one standard error of the best.

    Every look has a value for each of the same items, whose `clusters` are given. The error is that of
    the mean difference to the look with the best mean, clustered. Raises ValueError without a look, and
    for fewer than two clusters.
    """
    if not looks:
        raise ValueError("0 looks; the best of them needs at least one")
    means = [float(_finite("values", values).mean()) for values in looks]
    best = looks[max(range(len(looks)), key=lambda i: means[i])]
    for i, values in enumerate(looks):
        behind = [b - v for b, v in zip(best, values, strict=True)]
        if sum(behind) / len(behind) <= clustered_error(behind, clusters):
            return i
    raise AssertionError("the best look is 0 behind itself")


def clustered_bootstrap(
    values: Sequence[float],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Return a percentile interval of the mean, resampling whole clusters.

    n is the number of clusters. Raises ValueError for fewer than two, because their spread is
    unknown. Values that agree in every cluster give an interval of width 0. For outcomes in [0, 1]
    use `paired_win_rate`, which does not.
    """
    x = _finite("values", values)
    index, n = _cluster_index(clusters, len(x))
    if n < 2:
        raise ValueError(f"{n} cluster; a clustered interval needs at least two")
    sums = np.bincount(index, weights=x, minlength=n)
    counts = np.bincount(index, minlength=n)
    rng = np.random.default_rng(seed)
    means = np.empty(draws)
    for draw in range(draws):  # one draw at a time: draws x clusters need not fit in memory
        picks = rng.integers(n, size=n)
        means[draw] = sums[picks].sum() / counts[picks].sum()
    low, high = np.quantile(means, _tails(confidence))
    return Interval(float(x.mean()), float(low), float(high), n)


def paired_win_rate(
    outcomes: Sequence[float],
    prompts: Sequence[Hashable],
    *,
    seed: int,
    draws: int = 2000,
    confidence: float = 0.95,
) -> Interval:
    """Return the win rate of one policy over another on the same prompts.

    Outcomes are in [0, 1], ties 0.5; n is the number of prompts. The interval is a bootstrap over
    prompts. If all prompts agree, a bootstrap would shrink to a point and report three wins of
    three as certain. Then Wilson's interval on the number of prompts is used. With fewer than
    `DECIDED` prompts that are won or lost, the interval is widened. It then covers the exact one of
    Clopper and Pearson (1934) for the share of these that are won. Its lower bound is above one
    half only if an exact sign test agrees. Raises ValueError for no outcomes and for one outside
    [0, 1].
    """
    x = _unit("outcomes", outcomes)
    index, n = _cluster_index(prompts, len(x))
    means = np.bincount(index, weights=x, minlength=n) / np.bincount(index, minlength=n)
    if np.ptp(means) == 0:
        found = _wilson(float(means[0]), n, confidence)
    else:
        found = clustered_bootstrap(outcomes, prompts, seed=seed, draws=draws, confidence=confidence)
    won, lost = int((means > 0.5).sum()), int((means < 0.5).sum())
    if not 0 < won + lost < DECIDED:
        return found
    low, high = (0.5 + (won + lost) / n * (p - 0.5) for p in _clopper_pearson(won, won + lost, confidence))
    return replace(found, ci_low=min(found.ci_low, low), ci_high=max(found.ci_high, high))


def _clopper_pearson(successes: int, n: int, confidence: float) -> tuple[float, float]:
    """Return the exact interval of a binomial share."""
    from scipy.special import betaincinv  # imported here so that reading a report does not load scipy

    low, high = _tails(confidence)
    k = successes
    return (
        float(betaincinv(k, n - k + 1, low)) if k else 0.0,
        float(betaincinv(k + 1, n - k, high)) if k < n else 1.0,
    )


def sample_size(win_rate: float, *, confidence: float = 0.95, power: float = 0.8) -> int:
    """Return the prompts needed to tell `win_rate` from 1/2: two-sided normal test, without ties."""
    if not 0.0 < win_rate < 1.0 or win_rate == 0.5:
        raise ValueError(f"win_rate={win_rate!r} must lie in (0, 1) and differ from 0.5")
    z, z_power = _z(confidence), NormalDist().inv_cdf(power)
    needed = (z * 0.5 + z_power * math.sqrt(win_rate * (1 - win_rate))) / (win_rate - 0.5)
    return math.ceil(needed**2)


def calibration(
    confidences: Sequence[float], correct: Sequence[bool], bins: int = 10
) -> tuple[float, list[dict[str, float]]]:
    """Return the expected calibration error and the table of non-empty bins.

    The bins have equal width on [0, 1]. Each has its mean `confidence`, its `accuracy` and its `n`.
    Raises ValueError for no confidences, for one outside [0, 1], and for lengths that differ.
    """
    conf = _unit("confidences", confidences)
    right = _unit("correct", correct)
    _same_length("confidences", conf, "correct", right)
    index = np.minimum((conf * bins).astype(int), bins - 1)
    table: list[dict[str, float]] = []
    ece = 0.0
    for b in np.unique(index):
        inside = index == b
        n = int(inside.sum())
        row = {"confidence": float(conf[inside].mean()), "accuracy": float(right[inside].mean()), "n": n}
        table.append(row)
        ece += n / len(conf) * abs(row["accuracy"] - row["confidence"])
    return ece, table


def best_of_n(scores: Sequence[float], values: Sequence[float], n: int) -> float:
    """Return the expected value of the answer with the highest of n scores, from N >= n answers.

    The result is exact over all ways to draw n of them (the unbiased estimator of Gao et al. 2022,
    and of Stiennon et al. 2020); ties are shared. Raises ValueError for n outside [1, N].
    """
    x, y = _finite("scores", scores), _finite("values", values)
    _same_length("scores", x, "values", y)
    total = len(x)
    if not 1 <= n <= total:
        raise ValueError(f"n={n} of {total} answers; n must lie between 1 and their number")
    # The answer of rank i from below is the best of a draw with probability C(i - 1, n - 1) / C(N, n).
    ranks = np.arange(1, total + 1)
    log_weights = np.full(total, -np.inf)
    able = ranks >= n
    log_weights[able] = [
        math.lgamma(r)
        - math.lgamma(n)
        - math.lgamma(r - n + 1)
        - (math.lgamma(total + 1) - math.lgamma(n + 1) - math.lgamma(total - n + 1))
        for r in ranks[able]
    ]
    weights = np.exp(log_weights)
    _, tied = np.unique(x, return_inverse=True)
    shared = np.zeros(tied.max() + 1)
    np.add.at(shared, np.sort(tied), weights)
    counts = np.bincount(tied)
    return float((shared / counts)[tied] @ y)


def roc_auc(scores: Sequence[float], positive: Sequence[bool]) -> float | None:
    """Return the probability that a positive has a higher score than a negative, ties half.

    This is the statistic of Mann and Whitney. Return None if there are no positives or no
    negatives.
    """
    x = _finite("scores", scores)
    right = np.asarray(positive, dtype=bool)
    _same_length("scores", x, "positive", right.astype(float))
    m, n = int(right.sum()), int((~right).sum())
    if not m or not n:
        return None
    from scipy.stats import rankdata

    return float((rankdata(x)[right].sum() - m * (m + 1) / 2) / (m * n))


def clustered_interval(
    figure: Callable[[npt.NDArray[np.intp]], float | None],
    clusters: Sequence[Hashable],
    *,
    seed: int,
    draws: int = 500,
    confidence: float = 0.95,
) -> Interval | None:
    """Return a percentile interval of any figure of the given rows, resampling whole clusters.

    `figure` takes row indices; n is the number of clusters. Return None for fewer than two
    clusters. Also return None if the figure is None on all rows together, or on more than a tenth
    of the draws.
    """
    index, n = _cluster_index(clusters, len(clusters))
    value = figure(np.arange(len(clusters)))
    if value is None or n < 2:
        return None
    members = [np.flatnonzero(index == c) for c in range(n)]
    rng = np.random.default_rng(seed)
    drawn = [figure(np.concatenate([members[c] for c in rng.integers(n, size=n)])) for _ in range(draws)]
    known = [v for v in drawn if v is not None]
    if len(known) < 0.9 * draws:
        return None
    low, high = np.quantile(known, _tails(confidence))
    return Interval(value, float(low), float(high), n)


def fitted_temperature(gaps: Array, limit: float = 20.0) -> float:
    """Return the temperature T > 0 with the highest likelihood for N pairs that were all won.

    A pair's likelihood is mean_k sigmoid(gap_k / T). `gaps` (N, K) are the raw scores of the winner
    minus those of the loser, for each of K models (Guo et al. 2017). T is between 1 / `limit` and
    `limit`.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_t: float) -> float:
        return -float(np.log(np.clip(sigmoid(gaps / math.exp(log_t)).mean(1), 1e-12, None)).mean())

    return math.exp(
        float(minimize_scalar(loss, bounds=(-math.log(limit), math.log(limit)), method="bounded").x)
    )


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)) without overflow for large x."""
    return 0.5 * (1.0 + np.tanh(x / 2))


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Return the Pearson correlation in [-1, 1]; None if either side does not vary."""
    a, b = _finite("x", x), _finite("y", y)
    _same_length("x", a, "y", b)
    # The standard deviation is no test: that of equal floats need not round to 0.
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def mean_and_se(values: Sequence[float]) -> tuple[float, float]:
    """Return mean and standard error (unbiased variance); raise ValueError for under two values."""
    x = _finite("values", values)
    if len(x) < 2:
        raise ValueError(f"{len(x)} value; a standard error needs at least two")
    return float(x.mean()), float(x.std(ddof=1) / math.sqrt(len(x)))


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Return mean and Student's interval of independent values; raise ValueError for under two."""
    mean, se = mean_and_se(values)
    n = len(values)
    from scipy.stats import t  # loads in half a second, which reading a report does not need

    half = float(t.ppf(0.5 + confidence / 2, n - 1)) * se
    return Interval(mean, mean - half, mean + half, n)


def length_controlled_win_rate(
    outcomes: Sequence[float],
    length_deltas: Sequence[float],
    *,
    clusters: Sequence[Hashable],
    seed: int,
    confidence: float = 0.95,
    draws: int = 1000,
) -> Interval:
    """Return the win rate that is expected at equal length (after Dubois et al. 2024).

    n is the number of clusters. A logistic regression of the outcome (in [0, 1], ties 0.5) on
    tanh(length difference / its sd), ours minus theirs, is read at difference 0. The interval
    resamples clusters. If outcomes do not vary or there is one cluster, length explains nothing:
    the result is Wilson's interval of the plain rate.
    """
    y, delta = _unit("outcomes", outcomes), _finite("length_deltas", length_deltas)
    _same_length("outcomes", y, "length_deltas", delta)
    index, n = _cluster_index(clusters, len(y))
    if np.ptp(y) == 0 or n == 1:
        return _wilson(float(y.mean()), n, confidence)
    # Not centred, because 0 must mean equal length.
    x = np.tanh(delta / delta.std()) if np.ptp(delta) > 0 else np.zeros_like(delta)
    rng = np.random.default_rng(seed)
    rates = np.empty(draws)
    for draw in range(draws):
        times_drawn = np.bincount(rng.integers(n, size=n), minlength=n)
        rates[draw] = _logistic_at_zero(x, y, times_drawn[index].astype(float))
    low, high = np.quantile(rates, _tails(confidence))
    return Interval(_logistic_at_zero(x, y, np.ones_like(y)), float(low), float(high), n)


def _logistic_at_zero(x: Array, y: Array, weight: Array, ridge: float = 0.1) -> float:
    """Return the fitted probability at x = 0 of a weighted logistic regression.

    The Newton steps are our own, because statsmodels' GLM warns or diverges on separable data. Half
    a win and half a loss at x = 0 keep the intercept finite, a ridge (a prior of variance 10) the
    slope. The weight of both vanishes as data grow.
    """
    design = np.column_stack([np.ones(len(x) + 2), np.append(x, [0.0, 0.0])])
    target, w = np.append(y, [1.0, 0.0]), np.append(weight, [0.5, 0.5])
    penalty = np.diag([0.0, ridge])
    beta = np.zeros(2)
    for _ in range(100):
        p = 0.5 * (1.0 + np.tanh(design @ beta / 2))
        gradient = design.T @ (w * (target - p)) - penalty @ beta
        hessian = design.T @ (design * (w * p * (1 - p))[:, None]) + penalty
        step = np.linalg.solve(hessian, gradient)
        beta += np.clip(step, -1.0, 1.0)
        if np.abs(step).max() < 1e-8:
            return float(0.5 * (1.0 + np.tanh(beta[0] / 2)))
    raise ArithmeticError(f"logistic regression of {len(x)} outcomes did not converge in 100 Newton steps")


def _wilson(p: float, n: float, confidence: float) -> Interval:
    z = _z(confidence)
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At p = 0 and p = 1 a bound equals p, but for rounding.
    return Interval(p, min(p, max(0.0, centre - half)), max(p, min(1.0, centre + half)), round(n))


def _z(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence={confidence!r} must lie between 0 and 1; use e.g. 0.95")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _tails(confidence: float) -> tuple[float, float]:
    _z(confidence)
    return (1 - confidence) / 2, (1 + confidence) / 2


def _cluster_index(clusters: Sequence[Hashable], n_values: int) -> tuple[npt.NDArray[np.intp], int]:
    """Return the cluster number of each value, by order of appearance, and the number of clusters."""
    if len(clusters) != n_values:
        raise ValueError(f"{n_values} values but {len(clusters)} clusters; give one cluster a value")
    names = {c: i for i, c in enumerate(dict.fromkeys(clusters))}
    return np.array([names[c] for c in clusters], dtype=np.intp), len(names)


def _finite(name: str, values: Sequence[float]) -> Array:
    """Return the values as floats; raise ValueError if there are none or one is not finite."""
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0:
        raise ValueError(f"{name} is empty; an estimate needs at least one value")
    if not np.isfinite(x).all():
        at = int(np.flatnonzero(~np.isfinite(x))[0])
        raise ValueError(f"{name}[{at}]={x[at]} is not finite; correct it, or leave it out and count it")
    return x


def _unit(name: str, values: Sequence[float]) -> Array:
    x = _finite(name, values)
    outside = np.flatnonzero((x < 0) | (x > 1))
    if outside.size:
        raise ValueError(f"{name}[{outside[0]}]={x[outside[0]]} must lie in [0, 1]; correct its source")
    return x


def _same_length(name: str, x: Array, other: str, y: Array) -> None:
    if len(x) != len(y):
        raise ValueError(f"{len(x)} {name} but {len(y)} {other}; give one for each")
