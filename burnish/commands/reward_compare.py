"""Comparison of two runs' reward models on the same pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from burnish.commands.reward_examine import score_pairs
from burnish.commands.reward_score import open_ensemble
from burnish.errors import DataError
from burnish.pipeline.context import RunContext
from burnish.records import Preference
from burnish.reward.ensemble import RewardEnsemble
from burnish.reward.scrutiny import accuracy
from burnish.stats import clustered_bootstrap, pearson

SHOWN = 5
FEWEST = 2  # prompts


def compare_rewards(first: Path, second: Path, on: str | None, split: str = "train") -> dict[str, Any]:
    """Compare the reward models of two runs on the first's validation pairs, or on a file.

    Returns both accuracies, their difference with an interval by prompt, and the pairs on which they
    differ most. Pairs of prompts that either run has learned from are left out.
    """
    (place, ours), (other, theirs) = open_ensemble(first), open_ensemble(second)
    try:
        pairs = place.data.parts["validation"] if on is None else place.data.read(on, split).pairs
        return _compared(place, ours, other, theirs, pairs)
    finally:
        for run in (place, other):
            run.data.close()


def _compared(
    place: RunContext,
    ours: RewardEnsemble,
    other: RunContext,
    theirs: RewardEnsemble,
    pairs: Sequence[Preference],
) -> dict[str, Any]:
    learned = {
        p.prompt.group
        for run in (place, other)
        for role in ("members", "watcher")
        for p in run.data.parts[role]
    }
    kept = [p for p in pairs if p.prompt.group not in learned and other.data.misfit(p) is None]
    groups = [p.prompt.group for p in kept]
    if len(set(groups)) < FEWEST:
        raise DataError(
            f"{len(kept)} of {len(pairs)} pairs are of prompts that neither has learned from; give others with --on"
        )
    margins = [score_pairs(e, w, kept).margin for e, w in ((ours, place), (theirs, other))]
    confidence = place.config.evaluate.confidence
    right = [margin > 0 for margin in margins]
    apart = right[0].astype(float) - right[1].astype(float)
    differ = np.flatnonzero(right[0] != right[1])
    order = sorted(differ.tolist(), key=lambda i: -abs(float(margins[0][i] - margins[1][i])))
    return {
        "runs": [str(run.journal.path) for run in (place, other)],
        "pairs": len(kept),
        "left_out": len(pairs) - len(kept),
        "accuracy": [accuracy(r, groups, confidence) for r in right],
        "difference": asdict(
            clustered_bootstrap(apart.tolist(), groups, seed=place.config.seed, confidence=confidence)
        ),
        "agree": float((right[0] == right[1]).mean()),
        "margin_correlation": pearson(margins[0].tolist(), margins[1].tolist()),
        "apart": [
            {
                "prompt": kept[i].prompt.text,
                "preferred": kept[i].chosen,
                "other": kept[i].rejected,
                "margins": [float(m[i]) for m in margins],
            }
            for i in order[:SHOWN]
        ],
    }
