"""Judge score against KL: fits of Gao, Schulman and Hilton (2022) and their peaks, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from burnish.stats import best_of_n, mean_interval

Array = npt.NDArray[np.float64]
Rows = npt.NDArray[np.intp]
Form = Literal["best_of_n", "rl"]
DRAWS = 400
FEWEST = 4  # distances above 0 that a fit of two coefficients needs
SURE = 0.9  # share of resamples that must have a peak for an interval to be reported
BEYOND = 1.5  # times the largest observed distance; a peak beyond this is not reported


def best_of_kl(n: int) -> float:
    """Return the KL of best of n from the sampled policy, in nats: log n - (n - 1) / n.

    This is an upper bound (Beirami et al. 2024).
    """
    return math.log(n) - (n - 1) / n


def doublings(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`."""
    return [1 << k for k in range(most.bit_length())]


def pool_curves(proxy: Array, worth: Array, ns: Sequence[int]) -> Array:
    """Return the (M, len(ns)) gains in `worth` of best of n by proxy score, exact over all draws.

    A gain is the expected worth of the best of n of a prompt's N answers less the mean of all N.
    """
    return np.array(
        [
            [best_of_n(p.tolist(), w.tolist(), n) - w.mean() for n in ns]
            for p, w in zip(proxy, worth, strict=True)
        ]
    )


@dataclass(frozen=True)
class Fit:
    """A fit of R(d) = d (alpha - beta d) for best of n, d (alpha - beta log d) for RL.

    d is the square root of KL; `kl` and `value` are those of the peak, None if none is within reach.
    """

    form: Form
    alpha: float
    beta: float
    kl: float | None
    value: float | None
    r2: float
    alpha_interval: tuple[float, float] | None = None
    beta_interval: tuple[float, float] | None = None
    kl_interval: tuple[float, float] | None = None
    peaks: float = 0.0  # share of resamples that have a peak within reach


def predicted(form: Form, alpha: float, beta: float, d: Array) -> Array:
    """Return R(d), which is 0 at d = 0."""
    inner = d if form == "best_of_n" else np.log(np.maximum(d, 1e-12))
    found: Array = d * (alpha - beta * inner)
    return found


def coefficients(form: Form, d: Array, values: Array) -> tuple[float, float]:
    """Return alpha and beta by least squares, since R is linear in both."""
    inner = d if form == "best_of_n" else np.log(np.maximum(d, 1e-12))
    design = np.column_stack([d, -d * inner])
    (alpha, beta), *_ = np.linalg.lstsq(design, values, rcond=None)
    return float(alpha), float(beta)


def peak(form: Form, alpha: float, beta: float, reach: float) -> float | None:
    """Return the distance of the peak: alpha / 2 beta, or exp(alpha / beta - 1) for RL.

    Returns None if there is no peak up to `BEYOND` times `reach`: the observed curve has not bent.
    """
    if beta <= 0:
        return None
    power = alpha / beta - 1
    at = alpha / (2 * beta) if form == "best_of_n" else math.exp(min(power, 50.0))
    return at if 0 < at <= BEYOND * reach else None


def fitted(form: Form, draw: Callable[[Rows], tuple[Array, Array]], units: int, seed: int) -> Fit:
    """Fit distances and values of `draw(all units)`, with percentile intervals over resampled units.

    Raises ValueError for fewer than four distances above 0.
    """
    d, values = draw(np.arange(units))
    if (d > 0).sum() < FEWEST:
        raise ValueError(f"{int((d > 0).sum())} distances above 0; a fit needs at least {FEWEST}")
    reach = float(d.max())
    alpha, beta = coefficients(form, d, values)
    at = peak(form, alpha, beta, reach)
    rest = float(((values - predicted(form, alpha, beta, d)) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    rng = np.random.default_rng(seed)
    drawn = [coefficients(form, *draw(rng.integers(units, size=units))) for _ in range(DRAWS)]
    peaks = [p for a, b in drawn if (p := peak(form, a, b, reach)) is not None]
    return Fit(
        form,
        alpha,
        beta,
        None if at is None else at**2,
        None if at is None else float(predicted(form, alpha, beta, np.array([at]))[0]),
        1 - rest / total if total > 0 else 0.0,
        _span([a for a, _ in drawn]),
        _span([b for _, b in drawn]),
        _span([p**2 for p in peaks]) if len(peaks) > SURE * DRAWS else None,
        len(peaks) / DRAWS,
    )


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def of_pool(proxy: Array, judges: dict[str, Array], seed: int, confidence: float = 0.95) -> dict[str, Any]:
    """Compute and fit best-of-n curves from one pool of N answers to each of M prompts.

    Gains are given for n = 1, 2, 4, ... in standard deviations over the pool, with intervals by prompt.
    """
    ns = doublings(proxy.shape[1])
    kl = [best_of_kl(n) for n in ns]
    d = np.sqrt(kl)
    found: dict[str, Any] = {"n": ns, "kl": kl, "prompts": len(proxy), "curves": {}, "fits": {}}
    for name, worth in {"proxy": proxy, **judges}.items():
        curves = pool_curves(proxy, worth / worth.std(), ns)
        found["curves"][name] = [asdict(mean_interval(c.tolist(), confidence)) for c in curves.T]
        if name != "proxy":
            fit = fitted("best_of_n", partial(_pooled, d, curves), len(curves), seed)
            found["fits"][name] = asdict(fit)
    return found


def _pooled(d: Array, curves: Array, rows: Rows) -> tuple[Array, Array]:
    return d, curves[rows].mean(0)


def of_run(kl: Sequence[float], gains: Sequence[float], seed: int) -> dict[str, Any] | None:
    """Fit a judge's mean gain against KL over the updates of a PPO run, or return None for too few.

    The intervals resample updates, which are not independent runs.
    """
    d = np.sqrt(np.maximum(np.asarray(kl, dtype=float), 0.0))
    values = np.asarray(gains, dtype=float)
    if (d > 0).sum() < FEWEST:
        return None
    return asdict(fitted("rl", lambda rows: (d[rows], values[rows]), len(d), seed))
