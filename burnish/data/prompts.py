"""Prompts: load, de-duplicate, split by hash, so that a prompt never changes sides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from burnish.data.lines import read_lines
from burnish.errors import DataError
from burnish.records import Message, Preference, Prompt


@dataclass(frozen=True)
class PromptSplits:
    """Train (sampled from, trained on), selection (candidates are compared), test (the chosen one is tested)."""

    train: list[Prompt]
    selection: list[Prompt]
    test: list[Prompt]


def read_prompts(source: str | Path, limit: int | None = None) -> list[Prompt]:
    """Prompts of a .txt file (one a line) or .jsonl file (`prompt`, `messages`, `turns` or `instruction`),
    each once, in order. Raises DataError naming the line that cannot be used."""
    path = Path(source)
    found: dict[str, Prompt] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        prompt = Prompt(line.strip()) if path.suffix == ".txt" else _parse(path, number, line)
        found.setdefault(prompt.id, prompt)
        if limit is not None and len(found) >= limit:
            break
    if not found:
        raise DataError(f"{path} holds no prompt; give one prompt a line")
    return list(found.values())


def read_references(source: str | Path, limit: int | None = None) -> list[tuple[Prompt, str]]:
    """Prompts of a .jsonl file with their `reference`, each prompt once, in order. Raises DataError naming the line
    that cannot be used."""
    path = Path(source)
    found: dict[str, tuple[Prompt, str]] = {}
    for number, line in read_lines(path):
        if line.strip() and (limit is None or len(found) < limit):
            prompt = _parse(path, number, line)
            reference = json.loads(line).get("reference")
            if not (isinstance(reference, str) and reference.strip()):
                raise DataError(
                    f"{path}, line {number}: `reference` is {reference!r}; it must be the words of one"
                )
            found.setdefault(prompt.id, (prompt, reference))
    return list(found.values())


def _parse(path: Path, number: int, line: str) -> Prompt:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {number}: not JSON ({error.msg}); give one JSON object a line"
        ) from None
    value = next((row[k] for k in ("prompt", "messages", "turns", "instruction") if row.get(k)), None)
    if isinstance(value, str):
        return Prompt(value)
    if isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return Prompt.from_messages([Message("user", value[0])])
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return Prompt.from_messages([Message(str(m["role"]), str(m["content"])) for m in value])
    raise DataError(
        f"{path}, line {number}: no prompt in {sorted(row)}; it needs `prompt`, `messages`, `turns` or "
        "`instruction`"
    )


def _position(prompt: Prompt, salt: str) -> float:
    """A place in [0, 1) by hash of the prompt's group."""
    digest = hashlib.sha256(f"{salt}\x1f{prompt.group}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def split_prompts(prompts: Sequence[Prompt], *, selection_share: float, test_share: float) -> PromptSplits:
    """Split by hash of the prompt alone: whatever else is in the list, a prompt stays on its side."""
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
    """Deal pairs to named parts by prompt hash; all pairs of a prompt go to the same part. The hash is salted
    otherwise than that of `split_prompts`. Shares must add up to 1."""
    total = sum(shares.values())
    if abs(total - 1.0) > 1e-9:
        raise ValueError(f"shares {dict(shares)} add up to {total}; they must add up to 1")
    parts: dict[str, list[Preference]] = {name: [] for name in shares}
    for pair in pairs:
        parts[part_of(pair.prompt, shares)].append(pair)
    return parts


def part_of(prompt: Prompt, shares: Mapping[str, float]) -> str:
    """The part that the pairs of a prompt go to."""
    return _part(_position(prompt, "pairs"), shares)


def _part(place: float, shares: Mapping[str, float]) -> str:
    edge = 0.0
    name = ""
    for name, share in shares.items():
        edge += share
        if place < edge:
            return name
    return name
