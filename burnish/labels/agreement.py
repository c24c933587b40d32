"""Annotator agreement: Krippendorff's alpha and tests of every annotator.

The tests cover agreement with the other annotators, gold questions, preference for a position and
for length, and drift.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from burnish.labels.consensus import Array, Indices, Votes, Weighed
from burnish.labels.hypothesis_tests import Finding, Tested, findings, mean_against, share_against
from burnish.records import Interval
from burnish.stats import wilson

DRAWS = 1000
LEVEL = 0.05
LEAST_GOLD = 0.7  # share of gold questions that must be right
ONE_SIDED = 0.9  # share of answers on one side above which the position decides
FEWEST_TO_CALL = 30  # labels shared with others before an annotator can be flagged a spammer
TENTHS = 10
KINDS = ("agreement", "position", "length", "drift", "gold")  # tests of every annotator


@dataclass(frozen=True)
class Questions:
    """Prompt number and longer side of every comparison in `Votes.ids`.

    `longer` is the side with more words: 1 the first, 0 the second, -1 neither.
    """

    group: Indices
    longer: npt.NDArray[np.int8]


def alpha(counts: Array, sums: Array, squares: Array) -> float | None:
    """Compute Krippendorff's alpha for interval-scale values, 1 - D_o / D_e (Krippendorff 2011).

    The arguments are every question's number of values, their sum and their sum of squares. The
    squared distance of a tie from either side is a quarter of that between the sides. Questions
    with one value are ignored. Return None if all values are alike or none can be paired.
    """
    paired = counts > 1
    m, s, q = counts[paired], sums[paired], squares[paired]
    n = float(m.sum())
    if n < 2:
        return None
    observed = float((2 * (m * q - s * s) / (m - 1)).sum()) / n
    expected = 2 * (n * float(q.sum()) - float(s.sum()) ** 2) / (n * (n - 1))
    return None if expected <= 1e-12 else 1 - observed / expected


def alpha_interval(
    votes: Votes, group: Indices, *, seed: int = 0, confidence: float = 0.95
) -> Interval | None:
    """Compute alpha with a percentile interval from resampled prompts (1,000 draws).

    The interval's n counts prompts with paired values. Return None if alpha is undefined or n is
    below two.
    """
    n = len(votes.ids)
    m = np.bincount(votes.comparison, minlength=n).astype(np.float64)
    s: Array = np.bincount(votes.comparison, votes.value, n).astype(np.float64)
    q: Array = np.bincount(votes.comparison, votes.value**2, n).astype(np.float64)
    value = alpha(m, s, q)
    kept = m > 1
    names, index = np.unique(group[kept], return_inverse=True)
    if value is None or len(names) < 2:
        return None
    # Alpha is made of four sums, each of which is a sum over prompts.
    m, s, q = m[kept], s[kept], q[kept]
    parts = np.stack(
        [
            np.bincount(index, weights=w, minlength=len(names))
            for w in (m, s, q, 2 * (m * q - s * s) / (m - 1))
        ]
    )
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        n_, s_, q_, w_ = parts @ np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        expected = 2 * (n_ * q_ - s_ * s_) / (n_ * (n_ - 1))
        if expected > 1e-12:
            drawn.append(1 - w_ / n_ / expected)
    tails = ((1 - confidence) / 2, (1 + confidence) / 2)
    low, high = np.quantile(drawn, tails)
    return Interval(value, float(low), float(high), len(names))


@dataclass(frozen=True)
class Hits:
    """Agreement of every vote with the other votes on the same comparison.

    `hit` is 1 or 0, or nan if the vote or the others tie, or there are no others. `others` is the
    mean of the other votes.
    """

    hit: Array
    others: Array


def hits_of(votes: Votes) -> Hits:
    """Compare every vote with the mean of the other votes on the same comparison."""
    n = len(votes.ids)
    count = np.bincount(votes.comparison, minlength=n)[votes.comparison]
    total = np.bincount(votes.comparison, weights=votes.value, minlength=n)[votes.comparison]
    others = np.full(len(votes), np.nan)
    more = count > 1
    others[more] = (total[more] - votes.value[more]) / (count[more] - 1)
    others[np.abs(others - 0.5) < 1e-9] = 0.5
    hit = np.where((votes.value > 0.5) == (others > 0.5), 1.0, 0.0)
    hit[~more | (votes.value == 0.5) | (others == 0.5)] = np.nan
    return Hits(hit, others)


def annotators(
    votes: Votes,
    questions: Questions,
    weighed: Weighed,
    checks: Mapping[str, Sequence[bool]],
    spent: Mapping[str, tuple[float, float]],
    seed: int = 0,
) -> tuple[list[dict[str, Any]], list[Finding]]:
    """Return a row for every annotator, most labels first, and the findings of all tests.

    `checks` says which gold questions each annotator got right, `spent` the seconds and dollars of
    their labels.
    """
    hits = hits_of(votes)
    known = ~np.isnan(hits.hit)
    crowd = float(hits.hit[known].mean()) if known.any() else None
    rows = []
    tests: dict[str, list[Tested | None]] = {kind: [] for kind in KINDS}
    for number, name in enumerate(votes.names):
        mine = np.flatnonzero(votes.annotator == number)
        row, made = _annotator(name, mine, votes, questions, hits, crowd, seed)
        for kind, test in made.items():
            tests[kind].append(test)
        right = list(checks.get(name, ()))
        tests["gold"].append(
            share_against(
                f"gold of {name}",
                f"gets more than {1 - LEAST_GOLD:.0%} of gold questions wrong",
                [1.0 - r for r in right],
                range(len(right)),
                most=1 - LEAST_GOLD,
            )
        )
        weight = None if weighed.accuracy is None else float(weighed.accuracy[number])
        row |= {
            "gold": asdict(wilson(sum(right), len(right))) if right else None,
            "weighed": None if weight is None or np.isnan(weight) else weight,
            "seconds": spent[name][0],
            "cost": spent[name][1],
        }
        rows.append(row)
    # Correct every kind of test separately: most annotators differ in agreement, and these many findings
    # must not make the others look more likely.
    found = [f for made in tests.values() for f in findings(made, LEVEL)]
    seen = {f.name for f in found if f.seen}
    for row in rows:
        row["flags"] = _flags(row, seen)
    return sorted(rows, key=lambda r: -r["labels"]), found


def _annotator(
    name: str,
    mine: Indices | Any,
    votes: Votes,
    questions: Questions,
    hits: Hits,
    crowd: float | None,
    seed: int,
) -> tuple[dict[str, Any], dict[str, Tested | None]]:
    asked = votes.comparison[mine]
    group, value, hit = questions.group[asked], votes.value[mine], hits.hit[mine]
    firm = value != 0.5
    with_others = ~np.isnan(hit)
    agrees = drift = None
    if crowd is not None:
        ours, groups = hit[with_others], group[with_others].tolist()
        what = "agrees with the others less or more often than the average annotator"
        agrees = share_against(f"agreement of {name}", what, ours.tolist(), groups, most=crowd, side="both")
        late = np.arange(len(ours)) >= len(ours) // 2
        if 0 < late.sum() < len(ours):
            share = np.where(late, len(ours) / late.sum(), -len(ours) / (~late).sum())
            what = "agreement with the others, second half of the labels against the first"
            drift = mean_against(
                f"drift of {name}", what, ((ours - ours.mean()) * share).tolist(), groups, seed=seed
            )
    shown = votes.swapped[mine]
    placed = firm & (shown >= 0)
    chose_first = ((value > 0.5) == (shown == 0)).astype(np.float64)
    position = mean_against(
        f"position of {name}",
        "chooses what was shown first",
        chose_first[placed].tolist(),
        group[placed].tolist(),
        null=0.5,
        seed=seed,
    )
    longer, others = questions.longer[asked], hits.others[mine]
    measured = firm & (longer >= 0) & ~np.isnan(others) & (others != 0.5)
    lean = ((value > 0.5) == (longer == 1)).astype(np.float64) - ((others > 0.5) == (longer == 1))
    length = mean_against(
        f"length of {name}",
        "prefers the longer answer more often than the others do",
        lean[measured].tolist(),
        group[measured].tolist(),
        seed=seed,
    )
    row = {
        "annotator": name,
        "labels": len(mine),
        "ties": float((~firm).mean()) if len(mine) else 0.0,
        "with_others": int(with_others.sum()),
        **{
            k: _span(t)
            for k, t in (("agreement", agrees), ("position", position), ("length", length), ("drift", drift))
        },
    }
    return row, {"agreement": agrees, "position": position, "length": length, "drift": drift}


def _span(test: Tested | None) -> dict[str, Any] | None:
    return None if test is None else asdict(Interval(test.value, test.ci_low, test.ci_high, test.n))


def _flags(row: Mapping[str, Any], seen: set[str]) -> list[str]:
    """Return an annotator's flags: spammer, fails gold, position, length, drift.

    A spammer agrees with the others significantly less than average and no better than a coin, or
    almost always takes one position.
    """
    name, agrees, position = row["annotator"], row["agreement"], row["position"]
    flags = []
    coin = (
        agrees is not None
        and row["with_others"] >= FEWEST_TO_CALL
        and agrees["ci_low"] <= 0.5
        and f"agreement of {name}" in seen
    )
    one_sided = (
        position is not None
        and f"position of {name}" in seen
        and not 1 - ONE_SIDED < position["value"] < ONE_SIDED
    )
    if coin or one_sided:
        flags.append("spammer")
    if f"gold of {name}" in seen:
        flags.append("fails gold")
    flags += [what for what in ("position", "length", "drift") if f"{what} of {name}" in seen]
    return flags


def pairwise_agreement(votes: Votes) -> float | None:
    """Return how often two annotators of a comparison agree, ties excluded; None without pairs."""
    if not len(votes):
        return None
    firm, n = votes.value != 0.5, len(votes.ids)
    first = np.bincount(votes.comparison[firm & (votes.value > 0.5)], minlength=n)
    second = np.bincount(votes.comparison[firm & (votes.value < 0.5)], minlength=n)
    alike = float((first * (first - 1) + second * (second - 1)).sum())
    pairs = float(((first + second) * (first + second - 1)).sum())
    return alike / pairs if pairs else None


def over_time(votes: Votes, hits: Hits) -> list[dict[str, float]]:
    """Return agreement with the others by tenths of the labels, in the order they were given."""
    known = np.flatnonzero(~np.isnan(hits.hit))
    parts = [p for p in np.array_split(known, TENTHS) if len(p)]
    return [{"tenth": k + 1, **asdict(wilson(int(hits.hit[p].sum()), len(p)))} for k, p in enumerate(parts)]


def flip_rate(votes: Votes, consensus: Array) -> float | None:
    """Return the expected share of labels for the wrong side, taking the consensus as the truth.

    Ties are excluded. So are comparisons with one label, because that label is its own consensus.
    Return None if no labels remain.
    """
    firm = (votes.value != 0.5) & (np.bincount(votes.comparison)[votes.comparison] > 1)
    if not firm.any():
        return None
    p = consensus[votes.comparison[firm]]
    return float(np.where(votes.value[firm] > 0.5, 1 - p, p).mean())
