"""What regularises a reward model: dropout, weight decay, smoothed and soft labels, margins, early stopping, centring.

usage: python experiments/regularisers.py (options: see study.py)
Three members on the rehearsal's labels (annotators as noisy as the quickstart's, three labels a pair, so that some
contradict each other), each arm one setting away from the defaults. Accuracy on pairs of other prompts, by their labels
and by the true preference.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from members import DEPTH, margins, members
from study import Cell, Figures, Study, main, run_to

from burnish.config.reward import RewardConfig
from burnish.models.heads import Pooling
from burnish.models.optim import USUAL, ladder
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import RunContext
from burnish.records import Preference
from burnish.rehearse.world import gold
from burnish.reward.scrutiny import disagreement, diversity, reliability
from burnish.runs.directory import RunDirectory

ARMS = {
    "defaults": {},
    "no dropout": {"dropout": 0.0},
    "dropout 0.3": {"dropout": 0.3},
    "no weight decay": {"weight_decay": 0.0},
    "weight decay 0.1": {"weight_decay": 0.1},
    "no label smoothing": {"label_smoothing": 0.0},
    "label smoothing 0.2": {"label_smoothing": 0.2},
    "hard labels": {"soft_labels": False},
    "margin 1": {"margin": 1.0},
    "no centring": {"center_coef": 0.0},
    "BSR 0.1": {"bsr_coef": 0.1, "center_coef": 0.0},
    "three epochs": {"epochs": 3},
    "three epochs, early stopping": {"epochs": 3, "early_stopping": 0.15},
    "no bootstrap": {"bootstrap": False},
    "one head to begin with": {"shared_head": True},
}
COLUMNS = {
    "accuracy": "accuracy, by labels",
    "single": "one member's",
    "true": "by the true preference",
    "ece": "ECE",
    "temperature": "temperature",
    "auroc": "AUROC of disagreement",
    "error_correlation": "errors correlate",
}


def figures(
    settings: dict[str, object],
    known: EncodedPairs,
    unseen: EncodedPairs,
    rate: float,
    seed: int,
    pooling: Pooling = "mean",
) -> dict[str, float | None]:
    """What three members with these settings come to."""
    heads = members(known, RewardConfig(**settings), rate, seed, pooling)  # type: ignore[arg-type]
    said = margins(heads, unseen)
    sd = said.std(0)
    margin = (said / sd).mean(1)
    groups = unseen.groups
    foretold = disagreement(said, sd, margin, groups, seed, 0.95)
    apart = diversity(said, sd)
    assert foretold is not None
    assert apart is not None
    calibrated = reliability(said, margin, groups)
    return {
        "accuracy": float((margin > 0).mean()),
        "single": float((said > 0).mean()),
        "ece": calibrated["ece"],
        "temperature": calibrated["temperature"],
        "auroc": foretold["auroc"] and foretold["auroc"]["value"],
        "error_correlation": apart["error_correlation"],
        "margin": margin.tolist(),
    }


def by_truth(margin: Sequence[float], pairs: Sequence[Preference]) -> float:
    """Accuracy by the true preference."""
    apart = np.array([gold(p.prompt, p.chosen) - gold(p.prompt, p.rejected) for p in pairs])
    return float(np.mean((np.array(margin) > 0)[apart != 0] == (apart > 0)[apart != 0]))


def measure(cell: Cell, room: Path) -> Figures:
    """Accuracy and calibration of one setting."""
    sets = [f"seed={cell.seed}", "collect.n_pairs=2048", "data.n_prompts=3600", "label.labels_per_pair=3"]
    place = RunContext.alone(RunDirectory.open(run_to(room, f"regularisers-{cell.seed}", sets, "label")))
    pairs = place.data.store.preferences()
    place.data.close()
    held = {p.prompt.group for p in pairs[::3]}
    base = place.models.base.at(DEPTH, place.models.base.layers)
    known, unseen = (
        EncodedPairs(base, place.models.codec, [p for p in pairs if (p.prompt.group in held) == apart])
        for apart in (False, True)
    )
    found = figures(cell.settings, known, unseen, ladder(base)[USUAL], cell.seed)
    margin = found.pop("margin")
    return {**found, "true": by_truth(margin, unseen.pairs)}  # type: ignore[arg-type]


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns=COLUMNS,
            against="defaults",
            compared=("accuracy", "true"),
        )
    )
