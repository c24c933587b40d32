"""Prompts: loading, de-duplication, and splits by hash, which keep a prompt on its side."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.data.lines import read_lines
from burnish.data.text import Rejected, Unusable, first_of, json_rows, kind_of, prompt_of, read_rows, text_of
from burnish.errors import DataError
from burnish.records import Message, Preference, Prompt


@dataclass(frozen=True)
class PromptSplits:
    """Prompts for training, for selection among candidates, and for the test of the chosen one."""

    train: list[Prompt]
    selection: list[Prompt]
    test: list[Prompt]


COLUMNS = ("prompt", "messages", "turns", "instruction")


def read_prompts(
    source: str | Path, limit: int | None = None, *, rejected: Rejected | None = None
) -> list[Prompt]:
    """Read the distinct prompts of a .txt file (one per line) or a JSON file, in order.

    A JSON row has `prompt`, `messages`, `turns` or `instruction`. Unusable rows go to `rejected`; if it
    is None, the first one raises DataError. Raises DataError also if no prompt is left.
    """
    path, unusable = Path(source), Rejected()
    rows = read_rows(_rows(path), _prompt, unusable)
    found: dict[str, Prompt] = {}
    for _, prompt in rows:
        found.setdefault(prompt.id, prompt)
        if limit is not None and len(found) >= limit:
            break
    _refuse(path, unusable, rejected, "a row needs `prompt`, `messages`, `turns` or `instruction`")
    if not found:
        raise DataError(f"{path} contains no prompt; write one prompt per line")
    return list(found.values())


def read_references(source: str | Path, limit: int | None = None) -> list[tuple[Prompt, str]]:
    """Read the distinct prompts of a JSON file with their `reference`, in order.

    Raises DataError naming the first unusable row.
    """
    path, unusable = Path(source), Rejected()

    def read(row: Mapping[str, Any]) -> tuple[Prompt, str]:
        reference = text_of(row.get("reference"), "`reference`")
        if not reference.strip():
            raise Unusable("`reference` is empty")
        return _prompt(row), reference

    found: dict[str, tuple[Prompt, str]] = {}
    for _, (prompt, reference) in read_rows(json_rows(path), read, unusable):
        found.setdefault(prompt.id, (prompt, reference))
        if limit is not None and len(found) >= limit:
            break
    _refuse(path, unusable, None, "a row needs a prompt and a `reference`")
    return list(found.values())


def read_kinds(source: str | Path, column: str) -> dict[str, str]:
    """Read the kind of each prompt, by prompt id: text or an integer in `column` of a JSON file's rows.

    Rows without a prompt or without such a value have none. The first row of a prompt counts.
    """

    def read(row: Mapping[str, Any]) -> tuple[Prompt, str]:
        return _prompt(row), kind_of(row, column)

    found: dict[str, str] = {}
    for _, (prompt, kind) in read_rows(_rows(Path(source)), read, Rejected()):
        found.setdefault(prompt.id, kind)
    return found


def read_columns(source: str | Path, wanted: Collection[str]) -> dict[str, dict[str, Any]]:
    """Read the columns besides the prompt of each wanted prompt's first row, by prompt id."""

    def read(row: Mapping[str, Any]) -> tuple[Prompt, dict[str, Any]]:
        return _prompt(row), {name: value for name, value in row.items() if name not in COLUMNS}

    found: dict[str, dict[str, Any]] = {}
    for _, (prompt, columns) in read_rows(_rows(Path(source)), read, Rejected()):
        if prompt.id in wanted:
            found.setdefault(prompt.id, columns)
    return found


def _refuse(path: Path, unusable: Rejected, rejected: Rejected | None, needs: str) -> None:
    if rejected is not None:
        rejected.notes += unusable.notes
        rejected.read += unusable.read
    elif unusable.notes:
        first = unusable.notes[0]
        raise DataError(f"{path}, line {first['line']}: {first['reason']}; {needs}")


def _rows(path: Path) -> Iterator[tuple[int, Any]]:
    if path.suffix != ".txt":
        return json_rows(path)
    return ((number, {"prompt": line.strip()}) for number, line in read_lines(path) if line.strip())


def _prompt(row: Mapping[str, Any]) -> Prompt:
    value = first_of(row, COLUMNS)
    if value is None:
        raise Unusable(f"no prompt in {sorted(map(str, row))}")
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return Prompt.from_messages([Message("user", text_of(value[0]))])
    return prompt_of(value)


def _position(prompt: Prompt, salt: str) -> float:
    """Return a position in [0, 1) by a salted hash of the prompt's group."""
    digest = hashlib.sha256(f"{salt}\x1f{prompt.group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_prompts(prompts: Sequence[Prompt], *, selection_share: float, test_share: float) -> PromptSplits:
    """Split prompts by hash, so that a prompt's side does not depend on the rest of the list."""
    splits = PromptSplits([], [], [])
    for prompt in prompts:
        place = _position(prompt, "prompts")
        if place < test_share:
            splits.test.append(prompt)
        elif place < test_share + selection_share:
            splits.selection.append(prompt)
        else:
            splits.train.append(prompt)
    return splits


def split_pairs(pairs: Sequence[Preference], shares: Mapping[str, float]) -> dict[str, list[Preference]]:
    """Split pairs into named parts by prompt hash; all pairs of a prompt go to the same part.

    The salt differs from that of `split_prompts`. Raises ValueError unless the shares add up to 1.
    """
    total = sum(shares.values())
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"shares {dict(shares)} add up to {total}; they must add up to 1")
    parts: dict[str, list[Preference]] = {name: [] for name in shares}
    for pair in pairs:
        parts[part_of(pair.prompt, shares)].append(pair)
    return parts


def part_of(prompt: Prompt, shares: Mapping[str, float]) -> str:
    """Return the name of the part that the pairs of a prompt belong to."""
    return _part(_position(prompt, "pairs"), shares)


def _part(place: float, shares: Mapping[str, float]) -> str:
    edge = 0.0
    name = ""
    for name, share in shares.items():
        edge += share
        if place < edge:
            return name
    return name
