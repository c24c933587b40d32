"""What a reward ensemble says of comparisons that nobody has answered yet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from burnish.models.pairs import EncodedPairs
from burnish.pipeline.data import fits
from burnish.pipeline.models import Models
from burnish.records import Comparison, Preference
from burnish.reward.ensemble import RewardEnsemble


def usable(models: Models, comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Those whose prompt and responses are within the limits of a run's models."""
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
    """A comparison as a pair whose first response stands for the preferred one."""
    first, second = comparison.first, comparison.second
    return Preference(
        comparison.prompt,
        first.text,
        second.text,
        chosen_ended=first.ended is not False,
        rejected_ended=second.ended is not False,
    )


def margins(
    ensemble: RewardEnsemble, models: Models, comparisons: Sequence[Comparison]
) -> npt.NDArray[np.float64]:
    """(N, K) every member's raw score of the first response minus that of the second."""
    pairs = EncodedPairs(
        ensemble.base,
        models.codec,
        [as_pair(c) for c in comparisons],
    )
    first, second = pairs.sides(ensemble.raw(pairs.sequences))
    return np.asarray((first - second).double().cpu().numpy())
