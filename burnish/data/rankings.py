"""Rankings as they were given: several answers to a prompt in the order they were shown in, and the tiers that one
reader put them into, perhaps twice."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.data.rows import missing_column, numbered_rows, tiers_of
from burnish.data.text import Unusable
from burnish.errors import DataError
from burnish.records import Prompt

Tiers = Sequence[Sequence[int]]


@dataclass(frozen=True)
class Ranking:
    """`tiers` of indices of `responses`, best first; `again` is a second reading of the same answers in another order,
    where there is one."""

    prompt: Prompt
    responses: Sequence[str]
    tiers: Tiers
    again: Tiers | None = None


def strict_pairs(tiers: Tiers) -> dict[tuple[int, int], bool]:
    """For every two answers (i < j) of different tiers whether the first is the better one."""
    place = {i: level for level, tier in enumerate(tiers) for i in tier}
    names = sorted(place)
    return {
        (i, j): place[i] < place[j]
        for at, i in enumerate(names)
        for j in names[at + 1 :]
        if place[i] != place[j]
    }


def read_rankings(path: str | Path, ids: str | None = None) -> tuple[list[Ranking], dict[str, int]]:
    """Rankings in a file (JSON lines or Parquet; `prompt`, `responses` in the order shown, `ranking`, perhaps
    `ranking_again` and `id`), of those whose `id` the pattern `ids` matches; and how many rows could not be used, by
    reason. Raises DataError where there is none."""
    found, bad = [], dict[str, int]()
    pattern = _pattern(ids)
    for _, row in numbered_rows(path, "train"):
        if not isinstance(row, Mapping):
            bad["no object"] = bad.get("no object", 0) + 1
            continue
        if pattern is not None and not pattern.search(str(row.get("id", ""))):
            continue
        for column in ("responses", "ranking"):
            if column not in row:
                missing_column(column, row, str(path))
        try:
            found.append(_ranking(row))
        except Unusable as reason:
            bad[str(reason)] = bad.get(str(reason), 0) + 1
    if not found:
        reasons = ", ".join(f"{reason}: {n}" for reason, n in bad.items()) or (
            "none matched" if ids else "no rows"
        )
        raise DataError(
            f"{path} has no ranking that can be used ({reasons}); see `burnish label audit --help`"
        )
    return found, bad


def _pattern(ids: str | None) -> re.Pattern[str] | None:
    try:
        return None if ids is None else re.compile(ids)
    except re.error as error:
        raise DataError(
            f"--ids {ids!r} is no regular expression ({error}); give e.g. '^(mt|vicuna)-'"
        ) from None


def _ranking(row: Mapping[str, Any]) -> Ranking:
    prompt, responses, tiers, _ = tiers_of(row)
    again = row.get("ranking_again")
    if again is not None:
        again = tiers_of({**row, "ranking": again})[2]
    return Ranking(prompt, responses, tiers, again)
