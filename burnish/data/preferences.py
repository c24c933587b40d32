"""Import and export of Hugging Face preference formats, with line and reason of rejected rows."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from burnish.data.rows import missing_column, numbered_rows, tiers_of
from burnish.data.text import (
    Rejected,
    Unusable,
    content_of,
    json_rows,
    kind_of,
    messages_of,
    prompt_of,
    read_rows,
    reply_of,
    text_of,
)
from burnish.errors import DataError
from burnish.records import Message, Preference, Prompt
from burnish.runs.files import atomic_write

COLUMNS = ("chosen", "rejected")
TURN = re.compile(r"\n\n(Human|Assistant):")
ROLES = {"Human": "user", "Assistant": "assistant"}


@dataclass
class ImportResult:
    """An import: `rows` read (for a ranking its pairs), usable `pairs`, and `rejected` by reason."""

    pairs: list[Preference]
    rows: int
    rejected: Counter[str] = field(default_factory=Counter)
    subsets: list[str] = field(default_factory=list)  # one for each pair whose row names a subset


def read_preferences(
    source: str | Path,
    *,
    split: str = "train",
    max_pairs: int | None = None,
    limit: float = 0.5,
    rejected_to: Path | None = None,
    misfit: Callable[[Preference], str | None] | None = None,
) -> ImportResult:
    """Read preference pairs from .jsonl, .jsonl.gz or .parquet, or by `datasets` name.

    Formats: `prompt`/`chosen`/`rejected` as text or as lists of messages; or `chosen`/`rejected` alone,
    as message lists or as Anthropic HH dialogues (`Human: ... Assistant: ...`) that share all but the
    last reply. If `chosen_ended` or `rejected_ended` is false, that response was cut off. Rankings:
    `prompt`, `responses`, and `ranking` in tiers of their indices, best first, ties in one tier
    (`[[2], [0, 3], [1]]`); `ended` says for each response whether it ended. A ranking gives a pair for
    every two responses of different tiers.

    `misfit` returns why a model cannot read a pair, or None. Rejected rows go to `rejected_to` as JSON
    lines {line, reason, excerpt}. Raises DataError if a column is missing, if the file is empty or not
    UTF-8, or if more than `limit` of the rows are unusable.
    """
    result = ImportResult([], 0)
    bad = Rejected()
    seen: set[str] = set()
    for number, row in numbered_rows(source, split):
        for read in _readers(row, str(source)):
            result.rows += 1
            try:
                pair = read()
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
        if max_pairs is not None and len(result.pairs) >= max_pairs:
            break
    result.rejected = bad.counts
    if rejected_to is not None:
        lines = (json.dumps(note, ensure_ascii=False) + "\n" for note in bad.notes)
        atomic_write(rejected_to, "".join(lines))
    remedy = (
        "fix the rows, raise model.max_prompt_tokens or model.max_response_tokens if they are too long, or raise the "
        "limit"
    )
    bad.check(source, result.rows, limit, remedy)
    return result


def read_kinds_of_pairs(source: str | Path, split: str, column: str) -> dict[str, str]:
    """Read the kind of each prompt of preference pairs or rankings, by prompt id, as `read_kinds` does."""
    found: dict[str, str] = {}
    for _, row in numbered_rows(source, split):
        for read in _readers(row, str(source)):
            try:
                found.setdefault(read().prompt.id, kind_of(row, column))
            except Unusable:
                break  # such rows are counted where pairs are read
    return found


def _readers(row: Any, source: str) -> list[Callable[[], Preference]]:
    """Return functions that each make a pair of the row or raise Unusable; several for a ranking."""
    if not (isinstance(row, dict) and "ranking" in row and "chosen" not in row):
        return [lambda: _ended(_pair(row, source), row)]
    if "responses" not in row:
        missing_column("responses", row, source)
    try:
        prompt, responses, tiers, ended = tiers_of(row)
    except Unusable as reason:
        why = str(reason)

        def fail() -> Preference:
            raise Unusable(why)

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


def _pair(row: Any, source: str) -> Preference:
    if isinstance(row, str):
        raise Unusable("malformed JSON")
    if not isinstance(row, dict):
        raise Unusable("not an object")
    for column in COLUMNS:
        if column not in row:
            missing_column(column, row, source)
    chosen, rejected, prompt = row["chosen"], row["rejected"], row.get("prompt")
    if isinstance(chosen, str) and isinstance(rejected, str):
        if prompt is None:
            return _check(*_dialogue(chosen, rejected))
        return _check(prompt_of(prompt), chosen, rejected)
    if isinstance(chosen, list) and isinstance(rejected, list):
        if prompt is not None and _parts(chosen) and _parts(rejected):
            return _check(prompt_of(prompt), content_of(chosen, "chosen"), content_of(rejected, "rejected"))
        a, b = messages_of(chosen), messages_of(rejected)
        if prompt is None:
            return _check(*_shared(a, b))
        before = [Message("user", text_of(prompt))] if isinstance(prompt, str) else messages_of(prompt)
        return _check(_continued(before, a, b), _reply(a), _reply(b))
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if not isinstance(side, str | list):
            text_of(side, name)
    raise Unusable("one side is text and the other is not")


def _parts(value: list[Any]) -> bool:
    """Check whether a list holds content parts rather than turns of a dialogue."""
    return bool(value) and all(isinstance(v, dict) and "type" in v and "role" not in v for v in value)


def _reply(turns: Sequence[Message]) -> str:
    if turns[-1].role != "assistant":
        raise Unusable("does not end in an answer")
    return turns[-1].content


def _continued(before: list[Message], chosen: list[Message], rejected: list[Message]) -> Prompt:
    """Return the prompt with the turns that both sides share before their last reply.

    The shared turns may repeat the prompt (perhaps after a system turn) or continue it.
    """
    shared = chosen[:-1]
    if not _same(shared, rejected[:-1]):
        raise Unusable("no shared prompt")
    held = any(_same(shared[i : i + len(before)], before) for i in range(len(shared)))
    return Prompt.from_messages(shared if held else [*before, *shared])


def _same(a: Sequence[Message], b: Sequence[Message]) -> bool:
    """Check whether two dialogues are equal apart from white space at the edges of turns."""
    return [(m.role, m.content.strip()) for m in a] == [(m.role, m.content.strip()) for m in b]


def _ended(pair: Preference, row: Mapping[str, Any]) -> Preference:
    flags = {name: row[name] for name in ("chosen_ended", "rejected_ended") if row.get(name) is not None}
    if not all(isinstance(flag, bool) for flag in flags.values()):
        raise Unusable("ended is neither true nor false")
    return replace(pair, **flags)


def _shared(chosen: list[Message], rejected: list[Message]) -> tuple[Prompt, str, str]:
    if not _same(chosen[:-1], rejected[:-1]) or len(chosen) < 2:
        raise Unusable("no shared prompt")
    return Prompt.from_messages(chosen[:-1]), _reply(chosen), _reply(rejected)


def _dialogue(chosen: str, rejected: str) -> tuple[Prompt, str, str]:
    """Parse two whole dialogues in the format of Anthropic's HH data."""
    return _shared(_turns(chosen), _turns(rejected))


def _turns(text: str) -> list[Message]:
    parts = TURN.split(text if text.startswith("\n\n") else f"\n\n{text}")
    if parts[0].strip() or len(parts) < 5:
        raise Unusable("no shared prompt")
    return [Message(ROLES[r], t.strip()) for r, t in zip(parts[1::2], parts[2::2], strict=True)]


def _check(prompt: Prompt, chosen: str, rejected: str) -> Preference:
    for text in (prompt.text, *(m.content for m in prompt.messages), chosen, rejected):
        text_of(text)
    if not prompt.text.strip():
        raise Unusable("empty prompt")
    if prompt.messages and prompt.messages[-1].role == "assistant":
        raise Unusable("the prompt ends with an assistant turn, which is not supported")
    if not (chosen.strip() and rejected.strip()):
        raise Unusable("empty answer")
    if chosen.strip() == rejected.strip():
        raise Unusable("identical sides")
    return Preference(prompt, chosen, rejected)


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
            return Prompt.from_messages(turns[:-1]), _reply(turns)
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
