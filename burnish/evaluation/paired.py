"""Comparisons of candidates beyond SFT: with one another, and by kind of prompt."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

from burnish.evaluation.winrate import win_rate
from burnish.stats import clustered_bootstrap

FEWEST = 8  # prompts of a kind with a win rate of its own
Verdicts = Sequence[float | None]


def differences(
    verdicts: Mapping[str, Verdicts], groups: Sequence[Hashable], *, seed: int, draws: int, confidence: float
) -> dict[tuple[str, str], dict[str, Any] | None]:
    """Return, for each two candidates, the difference of their win rates against SFT, with its interval.

    `verdicts` are preferences over SFT's response to the same rows, whose prompts are in `groups`; None
    is an abstention, and its row is left out. The difference is None for fewer than two prompts.
    """
    found: dict[tuple[str, str], dict[str, Any] | None] = {}
    for first, second in combinations(verdicts, 2):
        rows = [
            (a - b, group)
            for a, b, group in zip(verdicts[first], verdicts[second], groups, strict=True)
            if a is not None and b is not None
        ]
        found[first, second] = None
        if len({group for _, group in rows}) > 1:
            values, clusters = zip(*rows, strict=True)
            interval = clustered_bootstrap(values, clusters, seed=seed, draws=draws, confidence=confidence)
            found[first, second] = asdict(interval)
    return found


def by_kind(
    verdicts: Verdicts,
    groups: Sequence[str],
    kinds: Sequence[str | None],
    *,
    seed: int,
    draws: int,
    confidence: float,
) -> list[dict[str, Any]]:
    """Return a policy's win rate against SFT for each kind of prompt, the worst first.

    A kind with fewer than eight decided prompts has no row. `worse` is True if the whole interval lies
    below one half. The intervals hold together: with K kinds, each has confidence 1 - (1 -
    confidence) / K (Bonferroni).
    """
    held: dict[str, list[tuple[float, str]]] = {}
    for verdict, group, kind in zip(verdicts, groups, kinds, strict=True):
        if verdict is not None and kind is not None:
            held.setdefault(kind, []).append((verdict, group))
    held = {k: rows for k, rows in held.items() if len({group for _, group in rows}) >= FEWEST}
    found = []
    for kind, rows in held.items():
        outcomes, clusters = zip(*rows, strict=True)
        each = 1 - (1 - confidence) / len(held)
        interval = win_rate(outcomes, clusters, seed=seed, draws=draws, confidence=each)
        row = {"kind": kind, **asdict(interval), "worse": interval.ci_high < 0.5}
        found.append({"win_rate" if k == "value" else k: v for k, v in row.items()})
    return sorted(found, key=lambda row: (row["win_rate"], row["kind"]))
