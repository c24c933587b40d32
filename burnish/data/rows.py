"""Rows of preference files, whatever kind of file: numbered, and each usable or not for a reason."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from burnish.data.lines import must_exist, read_lines
from burnish.errors import DataError
from burnish.records import Message, Prompt

FILES = {".csv", ".tsv", ".txt", ".md", ".xlsx", ".arrow", ".zip", ".gz", ".yaml", ".yml", ".pkl"}


class Unusable(Exception):
    """One row that cannot be used; the message is the reason."""


def numbered_rows(source: str | Path, split: str) -> Iterator[tuple[int, Any]]:
    """Numbered rows; a line that is not JSON comes as its text."""
    name = str(source)
    if name.endswith((".jsonl", ".jsonl.gz", ".json", ".json.gz")):
        for number, line in read_lines(Path(source)):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except json.JSONDecodeError:
                    yield number, line
    elif name.endswith(".parquet"):
        yield from _parquet(Path(source))
    elif _looks_like_a_file(name):
        must_exist(Path(name))
        raise DataError(f"{source} is no known kind of file; give .jsonl, .jsonl.gz or .parquet")
    else:
        yield from enumerate(_dataset(name, split), 1)


def _looks_like_a_file(name: str) -> bool:
    """A data set's name is `name` or `owner/name`, dots and all; whatever it cannot be is a file."""
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
    """A column that is missing is one mistake for the whole file, not one a row."""
    near = difflib.get_close_matches(column, list(row), 1, cutoff=0.6)
    hint = f"; did you mean to name {near[0]!r} {column!r}?" if near else ""
    raise DataError(f"{source} has no column {column!r}; its columns are {', '.join(row)}{hint}")


def messages_of(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise Unusable("empty prompt")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or "role" not in turn:
            raise Unusable("not text")
        turns.append(Message(str(turn["role"]), turn["content"]))
    return turns


def tiers_of(row: Mapping[str, Any]) -> tuple[Prompt, list[str], list[list[int]], list[bool]]:
    """Prompt, responses, tiers of their indices and which of them ended."""
    asked, responses, tiers = row.get("prompt"), row["responses"], row["ranking"]
    if not (isinstance(responses, list) and all(isinstance(r, str) for r in responses)):
        raise Unusable("not text")
    ended = row.get("ended") or [True] * len(responses)
    if not (isinstance(ended, list) and all(isinstance(e, bool) for e in ended)):
        raise Unusable("ended is neither true nor false")
    listed = isinstance(tiers, list) and all(isinstance(tier, list) for tier in tiers)
    ranks = [i for tier in tiers for i in tier] if listed else []
    whole = all(type(i) is int for i in ranks) and set(ranks) <= set(range(len(responses)))
    if not whole or len(ranks) != len(set(ranks)) or len(ended) != len(responses) or not ranks:
        raise Unusable("ranking does not fit the responses")
    if len(tiers) < 2:
        raise Unusable("all tied")
    if isinstance(asked, str):
        return Prompt(asked), responses, tiers, ended
    return Prompt.from_messages(messages_of(asked)), responses, tiers, ended
