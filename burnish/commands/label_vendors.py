"""Export of comparisons to a vendor, and import of its results into a store."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from burnish.data.guidelines import load_guidelines
from burnish.data.preferences import read_preferences
from burnish.data.store import LabelStore, Place, shown
from burnish.errors import DataError, RunError
from burnish.labels.items import FAILS, Returned, make_items, read_key, take_back, write_key
from burnish.labels.select import unlabelled
from burnish.labels.vendors import VENDORS
from burnish.runs.files import atomic_folder, atomic_write

KEY = "key.jsonl"


def export_batch(
    store: Place,
    folder: Path,
    vendor: str,
    *,
    n: int | None,
    only: Path | None,
    redundancy: int,
    gold: Path | None,
    gold_share: float,
    guidelines: str | None,
    seed: int,
) -> dict[str, Any]:
    """Write a folder with the vendor's files, the guidelines and the key."""
    if folder.exists():
        raise RunError(f"{folder} exists already, and a batch has one key; choose another place")
    instructions = load_guidelines(guidelines)
    with LabelStore(store) as labels:
        comparisons = unlabelled(labels, only)[:n]
        labels.add_guidelines(instructions)
    if not comparisons:
        raise DataError(f"{shown(store)} has no comparison without a label; collect more, or look at --only")
    golden = read_preferences(gold).pairs if gold is not None else []
    items = make_items(comparisons, golden, gold_share, seed)
    with atomic_folder(folder) as aside:
        for name, text in VENDORS[vendor]().write(items, instructions, redundancy).items():
            (aside / name).write_text(text, encoding="utf-8", newline="")
        (aside / "guidelines.md").write_text(instructions.text, encoding="utf-8")
        write_key(items, instructions.id, aside / KEY)
    return {
        "folder": str(folder),
        "vendor": vendor,
        "items": len(items),
        "gold": sum(item.expected is not None for item in items),
        "redundancy": redundancy,
        "guidelines": instructions.id,
    }


def import_batch(
    store: Place, folder: Path, results: Path, vendor: str, least_gold: float, pay: float
) -> dict[str, Any]:
    """Import labels from a vendor's results; write unusable rows to RESULTS.rejected.jsonl."""
    returned = VENDORS[vendor]().read(results)
    paid = (replace(row, cost=row.cost or pay) for row in returned)
    return take_results(store, folder, paid, results, vendor, least_gold)


def take_results(
    store: Place, folder: Path, returned: Iterable[Returned], results: Path, vendor: str, least_gold: float
) -> dict[str, Any]:
    """Import labels from answers to a batch; `results` is the file with the answers."""
    items, guidelines_id = read_key(folder / KEY)
    found = take_back(returned, items, vendor, guidelines_id, least_gold=least_gold)
    if not found.rows:
        raise DataError(f"{results} holds no answer; is it the results file of this batch?")
    if found.rejected:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found.rejected)
        atomic_write(results.with_suffix(".rejected.jsonl"), "".join(lines))
    with LabelStore(store) as labels:
        known = {c.id for c in labels.comparisons()}
        foreign = [label for label in found.labels if label.comparison_id not in known]
        if foreign:
            raise DataError(
                f"{len(foreign)} of {len(found.labels)} answers are about comparisons that {shown(store)} does not "
                "have: it is not the store that this batch came from"
            )
        contradicting = labels.differing(found.labels)
        new = labels.add_labels(found.labels)
        labels.add_gold((asked, 1.0) for asked, _ in found.checks)
        labels.add_checks(labels.as_stored(found.checks, gold=True))
        failing = {f"{vendor}:{row['worker']}" for row in found.rejected if row["reason"] == FAILS}
        kept = sum(label.annotator in failing for label in labels.labels()) if failing else 0
    counts = {"new_labels": new, "contradicting": contradicting}
    return {**found.report(), **counts, "labels_kept_of_who_fails_by_now": kept}
