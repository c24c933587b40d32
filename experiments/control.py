"""How PPO comes to its KL target: targets of 2, 4 and 8 nats, rewards 0.3, 1 and 3 times as large, one configuration.

usage: python experiments/control.py (options: see study.py)
All arms start from one run's reward models; PPO without a guard, as a quickstart has it but for target and scale. The
last quarter are its last nine updates, means of 64 responses each. Rise: updates to 90 % of the target; overshoot: the
highest mean of three updates in a row above the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from study import Cell, Figures, Row, Study, main, ppo_of, run_to

from burnish.report.charts import figure, line
from burnish.report.embed import Chart

TARGETS, SCALES = (2, 4, 8), (0.3, 1, 3)
CENTRE = "target 4, scale 1"
ARMS = {
    f"target {target}, scale {scale}": [f"ppo.kl.target={target}", f"ppo.ensemble_weight={scale}"]
    for target in TARGETS
    for scale in SCALES
}
SHAPED = {
    "target 4, bounded": ["ppo.shaping.bounded=true"],
    "target 4, clipped at 1": ["ppo.shaping.clip=1"],
    "target 4, running scale": ["ppo.shaping.normalise=running"],
    "target 4, value warm-up": ["ppo.value_warmup=4"],
}
SETTLED = 0.15  # of the target


def measure(cell: Cell, room: Path) -> Figures:
    """PPO from stored rewards."""
    path = run_to(room, f"control-{cell.seed}", [f"seed={cell.seed}"], "reward")
    with ppo_of(path, cell.settings) as (ppo, _):
        rows = list(ppo.updates())
        target = ppo.config.kl.target
    kl = np.array([row["kl"] for row in rows])
    last = kl[-(len(kl) // 4) :]
    smooth = np.convolve(kl, np.ones(3) / 3, "valid")
    risen = np.flatnonzero(smooth >= 0.9 * target)
    return {
        "kl": float(last.mean()),
        "error": float(last.mean() / target - 1),
        "within": f"{abs(last.mean() / target - 1) <= SETTLED}",
        "rise": float(risen[0] + 3) if len(risen) else None,
        "overshoot": float(max(0.0, smooth.max() / target - 1)),
        "coefficient": float(rows[-1]["kl_coef"] / ppo.controller.max_coef * ppo.config.kl.max_coef),
        "score": float(np.mean([row["score"] for row in rows[-len(last) :]]) - rows[0]["score"]),
        "curve": kl.tolist(),
    }


def plots(rows: Sequence[Row]) -> list[Chart]:
    """KL over updates, in targets."""
    traces: list[Any] = []
    for row in rows:
        arm = row["arm"]
        if row["seed"] == 0 and arm in ARMS:
            target = next(t for t in TARGETS if f"target {t}," in arm)
            curve = [k / target for k in row["figures"]["curve"]]
            traces.append(line(list(range(1, len(curve) + 1)), curve, arm, len(traces)))
    return [("KL", "In targets, by update.", figure(traces, "KL / target", "update"))]


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS | SHAPED,
            measure=measure,
            columns={
                "kl": "KL, last quarter",
                "error": "off the target",
                "within": "within 15 %",
                "rise": "updates to 90 %",
                "overshoot": "overshoot",
                "coefficient": "coefficient, sd",
                "score": "score gained",
            },
            seeds=(0,),
            plots=plots,
            notes=(f"{CENTRE}: give --only {CENTRE!r} --seeds 0 1 2.",),
        )
    )
