"""Text from outside: one rule of what is text, for every file, form and request that brings some."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from burnish.data.lines import read_lines, read_text
from burnish.errors import DataError
from burnish.records import Message, Prompt

EXCERPT = 120
SPELLED = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
SPOKEN = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TURN = {"role", "content", "from", "value"}
# Keys of a turn that say nothing a model would read.
ABOUT = {
    *(
        "id",
        "message_id",
        "parent_id",
        "index",
        "idx",
        "turn",
        "name",
        "timestamp",
        "created_at",
        "date",
        "weight",
    ),
    *("train", "loss", "mask", "score", "rank", "lang", "language", "model", "source", "tokens", "n_tokens"),
}


class Unusable(Exception):
    """One row that cannot be used; the message is the reason."""


@dataclass
class Rejected:
    """Rows of a source that cannot be used: their line (or number), reason and first characters."""

    notes: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0  # rows that could be used, repetitions among them

    def add(self, number: int, reason: str, row: Any) -> None:
        excerpt = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        self.notes.append({"line": number, "reason": reason, "excerpt": printable(excerpt[:EXCERPT])})

    @property
    def counts(self) -> Counter[str]:
        return Counter(note["reason"] for note in self.notes)

    def summary(self) -> str:
        """The commonest reasons, each with its count and first line."""
        parts = []
        for reason, count in self.counts.most_common(3):
            first = next(note["line"] for note in self.notes if note["reason"] == reason)
            parts.append(f"{reason}: {count} (e.g. line {first})")
        return "; ".join(parts)

    def check(self, source: str | Path, rows: int, limit: float, remedy: str) -> None:
        """Raise DataError where more than `limit` of the rows were rejected, or all."""
        bad = len(self.notes)
        if not rows:
            raise DataError(f"{source} holds no rows; give one a line")
        if bad / rows > limit or bad == rows:
            raise DataError(
                f"{bad} of {rows} rows of {source} cannot be used, more than data.rejected_rows_limit={limit:g} allows "
                f"({self.summary()}); {remedy}"
            )


def text_of(value: Any, what: str = "text") -> str:
    """A string that can be stored and encoded: no NUL character and no half of a surrogate pair. Raises Unusable."""
    if not isinstance(value, str):
        raise Unusable(f"{what} is {_kind(value)}, not text")
    if "\x00" in value:
        raise Unusable("a text has a NUL character in it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable("a text has half a character in it") from None
    return value


def content_of(value: Any, what: str = "content") -> str:
    """The text of a message: a string, or a list of text parts, which are joined. Raises Unusable for other parts."""
    if not isinstance(value, list):
        return text_of(value, what)
    parts = []
    for part in value:
        if isinstance(part, Mapping):
            kind = part.get("type", "text")
            if kind not in ("text", "input_text", "output_text"):
                raise Unusable(f"a content part is of type {kind!r}, not text")
            part = part.get("text")
        parts.append(text_of(part, "a content part"))
    if not parts:
        raise Unusable(f"{what} is an empty list")
    return "".join(parts)


def message_of(turn: Any) -> Message:
    """A turn of a dialogue: `role` and `content`, or `from` and `value` (ShareGPT). Raises Unusable for a turn that
    holds more than these, such as calls of tools."""
    if not isinstance(turn, Mapping):
        raise Unusable(f"a turn is {_kind(turn)}, not an object with role and content")
    more = [k for k, v in turn.items() if k not in TURN | ABOUT and v not in (None, "", [], {}, False)]
    if more:
        raise Unusable(f"a turn has {more[0]!r}, which is not read")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or not role.strip():
        raise Unusable("a turn has no role")
    said = turn["content"] if "content" in turn else turn.get("value")
    return Message(SPOKEN.get(text_of(role).strip(), text_of(role).strip()), content_of(said))


def messages_of(value: Any) -> list[Message]:
    """The turns of a dialogue. Raises Unusable."""
    if not isinstance(value, list) or not value:
        raise Unusable(
            "empty prompt" if value in (None, [], "") else f"messages are {_kind(value)}, not a list"
        )
    return [message_of(turn) for turn in value]


def prompt_of(value: Any) -> Prompt:
    """A prompt: text, or a list of messages. Raises Unusable."""
    if isinstance(value, str):
        if not text_of(value).strip():
            raise Unusable("empty prompt")
        return Prompt(value)
    turns = messages_of(value)
    if turns[-1].role == "assistant":
        raise Unusable("the prompt ends in an assistant's turn, and is not continued")
    return Prompt.from_messages(turns)


def reply_of(value: Any, what: str = "response") -> str:
    """An answer: text, or a list of messages that ends in the assistant's. Raises Unusable."""
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, Mapping) and v.keys() & {"role", "from"} for v in value)
    ):
        turns = messages_of(value)
        if turns[-1].role != "assistant":
            raise Unusable("does not end in an answer")
        return turns[-1].content
    return content_of(value, what)


def parse_json(text: str) -> Any:
    """A JSON value. Raises Unusable, also for a number or a nesting that is too large to be read."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable("malformed JSON") from None


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Numbered rows of a JSON file: one a line, or the elements of one array. A line that is not JSON comes as its
    text. Raises DataError for an empty file and for one object over several lines."""
    return _json_rows(read_lines(path), lambda: read_text(path), str(path))


def numbered(text: str) -> Iterator[tuple[int, Any]]:
    """`json_rows` of a text."""
    return _json_rows(enumerate(text.split("\n"), 1), lambda: text, "the input")


def _json_rows(
    numbered_lines: Iterable[tuple[int, str]], whole_text: Callable[[], str], source: str
) -> Iterator[tuple[int, Any]]:
    lines = ((number, line) for number, line in numbered_lines if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith("[") or first[1].strip() == "{":
        try:
            whole = parse_json(whole_text())
        except Unusable:
            whole = None
        if isinstance(whole, dict):
            names = ", ".join(list(whole)[:4])
            raise DataError(
                f"{source} holds one JSON object with {names}; give a list of rows, or one row a line"
            )
        if isinstance(whole, list) and (not whole or any(isinstance(row, dict) for row in whole)):
            yield from enumerate(whole, 1)
            return
    for number, line in chain([first], lines):
        try:
            yield number, parse_json(line)
        except Unusable:
            yield number, line


def read_rows(
    rows: Iterator[tuple[int, Any]], read: Callable[[Mapping[str, Any]], Any], rejected: Rejected
) -> Iterator[tuple[int, Any]]:
    """What `read` makes of each row; a row that it cannot use, or that is no object, is rejected with its reason."""
    for number, row in rows:
        try:
            if not isinstance(row, Mapping):
                raise Unusable("malformed JSON" if isinstance(row, str) else "not an object")
            found = read(row)
            rejected.read += 1
            yield number, found
        except Unusable as reason:
            rejected.add(number, str(reason), row)


def number_of(value: Any) -> float | None:
    """A number, numpy's scalars and the spellings of NaN and infinity included; None for anything else, truth values
    too. It need not be finite."""
    if isinstance(value, str):
        return float(value) if SPELLED.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def printable(text: str) -> str:
    """A text that any file or terminal takes: half characters as their escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "a list", dict: "an object", bool: "true or false", str: "text"}.get(
        type(value), "a number"
    )


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """The first of some columns that a row has something in; None where it has none."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)
