"""Sending, fetching and approval of a batch on Mechanical Turk, and blocking of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from burnish.commands.label_vendors import KEY, take_results
from burnish.data.store import Place
from burnish.errors import ConfigError, DataError
from burnish.labels.items import FAILS, read_key, take_back
from burnish.labels.mturk import (
    MARKET,
    PREVIEW,
    SANDBOX,
    Job,
    Requester,
    as_json,
    market_errors,
    open_client,
)
from burnish.runs.files import atomic_write

RESULTS = "results.jsonl"
VENDOR = "mturk"


def requester(folder: Path, live: bool, client: Any = None) -> Requester:
    """Return the batch on the sandbox, or if `live` on the market, where money is spent.

    Raises DataError for a folder that is no Mechanical Turk batch.
    """
    if not (folder / "template.html").is_file() or not (folder / KEY).is_file():
        raise DataError(
            f"{folder} is no batch for Mechanical Turk; `burnish label export --vendor mturk` writes one"
        )
    return Requester(open_client(MARKET if live else SANDBOX) if client is None else client, folder)


def send(batch: Requester, job: Job, budget: float, on_progress: Callable[[int], None]) -> dict[str, Any]:
    """Create the missing HITs; return their number, their highest cost and where to see them."""
    items = list(read_key(batch.folder / KEY)[0].values())
    with market_errors():
        new = batch.send(items, job, budget, on_progress)
    return {
        "hits": len(batch.hits),
        "new": new,
        "at_most": sum(row["cost"] * row["workers"] for row in batch.hits.values()),
        "at": batch.endpoint,
        "seen_at": PREVIEW.get(batch.endpoint),
    }


def fetch(batch: Requester, store: Place, least_gold: float) -> dict[str, Any]:
    """Import answers so far, as `burnish label import` does, and keep them in results.jsonl."""
    with market_errors():
        returned = batch.returned()
    if not returned:
        raise DataError(f"{batch.folder} has no answers yet; look again later")
    path = batch.folder / RESULTS
    atomic_write(path, as_json(returned))
    return take_results(store, batch.folder, returned, path, VENDOR, least_gold)


def approve(batch: Requester, least_gold: float) -> dict[str, Any]:
    """Approve submitted work except that of workers who fail gold questions; name these workers."""
    items, guidelines_id = read_key(batch.folder / KEY)
    with market_errors():
        gold = take_back(batch.returned(), items, VENDOR, guidelines_id, least_gold=least_gold)
    failing = sorted({row["worker"] for row in gold.rejected if row["reason"] == FAILS})
    with market_errors():
        return {**batch.approve(failing), "failing": failing}


def block(batch: Requester, worker: str, reason: str) -> dict[str, Any]:
    """Block a worker of this batch."""
    if not reason.strip():
        raise ConfigError("--reason is empty, but the worker reads it; give a reason")
    with market_errors():
        if worker not in {row.worker for row in batch.returned()}:
            raise ConfigError(f"{worker} has answered nothing in {batch.folder}; look at its results.jsonl")
        batch.block(worker, reason)
    return {"blocked": worker}
