"""Numbered rows of preference files of every supported type, and checks of their columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.data.lines import must_exist
from burnish.data.text import TIED, Unusable, json_rows, prompt_of, text_of
from burnish.errors import DataError
from burnish.records import Prompt

FILES = {".csv", ".tsv", ".txt", ".md", ".xlsx", ".arrow", ".zip", ".gz", ".yaml", ".yml", ".pkl"}


def numbered_rows(source: str | Path, split: str) -> Iterator[tuple[int, Any]]:
    """Yield the numbered rows of a file or data set; a line that is not JSON is yielded as text."""
    name = str(source)
    if name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        yield from json_rows(Path(source))
    elif name.endswith(".parquet"):
        yield from _parquet(Path(source))
    elif _looks_like_a_file(name):
        must_exist(Path(name))
        raise DataError(f"{source} has an unsupported file type; give .jsonl, .jsonl.gz or .parquet")
    else:
        yield from enumerate(_dataset(name, split), 1)


def _looks_like_a_file(name: str) -> bool:
    """Check whether a name is a file path, not a data set's `name` or `owner/name` (dots allowed)."""
    path = Path(name)
    return path.exists() or path.is_absolute() or len(path.parts) > 2 or path.suffix.lower() in FILES


def _parquet(path: Path) -> Iterator[tuple[int, Any]]:
    from pyarrow import ArrowException, parquet

    must_exist(path)
    try:
        table = parquet.ParquetFile(path)
        number = 0
        for batch in table.iter_batches():
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except ArrowException as error:
        raise DataError(f"{path} is not a readable Parquet file: {error}") from None


def _dataset(name: str, split: str) -> Iterable[Any]:
    import datasets

    try:
        rows: Iterable[Any] = datasets.load_dataset(name, split=split)
        return rows
    except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
        first = str(error).strip().splitlines()[0]
        raise DataError(
            f"{name!r} is neither a file (.jsonl, .jsonl.gz, .parquet) nor a data set that can be loaded "
            f"(split {split!r}): {first}"
        ) from error


def missing_column(column: str, row: Mapping[str, Any], source: str) -> None:
    """Raise DataError for a missing column: one error for the file, not one per row."""
    near = difflib.get_close_matches(column, list(row), 1, cutoff=0.6)
    hint = f"; rename column {near[0]!r} to {column!r}?" if near else ""
    raise DataError(f"{source} has no column {column!r}; its columns are {', '.join(row)}{hint}")


def tiers_of(
    row: Mapping[str, Any], *, tied: bool = False
) -> tuple[Prompt, list[str], list[list[int]], list[bool]]:
    """Return prompt, responses, tiers of their indices and `ended`; all may tie only if `tied`."""
    asked, responses, tiers = row.get("prompt"), row["responses"], row["ranking"]
    if not isinstance(responses, list):
        raise Unusable("responses are not a list")
    responses = [text_of(r, "a response") for r in responses]
    ended = row.get("ended") or [True] * len(responses)
    if not (isinstance(ended, list) and all(isinstance(e, bool) for e in ended)):
        raise Unusable("ended is neither true nor false")
    listed = isinstance(tiers, list) and all(isinstance(tier, list) for tier in tiers)
    ranks = [i for tier in tiers for i in tier] if listed else []
    whole = all(type(i) is int for i in ranks) and set(ranks) <= set(range(len(responses)))
    if not whole or len(ranks) != len(set(ranks)) or len(ended) != len(responses) or not ranks:
        raise Unusable("ranking does not fit the responses")
    if not tied and sum(bool(tier) for tier in tiers) < 2:
        raise Unusable(TIED)
    return prompt_of(asked), responses, tiers, ended
