"""Planning of label numbers before the labels are bought.

It has a learning curve through a few hundred labels, and the cost and worth of mixes of people and
judges. It also has the number of prompts that an evaluation needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.records import Interval
from burnish.stats import sample_size

Array = npt.NDArray[np.float64]
MOST = 10_000_000  # most labels that a plan goes to
EXPONENTS = (0.1, 1.5)  # range of a curve's exponent
WIN_RATES = (0.52, 0.55, 0.6, 0.65, 0.7)
SHARES = (0.0, 0.25, 0.5, 0.75, 0.9, 1.0)  # of labels by the judge
STARTS = (0.3, 0.5, 1.0)  # exponents from which a fit starts


@dataclass(frozen=True)
class Curve:
    """Learning curve a - b n^-c after n labels: the fit to the mean of all splits, and to each."""

    mean: tuple[float, float, float]
    splits: Sequence[tuple[float, float, float]]
    held_out: float  # held-out labels of a split divided by those it learned from

    def at(self, n: float, confidence: float = 0.95) -> Interval:
        """Return the expected accuracy after n labels.

        The interval is Student's, with the variance over splits corrected for the data they share
        (Nadeau and Bengio 2003). The correction is (1 / splits + held out / learned from) times the
        variance.
        """
        from scipy.stats import t

        value = _accuracy(self.mean, n)
        each = np.array([_accuracy(s, n) for s in self.splits])
        count = len(each)
        error = math.sqrt((1 / count + self.held_out) * float(each.var(ddof=1)))
        half = float(t.ppf(0.5 + confidence / 2, count - 1)) * error
        return Interval(value, max(0.0, value - half), min(1.0, value + half), count)

    def labels_for(self, accuracy: float) -> dict[str, float | None]:
        """Return the labels needed for an accuracy, with bounds; None for more than `MOST`."""
        return {
            "value": _least(lambda n: self.at(n).value, accuracy),
            "low": _least(lambda n: self.at(n).ci_high, accuracy),
            "high": _least(lambda n: self.at(n).ci_low, accuracy),
        }


def _accuracy(curve: tuple[float, float, float], n: float) -> float:
    a, b, c = curve
    return float(a - b * n**-c)


def _least(reached: Any, accuracy: float) -> float | None:
    """Return the least n, to 1 %, at which the accuracy is reached; None above `MOST`."""
    low, high = 1.0, float(MOST)
    if reached(high) < accuracy:
        return None
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if reached(middle) >= accuracy else (middle, high)
    return high


def fit_curve(sizes: Sequence[int], accuracies: Array, held_out: float) -> Curve:
    """Fit the curve to accuracies (R, S) of R splits after S numbers of labels.

    Raises ValueError for fewer than three numbers or splits.
    """
    x = np.asarray(sizes, dtype=np.float64)
    if len(x) < 3 or len(accuracies) < 3:
        raise ValueError(
            f"{len(x)} numbers of labels and {len(accuracies)} splits; a curve needs at least 3 of each"
        )
    return Curve(_fit(x, accuracies.mean(axis=0)), [_fit(x, row) for row in accuracies], held_out)


def _fit(x: Array, y: Array) -> tuple[float, float, float]:
    """Fit by least squares, weighted by the root of n: accuracies of few labels scatter more."""
    from scipy.optimize import least_squares

    weight = np.sqrt(x / x.max())

    def off(p: Array) -> Array:
        return np.asarray(weight * (p[0] - p[1] * x ** -p[2] - y))

    best = None
    top = min(0.999, max(0.501, float(y.max()) + 0.02))
    for c in STARTS:
        start = (top, min(9.0, max(1e-3, (top - float(y[0])) * float(x[0]) ** c)), c)
        found = least_squares(off, start, bounds=((0.5, 0.0, EXPONENTS[0]), (1.0, 10.0, EXPONENTS[1])))
        if best is None or found.cost < best.cost:
            best = found
    assert best is not None
    a, b, c = (float(v) for v in best.x)
    return a, b, c


def worth_of_judge(agrees: float, among_people: float | None) -> float:
    """Return how many labels of people one label of a judge is worth.

    Errors are taken as independent. A label with error e tells (1 - 2 e)^2. The judge's agreement A
    with a person gives 2 A - 1 = (1 - 2 e_judge) (1 - 2 e_people). The agreement P of two people
    gives 2 P - 1 = (1 - 2 e_people)^2. The worth is therefore ((2 A - 1) / (2 P - 1))^2. If P is
    unknown, people are taken to make no errors, which gives the least worth.
    """
    of_people = 1.0 if among_people is None else max(1e-3, 2 * among_people - 1)
    return (max(0.0, 2 * agrees - 1) / of_people) ** 2


def mixes(
    n: int, worth: float, price_judge: float, price_person: float, curve: Curve | None
) -> list[dict[str, Any]]:
    """Return cost, worth in people's labels and accuracy by the judge's share of n labels."""
    rows = []
    for share in SHARES:
        effective = n * (1 - share + share * worth)
        rows.append(
            {
                "judge": share,
                "cost": n * (share * price_judge + (1 - share) * price_person),
                "worth": effective,
                "accuracy": None if curve is None or effective < 1 else asdict(curve.at(effective)),
            }
        )
    return rows


def examinations() -> list[dict[str, Any]]:
    """Return the prompts that show a win rate with 95 % confidence in 80 of 100 evaluations."""
    return [{"win_rate": rate, "prompts": sample_size(rate)} for rate in WIN_RATES]
