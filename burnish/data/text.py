"""Text from files, forms and requests, checked by one set of rules."""

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
TIED = "all tied"
"""Reason for a row that is well formed and has no winner; the limit of unusable rows does not count it."""
SPELLED = re.compile(r"[+-]?(nan|inf|infinity)", re.IGNORECASE)
SPOKEN = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
}
TURN = {"role", "content", "from", "value"}
# Keys of a turn with metadata that a model does not read.
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
    """Error for one row that cannot be used, with the reason as its message."""


@dataclass
class Rejected:
    """Unusable rows of a source, with their line (or number), reason and first characters."""

    notes: list[dict[str, Any]] = field(default_factory=list)
    read: int = 0  # usable rows, including duplicates

    def add(self, number: int, reason: str, row: Any) -> None:
        """Add a row with its reason and an excerpt."""
        excerpt = row if isinstance(row, str) else json.dumps(row, ensure_ascii=False, default=str)
        self.notes.append({"line": number, "reason": reason, "excerpt": printable(excerpt[:EXCERPT])})

    @property
    def counts(self) -> Counter[str]:
        """Number of rejected rows by reason."""
        return Counter(note["reason"] for note in self.notes)

    def summary(self) -> str:
        """Return the three most common reasons, each with its count and first line."""
        parts = []
        for reason, count in self.counts.most_common(3):
            first = next(note["line"] for note in self.notes if note["reason"] == reason)
            parts.append(f"{reason}: {count} (e.g. line {first})")
        return "; ".join(parts)

    def check(self, source: str | Path, rows: int, limit: float, remedy: str) -> None:
        """Raise DataError if there are no rows, or if all or more than `limit` of them were rejected.

        Ties count as rejected only where no other row is left.
        """
        bad = len(self.notes)
        if not rows:
            raise DataError(f"{source} has no rows; give one row per line")
        if (bad - self.counts[TIED]) / rows > limit or bad == rows:
            raise DataError(
                f"{bad} of {rows} rows of {source} cannot be used, more than data.rejected_rows_limit={limit:g} allows "
                f"({self.summary()}); {remedy}"
            )


def text_of(value: Any, what: str = "text") -> str:
    """Return a string; raise Unusable for another type, a NUL character or an unpaired surrogate."""
    if not isinstance(value, str):
        raise Unusable(f"{what} is {_kind(value)}, not text")
    if "\x00" in value:
        raise Unusable("a text has a NUL character in it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Unusable("a text has half a character in it (an unpaired surrogate)") from None
    return value


def content_of(value: Any, what: str = "content") -> str:
    """Return the text of a message, joining text parts; raise Unusable for other parts."""
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
    """Convert a turn with `role` and `content`, or `from` and `value` (ShareGPT), to a message.

    Raises Unusable for a turn with other content, such as tool calls.
    """
    if not isinstance(turn, Mapping):
        raise Unusable(f"a turn is {_kind(turn)}, not an object with role and content")
    more = [k for k, v in turn.items() if k not in TURN | ABOUT and v not in (None, "", [], {}, False)]
    if more:
        raise Unusable(f"a turn has {more[0]!r}, which is not supported")
    role = turn.get("role", turn.get("from"))
    if not isinstance(role, str) or not role.strip():
        raise Unusable("a turn has no role")
    said = turn["content"] if "content" in turn else turn.get("value")
    return Message(SPOKEN.get(text_of(role).strip(), text_of(role).strip()), content_of(said))


def messages_of(value: Any) -> list[Message]:
    """Convert the turns of a dialogue to messages, or raise Unusable."""
    if not isinstance(value, list) or not value:
        raise Unusable(
            "empty prompt" if value in (None, [], "") else f"messages are {_kind(value)}, not a list"
        )
    return [message_of(turn) for turn in value]


def prompt_of(value: Any) -> Prompt:
    """Convert text or messages to a prompt; raise Unusable if it is empty or ends with an answer."""
    if isinstance(value, str):
        if not text_of(value).strip():
            raise Unusable("empty prompt")
        return Prompt(value)
    turns = messages_of(value)
    if turns[-1].role == "assistant":
        raise Unusable("the prompt ends with an assistant turn, which is not supported")
    return Prompt.from_messages(turns)


def reply_of(value: Any, what: str = "response") -> str:
    """Return a response given as text or as messages that end with it; otherwise raise Unusable."""
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
    """Parse JSON; raise Unusable if it is malformed or has too large a number or nesting."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise Unusable("malformed JSON") from None


def json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield the numbered rows of a JSON file: one per line, or the elements of one array.

    A line that is not JSON comes as text. An empty file or one multi-line object raises DataError.
    """
    return _json_rows(read_lines(path), lambda: read_text(path), str(path))


def numbered(text: str) -> Iterator[tuple[int, Any]]:
    """Yield the numbered rows of a JSON text, as `json_rows` does for a file."""
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
    """Yield `read` of every row; reject a row that is not an object or that `read` cannot use."""
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
    """Convert a number to float, which need not be finite; return None for anything else.

    Numpy scalars and the spellings of NaN and infinity are numbers; truth values are not.
    """
    if isinstance(value, str):
        return float(value) if SPELLED.fullmatch(value.strip()) else None
    if isinstance(value, bool) or not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except (OverflowError, TypeError, ValueError):
        return None


def kind_of(row: Mapping[str, Any], column: str) -> str:
    """Return a row's kind; raise Unusable if the column holds neither text nor an integer."""
    value = row.get(column)
    number = isinstance(value, int) and not isinstance(value, bool)
    kind = str(value) if number else text_of(value, f"`{column}`").strip()
    if not kind:
        raise Unusable(f"`{column}` is empty")
    return kind


def printable(text: str) -> str:
    """Escape unpaired surrogates in a text, so that it can be encoded as UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    return {list: "a list", dict: "an object", bool: "true or false", str: "text"}.get(
        type(value), "a number"
    )


def first_of(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    """Return the first non-empty value among the named columns of a row, or None."""
    return next((row[name] for name in names if row.get(name) not in (None, "", [])), None)
