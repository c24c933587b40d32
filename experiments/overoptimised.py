"""Three reward models against one, a quarter of the labels flipped: gold at its peak and where PPO ends.

usage: python experiments/overoptimised.py (options: see study.py)
Annotators answer at random half of the time. Every arm learns from the same labels; PPO without a guard, with a KL
target of 16 nats, so that a reward can be over-optimised. Gold is the mean of every update's own answers, in standard
deviations of gold on SFT's; peak and end are means over five updates.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import Cell, Figures, Row, Study, main, ppo_of, read_json, run_to

from burnish.rehearse.world import golds
from burnish.report.charts import figure, line
from burnish.report.embed import Chart

WINDOW = 5
LABELS = ["label.simulated.spam_share=0.5", "label.simulated.noise=0.1"]
PPO = ["ppo.updates=40", "ppo.kl.target=16"]
ARMS = {
    "one": ["reward.members=1"],
    "mean of three": [],
    "UWO of three": ["reward.aggregate=uwo", "reward.uwo_lambda=0.5"],
    "mean - std of three": ["reward.aggregate=mean_std"],
    "least of three": ["reward.aggregate=min"],
    "weights of three": ["reward.aggregate=weights", "reward.shared_head=true"],
}


def measure(cell: Cell, room: Path) -> Figures:
    """Train the arm's rewards, run PPO, and look at gold after every update."""
    sets = [f"seed={cell.seed}", *LABELS, *PPO]
    start = f"overoptimised-{cell.seed}"
    run_to(room, start, sets, "label")
    name = f"{start}-{cell.arm.replace(' ', '-')}"
    path = run_to(room, name, [*sets, *cell.settings], "reward", start)
    gold, kl, score = [], [], []
    with ppo_of(path) as (ppo, _):
        for step in ppo.updates():
            assert ppo.experience is not None
            rollout = ppo.experience.judged
            gold.append(golds(rollout.prompts, rollout.texts))
            kl.append(step["kl"])
            score.append(step["score"])
    sd = float(np.std(gold[0]))
    curve = (np.mean(gold, 1) - np.mean(gold[0])) / sd
    smooth = np.convolve(curve, np.ones(WINDOW) / WINDOW, "valid")
    examined = read_json(path / "reward" / "examination.json")
    return {
        "peak": float(smooth.max()),
        "end": float(smooth[-1]),
        "lost": float(smooth.max() - smooth[-1]),
        "kl_at_peak": float(np.mean(kl[int(smooth.argmax()) : int(smooth.argmax()) + WINDOW])),
        "kl": float(np.mean(kl[-WINDOW:])),
        "score": float(np.mean(score[-WINDOW:]) - score[0]),
        "accuracy": examined["accuracy"]["value"],
        "error_correlation": examined["error_correlation"],
        "curve": smooth.tolist(),
        "kl_curve": np.convolve(kl, np.ones(WINDOW) / WINDOW, "valid").tolist(),
    }


def plots(rows: Sequence[Row]) -> list[Chart]:
    """Gold over KL, the mean over seeds."""
    traces: list[Any] = []
    for colour, arm in enumerate(ARMS):
        own = [row["figures"] for row in rows if row["arm"] == arm]
        if own:
            x = np.mean([f["kl_curve"] for f in own], 0).tolist()
            traces.append(line(x, np.mean([f["curve"] for f in own], 0).tolist(), arm, colour))
    return [("Gold", "Over the KL of the policy to SFT.", figure(traces, "gold, sd of SFT", "KL, nats"))]


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "peak": "gold at its peak",
                "end": "gold at the end",
                "lost": "lost",
                "kl": "KL at the end",
                "score": "reward gained",
                "accuracy": "held-out accuracy",
                "error_correlation": "errors correlate",
            },
            against="one",
            compared=("peak", "end"),
            plots=plots,
        )
    )
