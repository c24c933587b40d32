"""People as labelers: in a terminal, and a run that waits for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore, Place, shown
from burnish.errors import ConfigError, DataError, Waiting
from burnish.labels.terminal import Session
from burnish.pipeline.vendors import selected
from burnish.records import Comparison


def ask_in_terminal(
    file: Place, name: str, only: Path | None, guidelines: str | None, limit: int | None, most: int = 2
) -> None:
    """A session with one person, who is asked what they have not answered yet, `most` answers at a time."""
    if not name.strip() or ":" in name:
        raise ConfigError(f"--name {name!r} is no name; give one without a colon")
    annotator = f"person:{name.strip()}"
    told = load_guidelines(guidelines)
    console = Console()
    with LabelStore(file) as store:
        answered = {label.comparison_id for label in store.labels() if label.annotator == annotator}
        asked = selected(store, answered, only)[:limit]
        if not asked:
            raise DataError(f"{shown(file)} has nothing that {name} has not answered")
        store.add_guidelines(told)
        Session(
            asked,
            annotator,
            told.id,
            told.text,
            keep=store.add_labels,
            read=console.input,
            console=console,
            most=most,
        ).carry_out()


def wait_for_people(
    store: LabelStore, asked: Sequence[Comparison], path: Path, labels_per_pair: int, missing_share: float
) -> None:
    """Raises Waiting while more than a share of what was asked has fewer labels than were asked for."""
    given: dict[str, int] = {}
    for label in (label for label in store.labels() if label.source == "human"):
        given[label.comparison_id] = given.get(label.comparison_id, 0) + 1
    missing = sum(given.get(c.id, 0) < labels_per_pair for c in asked)
    if missing > missing_share * len(asked):
        raise Waiting(
            f"waiting for people: {missing} of {len(asked)} comparisons have fewer than {labels_per_pair} "
            f"label(s). `burnish label terminal {path} --name YOU` asks you, `burnish label export` sends them to "
            "others; then give the same command again (label.missing_share lets it go on without the last of them)"
        )
