"""Audit of given rankings: biases of their annotators, measured without asking again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from statistics import NormalDist
from typing import Any

import numpy as np

from burnish.data.rankings import Ranking, strict_pairs
from burnish.labels.audit import TURNS
from burnish.labels.hypothesis_tests import DRAWS, FEWEST, Array, Tested, share_against
from burnish.stats import clustered_proportion, wilson
from burnish.textstats import n_words

DRAWN = 2000  # rankings up to which places are drawn; beyond, the normal limit is used


def first_places(rankings: Sequence[Ranking], seed: int = 0) -> list[Tested]:
    """Test for every place shown how often its answer came first (shared among ties).

    The share is tested against 1 / k: if the place has no effect, the winner is equally likely at
    every place. There is one test per place. It uses rankings with the most common number of
    answers, all of them ranked, and one ranking per prompt. There are no tests with fewer than 12
    rankings.
    """
    whole = [r for r in rankings if sum(map(len, r.tiers)) == len(r.responses)]
    sizes = [len(r.responses) for r in whole]
    if not sizes:
        return []
    k = max(set(sizes), key=sizes.count)
    ours = list({r.prompt.group: r for r in reversed(whole) if len(r.responses) == k}.values())
    if len(ours) < FEWEST:
        return []
    credit = np.zeros((len(ours), k))
    for row, ranking in zip(credit, ours, strict=True):
        row[list(ranking.tiers[0])] = 1 / len(ranking.tiers[0])
    error = math.sqrt(float(((credit - 1 / k) ** 2).mean(axis=1).sum())) / len(ours)
    found = []
    for place, (value, p) in enumerate(
        zip(credit.mean(axis=0), _of_chance(credit, error, seed), strict=True)
    ):
        span = wilson(round(float(value) * len(ours)), len(ours))
        found.append(
            Tested(
                f"place {place + 1} of {k}",
                f"the answer shown {_ordinal(place + 1)} comes first",
                float(value),
                *(span.ci_low, span.ci_high),
                null=1 / k,
                n=len(ours),
                rows=len(ours),
                side="both",
                p=p,
                error=error,
                step=1 - 1 / k,
            )
        )
    return found


def _of_chance(credit: Array, error: float, seed: int) -> list[float]:
    """Return the p value of each place's mean credit, with places shuffled in every ranking."""
    n, k = credit.shape
    off = np.abs(credit.mean(axis=0) - 1 / k)
    if error == 0:  # all tied
        return [1.0] * k
    if n > DRAWN:
        return [2 * NormalDist().cdf(-float(o) / error) for o in off]
    rng, rows = np.random.default_rng(seed), np.arange(n)
    drawn = np.array([credit[rows, rng.integers(k, size=n)].mean() for _ in range(DRAWS)])
    return [(int((np.abs(drawn - 1 / k) >= o - 1e-12).sum()) + 1) / (DRAWS + 1) for o in off]


def _ordinal(n: int) -> str:
    return f"{n}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(n, 'th') }"


def repeated(rankings: Sequence[Ranking]) -> tuple[Tested | None, dict[str, Any] | None]:
    """Test how often a strict pair turned between two readings of the same ranking.

    Also return the number of items and pairs, the agreement, and how often the best of one reading
    was the worst of the other. Return None and None without second readings.
    """
    turned, groups, reversed_, items = [], list[str](), 0, 0
    for r in rankings:
        if r.again is None:
            continue
        items += 1
        one, other = strict_pairs(r.tiers), strict_pairs(r.again)
        shared = one.keys() & other.keys()
        turned += [float(one[pair] != other[pair]) for pair in shared]
        groups += [r.prompt.group] * len(shared)
        reversed_ += bool(set(r.tiers[0]) & set(r.again[-1]) or set(r.tiers[-1]) & set(r.again[0]))
    if not turned:
        return None, None
    agree = clustered_proportion([1 - t for t in turned], groups)
    figures = {"items": items, "pairs": len(turned), "agree": asdict(agree), "best_became_worst": reversed_}
    what = "strict pairs that are reversed in a second ranking, in another order"
    return share_against("stability", what, turned, groups, most=TURNS), figures


def longer_wins(rankings: Sequence[Ranking]) -> dict[str, Any] | None:
    """Return how often the longer answer (in words) of a strict pair is better; no fault by itself."""
    hits, groups = [], []
    for r in rankings:
        length = [n_words(text) for text in r.responses]
        for (i, j), first in strict_pairs(r.tiers).items():
            if length[i] != length[j]:
                hits.append(float(first == (length[i] > length[j])))
                groups.append(r.prompt.group)
    return asdict(clustered_proportion(hits, groups)) if hits else None
