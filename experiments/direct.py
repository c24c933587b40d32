"""DPO over-optimises too: losses, likelihood and the true preference over six epochs on the same labels.

usage: python experiments/direct.py (options: see study.py)
A quarter of the labels is flipped. After every epoch: gold against SFT on held-out prompts, KL, and how likely the
chosen answers are against SFT (nats an answer). Peak and end are of the six epochs.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from candidates import against_sft
from study import Cell, Figures, Row, Study, main, place_of, run_to

from burnish.config.dpo import DPOConfig
from burnish.models.optim import USUAL, ladder
from burnish.models.pairs import EncodedPairs
from burnish.policy.dpo import DPO
from burnish.report.charts import figure, line
from burnish.report.embed import Chart

EPOCHS = 6
LABELS = ["label.simulated.spam_share=0.5", "label.simulated.noise=0.1"]
ARMS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "sigmoid, smoothed": {"label_smoothing": 0.25},
    "IPO": {"loss": "ipo"},
    "per token": {"per_token": True},
    "likelihood kept up": {"nll": 1.0},
}


def measure(cell: Cell, room: Path) -> Figures:
    """Six epochs."""
    path = run_to(room, f"direct-{cell.seed}", [f"seed={cell.seed}", *LABELS], "label")
    config = DPOConfig(epochs=EPOCHS, **cell.settings)
    rows, likely = [], []
    with place_of(path) as place:
        models = place.models
        dpo = DPO(
            policy=models.new_policy(),
            reference=models.reference(),
            pairs=EncodedPairs(models.base, models.codec, place.data.parts["members"]),
            config=config,
            learning_rate=ladder(models.base)[USUAL] / 4,
            seed=cell.seed,
            smoothing=config.label_smoothing if config.label_smoothing != "auto" else 0.0,
        )
        dpo.policy.temperature = dpo.reference.temperature = 1.0
        per_epoch = dpo.steps // EPOCHS
        for stats in dpo.updates():
            likely.append(stats.values.get("chosen_logratio"))
            if stats.step % per_epoch == 0:
                rows.append(against_sft(place, dpo.policy, f"dpo-{stats.step}"))
                dpo.policy.temperature = 1.0
    gains = [row["gain"] for row in rows]
    return {
        "peak": max(gains),
        "peak_epoch": float(np.argmax(gains) + 1),
        "end": gains[-1],
        "lost": max(gains) - gains[-1],
        "kl": rows[-1]["kl"],
        "chosen": float(np.mean([v for v in likely[-per_epoch:] if v is not None])),
        "curve": gains,
        "kl_curve": [row["kl"] for row in rows],
    }


def plots(rows: Sequence[Row]) -> list[Chart]:
    """Gold over KL, the mean over seeds."""
    traces = []
    for colour, arm in enumerate(ARMS):
        own = [row["figures"] for row in rows if row["arm"] == arm]
        if own:
            x, y = (np.mean([f[name] for f in own], 0).tolist() for name in ("kl_curve", "curve"))
            traces.append(line(x, y, arm, colour))
    return [("Gold", "After every epoch.", figure(traces, "gold gained, sd", "KL, nats"))]


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "peak": "gold at its peak",
                "peak_epoch": "epoch of the peak",
                "end": "gold at the end",
                "lost": "lost",
                "kl": "KL at the end",
                "chosen": "log-ratio of the chosen",
            },
            against="sigmoid",
            compared=("peak", "end"),
            plots=plots,
        )
    )
