"""Hugging Face preference formats in and out. Every row that does not make it is counted, with line and reason."""

from __future__ import annotations

import difflib
import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from burnish.checkpoints import atomic_write
from burnish.data.lines import must_exist, read_lines
from burnish.errors import DataError
from burnish.records import Message, Preference, Prompt

COLUMNS = ("chosen", "rejected")
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}
FILES = {".csv", ".tsv", ".txt", ".md", ".xlsx", ".arrow", ".zip", ".gz", ".yaml", ".yml", ".pkl"}
EXCERPT = 120


@dataclass
class ImportResult:
    """What was read: `rows` in all (of a ranking its pairs), the usable `pairs`, and how many were `rejected` for which
    reason."""

    pairs: list[Preference]
    rows: int
    rejected: Counter[str] = field(default_factory=Counter)
    subsets: list[str] = field(default_factory=list)  # of every pair; empty where no row names one


class _Rejected(Exception):
    """One row that cannot be used; the message is the reason."""


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    max_pairs: int | None = None,
    limit: float = 0.5,
    rejected_to: Path | None = None,
    fits: Callable[[Preference], bool] | None = None,
) -> ImportResult:
    """Read preference pairs from .jsonl, .jsonl.gz or .parquet, or by `datasets` name.

    Formats: `prompt`/`chosen`/`rejected` as text; the same as lists of messages; `chosen`/`rejected` alone, as
    message lists or as `\\n\\nHuman: ... \\n\\nAssistant: ...` dialogues that share all but the last reply. Where
    `chosen_ended` or `rejected_ended` is false, that answer was cut off. Rankings: `prompt`, `responses`, and `ranking`
    in tiers of their indices, best first, ties in one tier (`[[2], [0, 3], [1]]`); `ended` says of each whether it was
    cut off; a pair for every two answers of different tiers. Pairs that do not fit are too long.
    Rejected rows go to `rejected_to` as JSON lines {line, reason, excerpt}. Raises DataError when a column is
    missing, when the file is empty or not UTF-8, and when more than `limit` of the rows cannot be used.
    """
    result = ImportResult([], 0)
    notes: list[dict[str, Any]] = []
    seen: set[str] = set()
    for number, row in _rows(source, split):
        for read in _readers(row, str(source)):
            result.rows += 1
            try:
                pair = read()
                key = json.dumps([pair.prompt.id, pair.chosen, pair.rejected])
                if key in seen:
                    raise _Rejected("duplicate")
                if fits is not None and not fits(pair):
                    raise _Rejected("too long")
                seen.add(key)
                result.pairs.append(pair)
                if isinstance(row, Mapping) and row.get("subset") is not None:
                    result.subsets.append(str(row["subset"]))
            except _Rejected as reason:
                result.rejected[str(reason)] += 1
                excerpt = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
                notes.append({"line": number, "reason": str(reason), "excerpt": excerpt[:EXCERPT]})
        if max_pairs is not None and len(result.pairs) >= max_pairs:
            break
    if rejected_to is not None:
        lines = (json.dumps(note, ensure_ascii=False) + "\n" for note in notes)
        atomic_write(rejected_to, "".join(lines))
    _check_share(source, result, notes, limit)
    return result


def _check_share(
    source: str | Path, result: ImportResult, notes: Sequence[Mapping[str, Any]], limit: float
) -> None:
    bad = result.rejected.total()
    if result.rows and bad / result.rows <= limit and result.pairs:
        return
    if not result.rows:
        raise DataError(f"{source} holds no rows; give one preference pair a line")
    common = []
    for reason, count in result.rejected.most_common(3):
        example = next(n["line"] for n in notes if n["reason"] == reason)
        common.append(f"{reason}: {count} (e.g. line {example})")
    raise DataError(
        f"{bad} of {result.rows} rows of {source} cannot be used, more than data.rejected_rows_limit={limit:g} "
        f"allows ({'; '.join(common)}); mend the rows, raise model.max_prompt_tokens or "
        "model.max_response_tokens if they are too long, or raise the limit"
    )


def _rows(source: str | Path, split: str) -> Iterator[tuple[int, Any]]:
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


def _readers(row: Any, source: str) -> list[Callable[[], Preference]]:
    """What makes a pair of a row, or raises why there is none; several for a ranking."""
    if not (isinstance(row, dict) and "ranking" in row and "chosen" not in row):
        return [lambda: _ended(_pair(row, source), row)]
    if "responses" not in row:
        _missing("responses", row, source)
    try:
        prompt, responses, tiers, ended = _ranking(row)
    except _Rejected as reason:
        told = str(reason)

        def fail() -> Preference:
            raise _Rejected(told)

        return [fail]

    def pair(better: int, worse: int) -> Preference:
        found = _check(prompt, responses[better], responses[worse])
        return replace(found, chosen_ended=ended[better], rejected_ended=ended[worse])

    return [
        partial(pair, better, worse)
        for i, tier in enumerate(tiers)
        for better in tier
        for lower in tiers[i + 1 :]
        for worse in lower
    ]


def _ranking(row: Mapping[str, Any]) -> tuple[Prompt, list[str], list[list[int]], list[bool]]:
    """Prompt, responses, tiers of their indices and which of them ended."""
    asked, responses, tiers = row.get("prompt"), row["responses"], row["ranking"]
    if not (isinstance(responses, list) and all(isinstance(r, str) for r in responses)):
        raise _Rejected("not text")
    ended = row.get("ended") or [True] * len(responses)
    if not (isinstance(ended, list) and all(isinstance(e, bool) for e in ended)):
        raise _Rejected("ended is neither true nor false")
    listed = isinstance(tiers, list) and all(isinstance(tier, list) for tier in tiers)
    ranks = [i for tier in tiers for i in tier] if listed else []
    whole = all(isinstance(i, int) for i in ranks) and set(ranks) <= set(range(len(responses)))
    if len(ranks) != len(set(ranks)) or not whole or len(ended) != len(responses) or not ranks:
        raise _Rejected("ranking does not fit the responses")
    if len(tiers) < 2:
        raise _Rejected("all tied")
    if isinstance(asked, str):
        return Prompt(asked), responses, tiers, ended
    return Prompt.from_messages(_messages(asked)), responses, tiers, ended


def _pair(row: Any, source: str) -> Preference:
    if isinstance(row, str):
        raise _Rejected("malformed JSON")
    if not isinstance(row, dict):
        raise _Rejected("not an object")
    for column in COLUMNS:
        if column not in row:
            _missing(column, row, source)
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _check(*_dialogue(chosen, rejected))
        if isinstance(prompt, str):
            return _check(Prompt(prompt), chosen, rejected)
        if isinstance(prompt, list):
            return _check(Prompt.from_messages(_messages(prompt)), chosen, rejected)
        raise _Rejected("not text")
    if isinstance(chosen, list) and isinstance(rejected, list):
        a, b = _messages(chosen), _messages(rejected)
        if prompt is None:
            return _check(*_shared(a, b))
        before = [Message("user", prompt)] if isinstance(prompt, str) else _messages(prompt)
        return _check(_continued(before, a, b), _reply(a), _reply(b))
    raise _Rejected("not text")


def _missing(column: str, row: Mapping[str, Any], source: str) -> None:
    """A column that is missing is one mistake for the whole file, not one a row."""
    near = difflib.get_close_matches(column, list(row), 1, cutoff=0.6)
    hint = f"; did you mean to name {near[0]!r} {column!r}?" if near else ""
    raise DataError(f"{source} has no column {column!r}; its columns are {', '.join(row)}{hint}")


def _messages(value: Any) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise _Rejected("empty prompt")
    turns = []
    for turn in value:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), str) or "role" not in turn:
            raise _Rejected("not text")
        turns.append(Message(str(turn["role"]), turn["content"]))
    return turns


def _reply(turns: Sequence[Message]) -> str:
    if turns[-1].role != "assistant":
        raise _Rejected("does not end in an answer")
    return turns[-1].content


def _continued(before: list[Message], chosen: list[Message], rejected: list[Message]) -> Prompt:
    """The prompt, and the turns that both sides have before their last reply: they may begin with the prompt itself
    (after a system turn, perhaps), or go on from it."""
    shared = chosen[:-1]
    if shared != rejected[:-1]:
        raise _Rejected("no shared prompt")
    held = any(shared[i : i + len(before)] == before for i in range(len(shared)))
    return Prompt.from_messages(shared if held else [*before, *shared])


def _ended(pair: Preference, row: Mapping[str, Any]) -> Preference:
    flags = {name: row[name] for name in ("chosen_ended", "rejected_ended") if row.get(name) is not None}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise _Rejected("ended is neither true nor false")
    return replace(pair, **flags)


def _shared(chosen: list[Message], rejected: list[Message]) -> tuple[Prompt, str, str]:
    if chosen[:-1] != rejected[:-1] or len(chosen) < 2:
        raise _Rejected("no shared prompt")
    return Prompt.from_messages(chosen[:-1]), _reply(chosen), _reply(rejected)


def _dialogue(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Two whole dialogues in the manner of Anthropic's HH data."""
    return _shared(_turns(chosen), _turns(rejected))


def _turns(text: str) -> list[Message]:
    parts = TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if parts[0].strip() or len(parts) < 5:
        raise _Rejected("no shared prompt")
    return [Message(ROLES[r], t.strip()) for r, t in zip(parts[1::2], parts[2::2], strict=True)]


def _check(prompt: Prompt, chosen: str, rejected: str) -> Preference:
    if not prompt.text.strip():
        raise _Rejected("empty prompt")
    if not (chosen.strip() and rejected.strip()):
        raise _Rejected("empty answer")
    if chosen.strip() == rejected.strip():
        raise _Rejected("identical sides")
    return Preference(prompt, chosen, rejected)


def write_preferences(pairs: Iterable[Preference], path: Path, *, conversational: bool = False) -> None:
    """Write pairs as `prompt`/`chosen`/`rejected` to .jsonl, .jsonl.gz or .parquet; prompts that are dialogues,
    or all when `conversational`, come as lists of messages. When an answer was cut off, `chosen_ended` and
    `rejected_ended` say which. Readable with `datasets.load_dataset`."""
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


def read_demonstrations(path: str | Path) -> list[tuple[Prompt, str]]:
    """Demonstrations from JSONL: `prompt` and `completion`, or `messages` that end in an assistant's turn.
    Raises DataError naming the line that cannot be used."""
    found: list[tuple[Prompt, str]] = []
    for number, line in read_lines(Path(path)):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            if "messages" in row:
                turns = _messages(row["messages"])
                found.append((Prompt.from_messages(turns[:-1]), _reply(turns)))
            else:
                found.append((Prompt(row["prompt"]), row["completion"]))
        except (json.JSONDecodeError, KeyError, TypeError, _Rejected) as error:
            raise DataError(
                f"{path}, line {number}: no demonstration ({error}); it needs `prompt` and `completion`, or "
                "`messages` that end in an assistant's turn"
            ) from None
    return found
