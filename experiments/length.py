"""Annotators who like long answers: where PPO's length goes, and what the true preference says, by correction.

usage: python experiments/length.py (options: see study.py)
Each word adds 0.15 to what annotators see in an answer. `concise` samples under an instruction, without a correction;
`odin` trains a second head that learns the length. The gate is passed, whatever it says.
"""

from __future__ import annotations

from pathlib import Path

from study import Cell, Figures, Study, main, read_json, run_to

BIAS = 0.15
ARMS = {
    "none": [],
    "sqrt": ["reward.length=sqrt"],
    "regress": ["reward.length=regress"],
    "penalty": ["reward.length=penalty"],
    "odin": ["reward.length=odin"],
    "concise": ["ppo.concise='It is a short story.'"],
}


def measure(cell: Cell, room: Path) -> Figures:
    """Figures of one run."""
    sets = [f"seed={cell.seed}", f"label.simulated.length_bias={BIAS}", "ppo.gate=ignored"]
    start = f"length-{cell.seed}"
    run_to(room, start, sets, "label")
    path = run_to(room, f"{start}-{cell.arm}", [*sets, *cell.settings], start=start)
    evaluation = read_json(path / "evaluation.json")
    bias = read_json(path / "reward" / "examination.json", "length")
    policies = evaluation["policies"]
    return {
        "sft": policies["sft"]["mean_length"],
        "ppo": policies.get("ppo", {}).get("mean_length"),
        "true": (evaluation["gold"].get("ppo") or {}).get("win_rate"),
        "before": bias["reward_correlation"],
        "after": bias.get("corrected_correlation"),
    }


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "ppo": "PPO's tokens",
                "sft": "SFT's",
                "true": "true win rate",
                "before": "score and length",
                "after": "after correction",
            },
            against="none",
            compared=("ppo", "true"),
        )
    )
