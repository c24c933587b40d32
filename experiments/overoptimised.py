"""Three reward models against one, a quarter of the labels flipped: gold at its peak and where PPO ends; and where it
ends with no penalty at all.

usage: python experiments/overoptimised.py (options: see study.py)
Annotators answer at random half of the time. Every arm learns from the same labels; PPO without a guard, with a KL
target of 16 nats, so that a reward can be over-optimised, but for the last two: one reward model without a penalty,
against three with the adaptive penalty as it is. Gold is the mean of every update's own answers, in standard
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
KLS = (8, 16)  # nats
LABELS = ["label.simulated.spam_share=0.5", "label.simulated.noise=0.1"]
PPO = ["ppo.updates=40", "ppo.kl.target=16"]
FAR = ["ppo.kl.target=24", "ppo.updates=60"]  # so that KL reaches 16 nats
FREE, HELD = "one, no penalty", "mean of three, adaptive penalty at 4"
ARMS = {
    "one": ["reward.members=1"],
    "mean of three": [],
    "UWO of three": ["reward.aggregate=uwo", "reward.uwo_lambda=0.5"],
    "mean - std of three": ["reward.aggregate=mean_std"],
    "least of three": ["reward.aggregate=min"],
    "weights of three": ["reward.aggregate=weights", "reward.shared_head=true"],
    "mean of three, far": FAR,
    "three at different places, far": ["reward.readings=different", *FAR],
    "one, three times the steps, far": ["reward.members=1", "reward.epochs=3", *FAR],
    FREE: ["reward.members=1", "ppo.kl.adaptive=false", "ppo.kl.init_coef=1e-9"],
    HELD: ["ppo.kl.target=4"],
}


def measure(cell: Cell, room: Path) -> Figures:
    """Train the arm's rewards, run PPO, and look at gold after every update."""
    sets = [f"seed={cell.seed}", *LABELS, *PPO]
    start = f"overoptimised-{cell.seed}"
    run_to(room, start, sets, "label")
    name = f"{start}-{cell.arm.replace(',', '').replace(' ', '-')}"
    path = run_to(room, name, [*sets, *cell.settings], "reward", start)
    gold, kl, score, spread = [], [], [], []
    with ppo_of(path) as (ppo, _):
        for step in ppo.updates():
            assert ppo.experience is not None
            rollout = ppo.experience.reward_rollout
            gold.append(golds(rollout.prompts, rollout.texts))
            kl.append(step["kl"])
            score.append(step["score"])
            spread.append(step["score_sd"])
    sd = float(np.std(gold[0]))
    curve = (np.mean(gold, 1) - np.mean(gold[0])) / sd
    smooth = np.convolve(curve, np.ones(WINDOW) / WINDOW, "valid")
    examined = read_json(path / "reward" / "examination.json")
    return {
        "peak": float(smooth.max()),
        "end": float(smooth[-1]),
        "lost": float(smooth.max() - smooth[-1]),
        **{f"at_{kl_of}": at_kl(kl, curve, kl_of) for kl_of in KLS},
        "kl_at_peak": float(np.mean(kl[int(smooth.argmax()) : int(smooth.argmax()) + WINDOW])),
        "kl": float(np.mean(kl[-WINDOW:])),
        "score": float(np.mean(score[-WINDOW:]) - score[0]),
        "accuracy": examined["accuracy"]["value"],
        "error_correlation": examined["error_correlation"],
        "curve": smooth.tolist(),
        "proxy_curve": np.convolve(
            (np.array(score) - score[0]) / spread[0], np.ones(WINDOW) / WINDOW, "valid"
        ).tolist(),
        "kl_curve": np.convolve(kl, np.ones(WINDOW) / WINDOW, "valid").tolist(),
    }


def at_kl(kl: Sequence[float], curve: np.ndarray, wanted: float) -> float | None:
    """Return the mean of a curve over the WINDOW updates nearest to a KL; None if PPO did not come within a fifth."""
    near = np.argsort(np.abs(np.array(kl) - wanted))[:WINDOW]
    return (
        float(curve[near].mean()) if abs(float(np.mean(np.array(kl)[near])) - wanted) < wanted / 5 else None
    )


def plots(rows: Sequence[Row]) -> list[Chart]:
    """Gold over KL; reward and gold by update where nothing holds PPO, and where all does. Means over seeds."""
    traces: list[Any] = []
    both: list[Any] = []
    for colour, arm in enumerate(ARMS):
        own = [row["figures"] for row in rows if row["arm"] == arm]
        if not own:
            continue
        means = {n: np.mean([f[n] for f in own], 0).tolist() for n in ("kl_curve", "curve", "proxy_curve")}
        traces.append(line(means["kl_curve"], means["curve"], arm, colour))
        if arm in (FREE, HELD):
            updates = list(range(WINDOW, WINDOW + len(means["curve"])))
            hue = int(arm == HELD)
            both.append(line(updates, means["proxy_curve"], f"{arm}: reward", hue, dash="dot"))
            both.append(line(updates, means["curve"], f"{arm}: true preference", hue))
    return [
        ("Gold", "Over the KL of the policy to SFT.", figure(traces, "gold, sd of SFT", "KL, nats")),
        ("Turnover", "Both in standard deviations of SFT's answers.", figure(both, "gained over SFT, sd")),
    ]


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
                **{f"at_{kl}": f"gold at {kl} nats" for kl in KLS},
                "kl": "KL at the end",
                "score": "reward gained",
                "accuracy": "held-out accuracy",
                "error_correlation": "errors correlate",
            },
            against="one",
            compared=("peak", "end", *(f"at_{kl}" for kl in KLS)),
            plots=plots,
        )
    )
