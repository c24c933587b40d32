"""Export of a store's labels, or of their consensus, as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from burnish.data.exchange import dump_labels, dump_rankings
from burnish.data.preferences import write_preferences
from burnish.data.store import LabelStore
from burnish.labels.consensus import How, consensus_of

Shape = Literal["labels", "pairs", "rankings"]


def dump_store(store: LabelStore, file: Path, shape: Shape, how: How = "mean") -> int:
    """Write labels, or their consensus as pairs or rankings, and return the number of rows."""
    if shape == "labels":
        return dump_labels(store, file)
    found = consensus_of(store.labels(), how)
    if shape == "rankings":
        return dump_rankings(store, file, found)
    pairs = store.preferences(consensus=found)
    write_preferences(pairs, file)
    return len(pairs)
