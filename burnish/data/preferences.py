"""Import and export of Hugging Face preference formats, with line and reason of rejected rows."""

from __future__ import annotations

import gzip
import io
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from burnish.data.formats import pairs_of_rows, reply
from burnish.data.rows import numbered_rows
from burnish.data.text import (
    Rejected,
    Unusable,
    json_rows,
    kind_of,
    messages_of,
    prompt_of,
    read_rows,
    reply_of,
)
from burnish.errors import DataError
from burnish.records import Message, Preference, Prompt
from burnish.runs.files import atomic_write


@dataclass
class ImportResult:
    """An import: `rows` read (for several responses their pairs), usable `pairs`, `rejected` by reason.

    `formats` counts the rows by the name of their format.
    """

    pairs: list[Preference]
    rows: int
    rejected: Counter[str] = field(default_factory=Counter)
    formats: Counter[str] = field(default_factory=Counter)
    subsets: list[str] = field(default_factory=list)  # one for each pair whose row names a subset


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    max_pairs: int | None = None,
    limit: float = 0.5,
    rejected_to: Path | None = None,
    misfit: Callable[[Preference], str | None] | None = None,
    decided_by: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> ImportResult:
    """Read preference pairs from .jsonl, .jsonl.gz or .parquet, or by `datasets` name.

    The format of a row is recognised by its columns (`burnish.data.formats`, docs/reference/data_formats.md).
    `decided_by` names what decides in formats with several scores. `columns` maps names that Burnish
    reads to those in the file. Where the data grade preferences, the `strength` of a pair is its share of
    the largest grade.

    `misfit` returns why a model cannot read a pair, or None. Rejected rows go to `rejected_to` as JSON
    lines {line, reason, excerpt}. Raises DataError if a column is missing, if the file is empty or not
    UTF-8, or if more than `limit` of the rows are unusable.
    """
    result = ImportResult([], 0)
    bad = Rejected()
    seen: set[str] = set()
    rows = numbered_rows(source, split)
    for number, row, make in pairs_of_rows(rows, str(source), decided_by, columns or {}, result.formats):
        result.rows += 1
        try:
            pair = make()
            key = json.dumps([pair.prompt.id, pair.chosen, pair.rejected])
            if key in seen:
                raise Unusable("duplicate")
            why = None if misfit is None else misfit(pair)
            if why is not None:
                raise Unusable(why)
            seen.add(key)
            result.pairs.append(pair)
            if isinstance(row, Mapping) and row.get("subset") is not None:
                result.subsets.append(str(row["subset"]))
        except Unusable as reason:
            bad.add(number, str(reason), row)
        if max_pairs is not None and len(result.pairs) >= max_pairs:
            break
    result.rejected = bad.counts
    most = max((p.strength for p in result.pairs if p.strength is not None), default=0.0)
    if most > 0:
        result.pairs = [
            p if p.strength is None else replace(p, strength=p.strength / most) for p in result.pairs
        ]
    if rejected_to is not None:
        lines = (json.dumps(note, ensure_ascii=False) + "\n" for note in bad.notes)
        atomic_write(rejected_to, "".join(lines))
    remedy = (
        "fix the rows, raise model.max_prompt_tokens or model.max_response_tokens if they are too long, or raise the "
        "limit"
    )
    bad.check(source, result.rows, limit, remedy)
    return result


def read_kinds_of_pairs(
    source: str | Path, split: str, column: str, decided_by: str | None, columns: Mapping[str, str]
) -> dict[str, str]:
    """Read the kind of each prompt of preference data, by prompt id, as `read_kinds` does."""
    found: dict[str, str] = {}
    for _, row, make in pairs_of_rows(numbered_rows(source, split), str(source), decided_by, columns):
        try:
            found.setdefault(make().prompt.id, kind_of(row, column))
        except Unusable:
            continue  # such rows are counted where pairs are read
    return found


def read_columns_of_pairs(
    source: str | Path,
    split: str,
    wanted: Collection[str],
    decided_by: str | None,
    columns: Mapping[str, str],
) -> dict[str, dict[str, Any]]:
    """Read the columns of the first row of each wanted prompt of preference data, by prompt id."""
    found: dict[str, dict[str, Any]] = {}
    for _, row, make in pairs_of_rows(numbered_rows(source, split), str(source), decided_by, columns):
        try:
            name = make().prompt.id
        except Unusable:
            continue
        if name in wanted:
            found.setdefault(name, {k: v for k, v in row.items() if k != "prompt"})
            if len(found) == len(wanted):
                break
    return found


def write_preferences(pairs: Iterable[Preference], path: Path, *, conversational: bool = False) -> None:
    """Write pairs as `prompt`/`chosen`/`rejected` to .jsonl, .jsonl.gz or .parquet.

    If any prompt is a dialogue, or `conversational` is true, all rows hold lists of messages. If any
    response was cut off, `chosen_ended` and `rejected_ended` say which. `datasets` can load the file.
    """
    pairs = list(pairs)
    whole = conversational or any(p.prompt.messages for p in pairs)
    cut_off = not all(p.chosen_ended and p.rejected_ended for p in pairs)
    rows = [
        _row(p, whole)
        | ({"chosen_ended": p.chosen_ended, "rejected_ended": p.rejected_ended} if cut_off else {})
        for p in pairs
    ]
    if path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        sink = io.BytesIO()
        parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
        atomic_write(path, sink.getvalue())
        return
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write(path, gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text)


def _row(pair: Preference, conversational: bool) -> dict[str, Any]:
    if not conversational:
        return {"prompt": pair.prompt.text, "chosen": pair.chosen, "rejected": pair.rejected}
    turns = pair.prompt.messages or (Message("user", pair.prompt.text),)
    return {
        "prompt": [{"role": m.role, "content": m.content} for m in turns],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
    }


def read_demonstrations(
    path: str | Path, *, limit: float = 0.5, rejected: Rejected | None = None
) -> list[tuple[Prompt, str]]:
    """Read demonstrations: `prompt` and `completion`, or `messages` that end with an assistant turn.

    Unusable rows of the JSON file go to `rejected`. Raises DataError if more than `limit` of the rows
    are unusable, or if any is and `rejected` is None.
    """

    def read(row: Mapping[str, Any]) -> tuple[Prompt, str]:
        if "messages" in row:
            turns = messages_of(row["messages"])
            if len(turns) < 2:
                raise Unusable("a dialogue of one turn")
            return Prompt.from_messages(turns[:-1]), reply(turns)
        if "prompt" not in row or "completion" not in row:
            raise Unusable("no `prompt` and `completion`, and no `messages`")
        text = reply_of(row["completion"], "completion")
        if not text.strip():
            raise Unusable("empty completion")
        return prompt_of(row["prompt"]), text

    bad = Rejected()
    found = [pair for _, pair in read_rows(json_rows(Path(path)), read, bad)]
    if bad.notes and rejected is None:
        first = bad.notes[0]
        raise DataError(
            f"{path}, line {first['line']}: not usable ({first['reason']}); it needs `prompt` and `completion`, "
            "or `messages` that end in an assistant's turn"
        )
    bad.check(path, len(found) + len(bad.notes), limit, "fix the rows")
    if rejected is not None:
        rejected.notes += bad.notes
    return found
