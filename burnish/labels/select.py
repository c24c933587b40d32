"""Selection of comparisons to label.

Comparisons on which reward models disagree are selected, beside a random part. The part that
measures is never selected this way.
"""

from __future__ import annotations

import json
import random
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from burnish.data.lines import read_lines
from burnish.data.store import LabelStore
from burnish.errors import DataError
from burnish.records import Comparison, content_id

How = Literal["variance", "bald", "entropy", "d_optimal", "random", "reserved"]
Array = npt.NDArray[np.float64]


def acquisition(margins: Array, how: How) -> Array:
    """Compute how much a label of each comparison is worth (N,) from margins (N, K).

    A margin is the raw score of the first answer minus that of the second, of K reward models. A
    raw score is not a probability; a Bradley-Terry margin is a log-odds, and its sigmoid p is one.

    variance: Var_k(margin). entropy: H(mean_k p), high also if all models are equally unsure. bald:
    H(mean_k p) - mean_k H(p), what the models disagree about (Houlsby et al. 2011, eq. 2), in nats.
    Raises DataError for a score that is missing or not finite.
    """
    assert margins.ndim == 2
    assert how in ("variance", "bald", "entropy"), how
    bad = int((~np.isfinite(margins)).any(axis=1).sum())
    if bad:
        raise DataError(
            f"{bad} of {len(margins)} comparisons have no finite score; look at the reward models"
        )
    if how == "variance":
        return np.asarray(margins.var(axis=1))
    p = 1.0 / (1.0 + np.exp(-np.clip(margins, -50, 50)))
    mean = _entropy(p.mean(axis=1))
    return mean - _entropy(p).mean(axis=1) if how == "bald" else mean


def _entropy(p: Array) -> Array:
    """Compute the entropy of a coin, in nats."""
    p = np.clip(p, 1e-12, 1 - 1e-12)
    return np.asarray(-(p * np.log(p) + (1 - p) * np.log1p(-p)))


def is_reserved(comparison_id: str, share: float) -> bool:
    """Check whether a comparison belongs to the fixed random part that measures."""
    return int(content_id("reserved", comparison_id), 16) / 16**16 < share


def choose(
    ids: Sequence[str], scores: Array | None, n: int, *, how: How, random_share: float, seed: int
) -> list[tuple[int, str]]:
    """Choose n as (row, reason): best by score plus a random share; all random without scores."""
    rng = random.Random(f"select-{seed}")
    n = min(n, len(ids))
    by_score: list[int] = []
    if scores is not None:
        assert len(scores) == len(ids)
        wanted = n - round(random_share * n)
        # Order equal scores by a hash, so that the store's order does not matter.
        order = sorted(range(len(ids)), key=lambda i: (-scores[i], content_id("tie", ids[i], str(seed))))
        by_score = order[:wanted]
    taken = set(by_score)
    rest = rng.sample([i for i in range(len(ids)) if i not in taken], n - len(by_score))
    return [*((i, how) for i in by_score), *((i, "random" if how != "reserved" else how) for i in rest)]


def unlabelled(store: LabelStore, only: Path | None = None) -> list[Comparison]:
    """Return comparisons without a label, in their order.

    With a selection, return those that it names and no person has labelled, in its order. A
    selection may name comparisons of which a judge was unsure.
    """
    labels = (label for label in store.labels() if only is None or label.source == "human")
    return selected(store, {label.comparison_id for label in labels}, only)


def labelled(store: LabelStore) -> list[Comparison]:
    """Return comparisons that have a label."""
    known = {label.comparison_id for label in store.labels()}
    return [c for c in store.comparisons() if c.id in known]


def selected(store: LabelStore, without: Container[str], only: Path | None) -> list[Comparison]:
    """Return comparisons not in `without`, or those that a selection names, in its order."""
    found = {c.id: c for c in store.comparisons() if c.id not in without}
    if only is None:
        return list(found.values())
    named = [json.loads(line)["comparison"] for _, line in read_lines(only) if line.strip()]
    return [found[i] for i in named if i in found]
