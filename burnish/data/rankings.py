"""Rankings by annotators: responses in the order shown and their tiers, perhaps given twice."""

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
    """A ranking of `responses` into `tiers` of their indices, best first.

    `again` holds the tiers of a second reading of the same responses in another order, if there is one.
    """

    prompt: Prompt
    responses: Sequence[str]
    tiers: Tiers
    again: Tiers | None = None


def strict_pairs(tiers: Tiers) -> dict[tuple[int, int], bool]:
    """Map each pair of responses i < j in different tiers to whether i is the better one."""
    place = {i: level for level, tier in enumerate(tiers) for i in tier}
    names = sorted(place)
    return {
        (i, j): place[i] < place[j]
        for at, i in enumerate(names)
        for j in names[at + 1 :]
        if place[i] != place[j]
    }


def read_rankings(path: str | Path, ids: str | None = None) -> tuple[list[Ranking], dict[str, int]]:
    """Return the rankings in a JSON lines or Parquet file, and unusable row counts by reason.

    Columns: `prompt`, `responses` (as shown), `ranking`, optional `ranking_again` and `id`. If `ids` is
    given, `id` must match this pattern. Raises DataError if no ranking is usable.
    """
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
        raise DataError(f"{path} has no usable ranking ({reasons}); see `burnish label audit --help`")
    return found, bad


def _pattern(ids: str | None) -> re.Pattern[str] | None:
    try:
        return None if ids is None else re.compile(ids)
    except re.error as error:
        raise DataError(
            f"--ids {ids!r} is not a valid regular expression ({error}); give e.g. '^(mt|vicuna)-'"
        ) from None


def _ranking(row: Mapping[str, Any]) -> Ranking:
    prompt, responses, tiers, _ = tiers_of(row)
    again = row.get("ranking_again")
    if again is not None:
        again = tiers_of({**row, "ranking": again})[2]
    return Ranking(prompt, responses, tiers, again)
