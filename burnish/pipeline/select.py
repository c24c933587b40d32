"""Acquisition scores by a reward ensemble for comparisons without a label."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from burnish.labels.design import d_optimal
from burnish.labels.select import How, acquisition
from burnish.models.heads import read_features
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import Models, fits
from burnish.records import Comparison, Preference
from burnish.reward.ensemble import RewardEnsemble
from burnish.stats import sigmoid


def usable(models: Models, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Return the comparisons whose prompt and responses are within the limits of a run's models."""
    return [
        c
        for c in comparisons
        if fits(
            models.codec,
            models.config,
            c.prompt,
            *((r.text, r.ended is not False) for r in (c.first, c.second)),
        )
    ]


def as_pair(comparison: Comparison) -> Preference:
    """Return a comparison as a pair, with its first response in place of the preferred one."""
    first, second = comparison.first, comparison.second
    return Preference(
        comparison.prompt,
        first.text,
        second.text,
        chosen_ended=first.ended is not False,
        rejected_ended=second.ended is not False,
    )


def worth(
    ensemble: RewardEnsemble,
    models: Models,
    comparisons: Sequence[Comparison],
    how: How,
    n: int,
    past: Sequence[Comparison],
) -> npt.NDArray[np.float64]:
    """Return how much a label of each comparison would be worth (N,).

    With D-optimal design it is the gain of each of the `n` comparisons picked beside `past`, 0 for all
    others. The features are what the first member's head reads.
    """
    pairs = _encoded(ensemble, models, comparisons)
    margins = _margins(ensemble, pairs)
    if how != "d_optimal":
        return acquisition(margins, how)
    if n == 0:
        return np.zeros(len(comparisons))
    before = _encoded(ensemble, models, usable(models, past)) if past else None
    picked, gains = d_optimal(
        _features(ensemble, pairs),
        _spread(margins),
        min(n, len(comparisons)),
        past=None
        if before is None or not len(before)
        else _features(ensemble, before) * np.sqrt(_spread(_margins(ensemble, before)))[:, None],
        groups=[c.prompt.group for c in comparisons],
    )
    scores = np.zeros(len(comparisons))
    scores[picked] = gains
    return scores


def _encoded(ensemble: RewardEnsemble, models: Models, comparisons: Sequence[Comparison]) -> EncodedPairs:
    return EncodedPairs(ensemble.base, models.codec, [as_pair(c) for c in comparisons])


def _margins(ensemble: RewardEnsemble, pairs: EncodedPairs) -> npt.NDArray[np.float64]:
    """Return each member's raw score of the first response minus that of the second (N, K)."""
    first, second = pairs.sides(ensemble.raw(pairs.sequences))
    return np.asarray((first - second).double().cpu().numpy())


def _features(ensemble: RewardEnsemble, pairs: EncodedPairs) -> npt.NDArray[np.float32]:
    """Return the first member's head features of the first response minus those of the second (N, D)."""
    first, second = pairs.sides(read_features(ensemble.members[0], pairs.sequences))
    return np.asarray((first - second).float().cpu().numpy())


def _spread(margins: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return p (1 - p) of the members' mean probability (N,)."""
    p = sigmoid(margins).mean(axis=1)
    return np.asarray(p * (1 - p))
