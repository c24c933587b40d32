"""Items of a batch for annotators: shuffled sides, opaque ids and gold questions mixed in."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from burnish.data.lines import read_lines
from burnish.errors import DataError
from burnish.records import Comparison, Label, Preference, Prompt, Response, content_id
from burnish.runs.files import atomic_write

Choice = Literal["a", "b", "tie", "skip"]
CHOICES: tuple[Choice, ...] = ("a", "b", "tie", "skip")
FAILS = "worker fails gold questions"
FEWEST_GOLD = 3  # fewest gold answers to judge a worker by


@dataclass(frozen=True)
class Item:
    """Text that a worker sees under an opaque id, and the hidden key to it.

    `comparison_id` is None for a gold question. `swapped` says whether the sides are exchanged.
    `expected` is the right answer to a gold question.
    """

    id: str
    prompt: str
    answer_a: str
    answer_b: str
    comparison_id: str | None
    swapped: bool
    expected: Literal["a", "b"] | None = None

    @property
    def shown(self) -> dict[str, str]:
        """Fields that a worker sees."""
        return {
            "item_id": self.id,
            "prompt": self.prompt,
            "answer_a": self.answer_a,
            "answer_b": self.answer_b,
        }


@dataclass(frozen=True)
class Returned:
    """One worker's answer to one item, from a vendor; `choice` is None if it is unreadable."""

    item_id: str
    worker: str
    choice: Choice | None
    seconds: float | None = None
    cost: float = 0.0
    rejected: str | None = None  # by the vendor's reviewer
    at: str | None = None  # ISO 8601


def make_items(
    comparisons: Sequence[Comparison], gold: Sequence[Preference], gold_share: float, seed: int
) -> list[Item]:
    """Make items of the comparisons and of gold pairs, in random order and with random sides.

    Gold pairs make up about `gold_share` of all items, as far as there are enough.
    """
    rng = random.Random(f"items-{seed}")
    items = []
    for c in comparisons:
        # Sides depend only on id and seed, so that an item has the same sides in every batch.
        swapped = int(content_id("side", c.id, str(seed)), 16) % 2 == 1
        a, b = (c.second, c.first) if swapped else (c.first, c.second)
        items.append(Item(_id(c.id, seed), c.prompt.text, a.text, b.text, c.id, swapped))
    wanted = round(gold_share / (1 - gold_share) * len(items)) if gold else 0
    for number, pair in enumerate(rng.sample(list(gold), min(wanted, len(gold)))):
        swapped = number % 2 == 1  # alternating sides, so that always answering A is right half of the time
        sides = (pair.rejected, pair.chosen) if swapped else (pair.chosen, pair.rejected)
        name = _id(content_id("gold", pair.prompt.id, pair.chosen, pair.rejected), seed)
        items.append(Item(name, pair.prompt.text, *sides, None, swapped, "b" if swapped else "a"))
    rng.shuffle(items)
    return items


def _id(what: str, seed: int) -> str:
    return content_id("item", what, str(seed))


def write_key(items: Sequence[Item], guidelines_id: str, path: Path) -> None:
    """Write the key to a batch, which maps its ids; keep it and show it to no worker."""
    lines = [
        json.dumps({"guidelines": guidelines_id}),
        *(json.dumps(asdict(i), ensure_ascii=False) for i in items),
    ]
    atomic_write(path, "\n".join([*lines, ""]))


def read_key(path: Path) -> tuple[dict[str, Item], str]:
    """Read the items by id and the id of their guidelines; raise DataError for another file."""
    lines = [json.loads(line) for _, line in read_lines(path) if line.strip()]
    if not lines or "guidelines" not in lines[0]:
        raise DataError(
            f"{path} is not the key of a batch; give the folder that `burnish label export` wrote"
        )
    items = [Item(**row) for row in lines[1:]]
    return {item.id: item for item in items}, lines[0]["guidelines"]


@dataclass
class Imported:
    """Result of importing a vendor's answers."""

    labels: list[Label] = field(default_factory=list)
    checks: list[tuple[Comparison, Label]] = field(
        default_factory=list
    )  # (gold question with its better side first, answer)
    rows: int = 0
    skipped: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    gold: dict[str, list[bool]] = field(default_factory=dict)  # by worker: right or not
    seconds: float = 0.0
    cost: float = 0.0

    def report(self) -> dict[str, Any]:
        """Return counts, reasons for rejection and the workers' accuracy on gold questions."""
        right = [ok for answers in self.gold.values() for ok in answers]
        return {
            "rows": self.rows,
            "labels": len(self.labels),
            "workers": len({label.annotator for label in self.labels}),
            "skipped": self.skipped,
            "rejected": dict(Counter(row["reason"] for row in self.rejected)),
            "gold_accuracy": sum(right) / len(right) if right else None,
            "gold_answers": len(right),
            "hours": self.seconds / 3600,
            "cost": self.cost,
        }


def take_back(
    returned: Iterable[Returned],
    items: dict[str, Item],
    vendor: str,
    guidelines_id: str,
    *,
    least_gold: float = 0.7,
) -> Imported:
    """Convert workers' answers to labels: match ids, restore sides, separate gold questions.

    A row that cannot be used is kept with its reason. So is every row of a worker with three gold
    answers or more, of which fewer than `least_gold` are right. Time and money count for all rows,
    because rejected work is paid as well.
    """
    found = Imported()
    rows = list(returned)
    for row in rows:
        item = items.get(row.item_id)
        if item is not None and item.expected is not None and row.worker and row.choice in ("a", "b", "tie"):
            found.gold.setdefault(row.worker, []).append(row.choice == item.expected)
            asked = _question(item)
            right = 0.5 if row.choice == "tie" else float(row.choice == item.expected)
            found.checks.append((asked, _label(row, asked.id, right, item, vendor, guidelines_id)))
    failed = {
        worker
        for worker, answers in found.gold.items()
        if len(answers) >= FEWEST_GOLD and sum(answers) < least_gold * len(answers)
    }
    for row in rows:
        found.rows += 1
        found.seconds += row.seconds or 0.0
        found.cost += row.cost
        item = items.get(row.item_id)
        reason = _unusable(row, item, failed)
        if reason is not None:
            found.rejected.append({**asdict(row), "reason": reason})
        elif row.choice == "skip":
            found.skipped += 1
        elif item is not None and item.comparison_id is not None:
            shown = {"a": 1.0, "b": 0.0, "tie": 0.5}[row.choice or "tie"]
            value = 1.0 - shown if item.swapped else shown
            found.labels.append(_label(row, item.comparison_id, value, item, vendor, guidelines_id))
    return found


def _question(item: Item) -> Comparison:
    """Return a gold question as a comparison with the right answer first."""
    better, other = item.answer_a, item.answer_b
    if item.expected == "b":
        better, other = other, better
    return Comparison(Prompt(item.prompt), Response(better), Response(other))


def _label(row: Returned, asked: str, value: float, item: Item, vendor: str, guidelines_id: str) -> Label:
    return Label(
        asked,
        f"{vendor}:{row.worker}",
        value,
        "human",
        seconds=row.seconds,
        cost=row.cost,
        guidelines=guidelines_id,
        swapped=item.swapped,
        at=row.at,
    )


def _unusable(row: Returned, item: Item | None, failed: set[str]) -> str | None:
    if item is None:
        return "unknown item"
    if row.choice is None:
        return "unreadable choice"
    if not row.worker:
        return "no worker"
    if row.rejected:
        return "rejected by a reviewer"
    return FAILS if row.worker in failed else None
