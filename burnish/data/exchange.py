"""Import and export of labels with their annotators as JSON lines.

A row is a pair or a ranking of any number of responses. It has `prompt` (text or messages),
`responses` (two or more) and `annotator`. It has either `ranking` (tiers of indices, best first)
or, for two, `preference` (how far the first is preferred, 0 to 1). It may have `source` (human,
judge, imported, simulated), `shown` (indices in the order shown), `seconds`, `cost` (of the whole
row), `at` (ISO 8601). Other optional columns are `ended` (of every response), `models` (which wrote
them), `strength` and `guidelines` (their id). With `gold: true` it is a gold question: its answer
is known and it has no annotator. It must precede the answers to it, which measure the annotators. A
row with none of ranking, preference and annotator is an open question.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import combinations, islice
from pathlib import Path
from typing import Any, get_args

from burnish.data.preferences import read_preferences
from burnish.data.rankings import Tiers
from burnish.data.rows import numbered_rows, tiers_of
from burnish.data.store import LabelStore
from burnish.data.text import Unusable, number_of, text_of
from burnish.errors import DataError
from burnish.records import Comparison, Label, Preference, Prompt, Response, Source
from burnish.runs.files import atomic_lines

ROWS = 1000  # rows read before each write
EXCERPT = 120


@dataclass
class Loaded:
    """Counts of what a file added to a store.

    All but `rows`, `contradicting` (stored before with another answer) and `rejected` (unusable rows by
    reason) count new entries. `checks` are answers to gold questions.
    """

    rows: int = 0
    comparisons: int = 0
    labels: int = 0
    gold: int = 0
    checks: int = 0
    contradicting: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    first_rejected: dict[str, int] = field(default_factory=dict)  # the first line with each reason

    def report(self) -> dict[str, Any]:
        """Return the counts, with the first line of each rejection reason."""
        lines = {r: f"{n}, first in line {self.first_rejected[r]}" for r, n in self.rejected.items()}
        names = ("rows", "comparisons", "labels", "gold", "checks", "contradicting")
        return {**{name: getattr(self, name) for name in names}, "rejected": lines}


@dataclass(frozen=True)
class _Row:
    """A row as comparisons with one annotator's labels (`gold`: known ones; `waits`: none)."""

    asked: Sequence[Comparison]
    labels: Sequence[Label]
    gold: bool
    waits: bool = False


def load_labels(store: LabelStore, path: Path, guidelines: str | None = None) -> Loaded:
    """Add the rows of a file to a store, a thousand at a time.

    Rows that the store already has are not added twice, so an interrupted import can be repeated.
    Raises DataError if more than half of the rows are unusable or there are none. Usable rows are
    stored before that.
    """
    found = Loaded()
    lines = numbered_rows(path, "train")
    while chunk := list(islice(lines, ROWS)):
        rows = []
        for number, row in chunk:
            found.rows += 1
            try:
                rows.append(_read(row, guidelines))
            except Unusable as reason:
                found.rejected[str(reason)] += 1
                found.first_rejected.setdefault(str(reason), number)
        _add(store, rows, found)
    bad = found.rejected.total()
    if not found.rows or bad > found.rows / 2:
        reasons = "; ".join(
            f"{r}: {n}, first in line {found.first_rejected[r]}" for r, n in found.rejected.items()
        )
        raise DataError(
            f"{bad} of {found.rows} rows of {path} cannot be used ({reasons or 'it is empty'}); a row needs prompt, "
            "responses, annotator, and ranking or preference"
        )
    return found


def load_questions(store: LabelStore, path: Path) -> dict[str, Any]:
    """Add questions to label to a store, and return counts of what was added.

    Rows are as in `load_labels`, or pairs as in `read_preferences`, whose preferences are dropped.
    """
    first = next((row for _, row in numbered_rows(path, "train")), None)
    if isinstance(first, Mapping) and "responses" in first and "chosen" not in first:
        return load_labels(store, path).report()
    read = read_preferences(path)
    rejected, asked = Counter(read.rejected), []
    for pair in read.pairs:
        try:
            asked.append(_unanswered(pair))
        except Unusable as reason:
            rejected[str(reason)] += 1
    return {"rows": read.rows, "comparisons": store.add_comparisons(asked), "rejected": dict(rejected)}


def _unanswered(pair: Preference) -> Comparison:
    """Convert a pair to a comparison whose order does not reveal the chosen response."""
    _check_text(pair.prompt, (pair.chosen, pair.rejected))
    sides = (
        Response(pair.chosen, "imported", pair.chosen_ended),
        Response(pair.rejected, "imported", pair.rejected_ended),
    )
    first, second = sorted(sides, key=lambda side: side.text)
    return Comparison(pair.prompt, first, second)


def _add(store: LabelStore, rows: Sequence[_Row], found: Loaded) -> None:
    golden = [(c, label.preference) for row in rows if row.gold for c, label in _questions(row)]
    found.gold += store.add_gold(golden)
    found.comparisons += store.add_comparisons(c for row in rows if row.waits for c in row.asked)
    asked = [pair for row in rows if not row.gold and not row.waits for pair in _questions(row)]
    measured = store.known({c.id for c, _ in asked}, gold=True)
    checks = [(c, label) for c, label in asked if c.id in measured]
    found.checks += store.add_checks(store.as_stored(checks, gold=True))
    plain = [(c, label) for c, label in asked if c.id not in measured]
    found.comparisons += store.add_comparisons(c for c, _ in plain)
    labels = store.as_stored(plain)
    found.contradicting += store.differing(labels)
    found.labels += store.add_labels(labels)


def _questions(row: _Row) -> Iterator[tuple[Comparison, Label]]:
    return zip(row.asked, row.labels, strict=True)


def _read(row: Any, guidelines: str | None) -> _Row:
    if isinstance(row, str):
        raise Unusable("malformed JSON")
    if not isinstance(row, dict):
        raise Unusable("not an object")
    for name in ("prompt", "responses"):
        if name not in row:
            raise Unusable(f"no {name}")
    waits = not {"ranking", "preference", "annotator", "gold"} & row.keys()
    prompt, responses, tiers, ended = _waiting(row) if waits else _answered(row)
    if len(set(responses)) < len(responses):
        raise Unusable("the same response occurs twice")
    _check_text(prompt, responses)
    models = row.get("models") or ["imported"] * len(responses)
    if not isinstance(models, list) or len(models) != len(responses):
        raise Unusable("models does not fit the responses")
    sides = [Response(text, text_of(str(m)), e) for text, m, e in zip(responses, models, ended, strict=True)]
    if waits:
        return _Row([Comparison(prompt, a, b) for a, b in combinations(sides, 2)], (), False, waits=True)
    gold = row.get("gold") is True
    label = _label(row, gold, guidelines)
    if gold and (
        row.get("preference") == 0.5 if "ranking" not in row else any(len(tier) > 1 for tier in tiers)
    ):
        raise Unusable("a gold question needs a preferred response, not a tie")
    place = {i: level for level, tier in enumerate(tiers) for i in tier}
    pairs = list(combinations(sorted(place), 2))
    shown = _shown(row, len(responses))
    asked, labels = [], []
    for i, j in pairs:
        c = Comparison(prompt, sides[i], sides[j])
        value = 0.5 + 0.5 * ((place[i] < place[j]) - (place[i] > place[j]))
        asked.append(c)
        labels.append(
            replace(
                label,
                comparison_id=c.id,
                preference=value if "ranking" in row else float(row["preference"]),
                seconds=None if label.seconds is None else label.seconds / len(pairs),
                cost=label.cost / len(pairs),
                swapped=None if shown is None else shown.index(j) < shown.index(i),
            )
        )
    return _Row(asked, labels, gold)


def _check_text(prompt: Prompt, responses: Sequence[str]) -> None:
    for text in (prompt.text, *(m.content for m in prompt.messages), *responses):
        text_of(text)


def _answered(row: Mapping[str, Any]) -> tuple[Prompt, list[str], Tiers, list[bool]]:
    """Return prompt, responses, tiers and which ended; a preference gets placeholder tiers."""
    if "ranking" in row:
        return tiers_of(row, tied=True)
    value = row.get("preference")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise Unusable("neither a ranking nor a preference between 0 and 1")
    if not isinstance(row["responses"], list) or len(row["responses"]) != 2:
        raise Unusable("a preference is between two responses")
    return tiers_of({**row, "ranking": [[0], [1]]})


def _waiting(row: Mapping[str, Any]) -> tuple[Prompt, list[str], Tiers, list[bool]]:
    if not isinstance(row["responses"], list) or len(row["responses"]) < 2:
        raise Unusable("a question is between two responses or more")
    return tiers_of({**row, "ranking": [[i] for i in range(len(row["responses"]))]})


def _number(value: Any, why: str) -> float:
    number = None if isinstance(value, str) else number_of(value)
    if number is None or not math.isfinite(number):
        raise Unusable(why)
    return number


def _label(row: Mapping[str, Any], gold: bool, guidelines: str | None) -> Label:
    annotator = row.get("annotator")
    if not gold and (not isinstance(annotator, str) or not text_of(annotator).strip()):
        raise Unusable("no annotator")
    source = row.get("source", "human")
    if source not in get_args(Source):
        raise Unusable(f"source is none of {', '.join(get_args(Source))}")
    seconds, cost, at = row.get("seconds"), row.get("cost", 0.0), row.get("at")
    seconds, cost = (
        None if value is None else _number(value, "seconds or cost is not a number of at least 0")
        for value in (seconds, cost)
    )
    if min(seconds or 0.0, cost or 0.0) < 0:
        raise Unusable("seconds or cost is not a number of at least 0")
    if at is not None:
        try:
            datetime.fromisoformat(at)
        except (TypeError, ValueError):
            raise Unusable("at is no ISO 8601 time") from None
    strength, given_by = row.get("strength"), row.get("guidelines", guidelines)
    if strength is not None:
        strength = _number(strength, "strength is no number")
    if given_by is not None and not isinstance(given_by, str):
        raise Unusable("guidelines is no id")
    text_of(given_by or "")
    return Label("", annotator or "", 0.5, source, strength, seconds, cost or 0.0, given_by, None, at)


def _shown(row: Mapping[str, Any], n: int) -> list[int] | None:
    shown = row.get("shown")
    if shown is None:
        return None
    if not isinstance(shown, list) or sorted(map(str, shown)) != sorted(map(str, range(n))):
        raise Unusable("shown does not list every response once")
    return [int(i) for i in shown]


def dump_labels(store: LabelStore, path: Path) -> int:
    """Write every label as a row that `load_labels` reads, and return the number of rows.

    Gold questions and the answers to them are included; the round of a label is not.
    """
    return atomic_lines(path, (json.dumps(row, ensure_ascii=False) for row in _label_rows(store)))


def _label_rows(store: LabelStore) -> Iterator[dict[str, Any]]:
    golden = {c.id: c for c, _ in store.gold()}
    yield from ({**_question(c), "preference": p, "gold": True} for c, p in store.gold())
    yield from (_answer(golden[label.comparison_id], label) for label in store.checks())
    asked = store.comparisons()
    while chunk := {c.id: c for c in islice(asked, ROWS)}:
        for label in store.labels(list(chunk)):
            yield _answer(chunk[label.comparison_id], label)


def _question(c: Comparison) -> dict[str, Any]:
    return {
        "prompt": _prompt(c.prompt),
        "responses": [c.first.text, c.second.text],
        "ended": [c.first.ended is not False, c.second.ended is not False],
        "models": [c.first.source, c.second.source],
    }


def _answer(c: Comparison, label: Label) -> dict[str, Any]:
    row = {
        **_question(c),
        "preference": label.preference,
        "annotator": label.annotator,
        "source": label.source,
        "cost": label.cost,
        "at": label.at,
    }
    for name in ("seconds", "strength", "guidelines"):
        if getattr(label, name) is not None:
            row[name] = getattr(label, name)
    if label.swapped is not None:
        row["shown"] = [1, 0] if label.swapped else [0, 1]
    return row


def _prompt(prompt: Prompt) -> str | list[dict[str, str]]:
    return (
        [{"role": m.role, "content": m.content} for m in prompt.messages] if prompt.messages else prompt.text
    )


def dump_rankings(store: LabelStore, path: Path, consensus: Mapping[str, float]) -> int:
    """Write a row for every prompt with its responses ranked by consensus; return the row count.

    Responses are ordered by expected wins against the others they were compared with; those within
    rounding share a tier. If not all responses to a prompt were compared with each other, every
    comparison is a row. Rows that are all ties are left out.
    """
    by_prompt: dict[str, list[tuple[Comparison, float]]] = defaultdict(list)
    for c in store.comparisons():
        if c.id in consensus:
            by_prompt[c.prompt.id].append((c, consensus[c.id]))
    rows = (row for group in by_prompt.values() for row in _ranked(group))
    return atomic_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def _ranked(group: Sequence[tuple[Comparison, float]]) -> Iterable[dict[str, Any]]:
    texts = list(dict.fromkeys(r.text for c, _ in group for r in (c.first, c.second)))
    if len(group) < len(texts) * (len(texts) - 1) // 2:
        for pair in group:
            yield from _ranked([pair])
        return
    won = dict.fromkeys(texts, 0.0)
    ended = {r.text: r.ended is not False for c, _ in group for r in (c.first, c.second)}
    for c, p in group:
        won[c.first.text] += p
        won[c.second.text] += 1 - p
    tiers: list[list[int]] = []
    for at in sorted(range(len(texts)), key=lambda i: -won[texts[i]]):
        if tiers and abs(won[texts[tiers[-1][0]]] - won[texts[at]]) < 1e-9:
            tiers[-1].append(at)
        else:
            tiers.append([at])
    if len(tiers) > 1:
        yield {
            "prompt": _prompt(group[0][0].prompt),
            "responses": texts,
            "ranking": tiers,
            "ended": [ended[t] for t in texts],
        }
