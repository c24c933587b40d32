"""Consensus of a comparison's labels: how strongly its first side is preferred.

The consensus is the mean of the labels, or the estimate of a model that weights annotators by
their agreement with the others (Dawid and Skene 1979, by crowd-kit). The model has one skill per
annotator. It has no confusion matrix of first and second side, because the stored order of the
sides is arbitrary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from burnish.records import Label

How = Literal["mean", "dawid_skene"]
Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int32]
ITERATIONS = 50
SURE = 1e-3  # least distance of a model's consensus from 0 and 1


@dataclass(frozen=True)
class Votes:
    """Labels as columns, in the order of their times.

    `comparison` and `annotator` are indices into `ids` and `names`. `value` is the preference for
    the first side. `swapped` is 1 or 0, or -1 if it is unknown which side was shown first.
    """

    ids: Sequence[str]
    names: Sequence[str]
    comparison: Indices
    annotator: Indices
    value: Array
    swapped: npt.NDArray[np.int8]

    def __len__(self) -> int:
        return len(self.value)


def _utc(at: str) -> str:
    """Return an ISO 8601 time in UTC, so that times sort as text; other text stays as it is."""
    try:
        time = datetime.fromisoformat(at)
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC).isoformat()
    except (ValueError, OverflowError):
        return at


def votes_of(labels: Iterable[Label]) -> Votes:
    """Convert labels to columns sorted by time; labels with equal times keep their order."""
    ids: dict[str, int] = {}
    names: dict[str, int] = {}
    times: list[str] = []
    columns: list[tuple[int, int, float, int]] = []
    for label in labels:
        shown = -1 if label.swapped is None else int(label.swapped)
        number = ids.setdefault(label.comparison_id, len(ids))
        times.append(_utc(label.at or ""))
        columns.append((number, names.setdefault(label.annotator, len(names)), label.preference, shown))
    if not columns:
        none = np.zeros(0, dtype=np.int32)
        return Votes([], [], none, none, np.zeros(0), np.zeros(0, dtype=np.int8))
    order = np.argsort(np.array(times), kind="stable")
    c, a, v, s = zip(*columns, strict=True)
    return Votes(
        list(ids),
        list(names),
        np.array(c, dtype=np.int32)[order],
        np.array(a, dtype=np.int32)[order],
        np.array(v, dtype=np.float64)[order],
        np.array(s, dtype=np.int8)[order],
    )


@dataclass(frozen=True)
class Weighed:
    """Consensus (N,) of every comparison and accuracy (A,) of every annotator.

    `accuracy` is the skill that the model gives an annotator (nan if the model did not weigh them),
    or None for the mean. `overlap` is the share of comparisons with two labels or more.
    """

    consensus: Array
    accuracy: Array | None
    overlap: float


def weigh(votes: Votes, how: How) -> Weighed:
    """Return the consensus; the mean if no comparison has two labels to weigh annotators by."""
    n = len(votes.ids)
    counts = np.bincount(votes.comparison, minlength=n)
    mean = np.bincount(votes.comparison, weights=votes.value, minlength=n) / np.maximum(counts, 1)
    overlap = float((counts > 1).mean()) if n else 0.0
    if how == "mean" or not overlap:
        return Weighed(mean, None, overlap)
    return _dawid_skene(votes, mean, counts, overlap)


def _dawid_skene(votes: Votes, mean: Array, counts: npt.NDArray[np.intp], overlap: float) -> Weighed:
    import pandas
    from crowdkit.aggregation import OneCoinDawidSkene

    said = np.where(votes.value > 0.5, "first", np.where(votes.value < 0.5, "second", "tie"))
    shared = counts[votes.comparison] > 1  # a single label says nothing about its annotator
    table = pandas.DataFrame(
        {"task": votes.comparison[shared], "worker": votes.annotator[shared], "label": said[shared]}
    )
    with warnings.catch_warnings():  # crowd-kit uses pandas features that pandas 4 will remove
        warnings.simplefilter("ignore", DeprecationWarning)
        model: Any = OneCoinDawidSkene(n_iter=ITERATIONS).fit(table)
    probabilities = model.probas_
    zero = np.zeros(len(probabilities))
    first, tie = (
        np.asarray(probabilities[c], dtype=np.float64) if c in probabilities else zero
        for c in ("first", "tie")
    )
    consensus = mean.copy()
    consensus[np.asarray(probabilities.index)] = np.clip(first + tie / 2, SURE, 1 - SURE)
    accuracy = np.full(len(votes.names), np.nan)
    accuracy[np.asarray(model.skills_.index)] = model.skills_.to_numpy()
    return Weighed(consensus, accuracy, overlap)


def consensus_of(labels: Iterable[Label], how: How) -> Mapping[str, float]:
    """Return the consensus preference for the first side, by comparison."""
    votes = votes_of(labels)
    found: Any = weigh(votes, how).consensus
    return dict(zip(votes.ids, found.tolist(), strict=True))


def opinions(labels: Iterable[Label]) -> dict[str, float]:
    """Return the mean preference for the first side by comparison, without judges' labels."""
    given: dict[str, list[float]] = {}
    for label in labels:
        if label.source != "judge":
            given.setdefault(label.comparison_id, []).append(label.preference)
    return {i: sum(values) / len(values) for i, values in given.items()}
