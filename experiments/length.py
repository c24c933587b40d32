"""Annotators who like long answers: where PPO's length goes, and what the true preference says, by correction.

usage: python experiments/length.py [--seeds 0 1 2] [--arms none sqrt regress concise] [--bias 0.15] [--room DIR]
Each word adds `bias` to what annotators see in an answer. `concise` samples under an instruction, without a correction.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

ARMS = {
    "none": [],
    "sqrt": ["reward.length=sqrt"],
    "regress": ["reward.length=regress"],
    "penalty": ["reward.length=penalty"],
    "concise": ["ppo.concise='It is a short story.'"],
}


def carry_out(arm: str, seed: int, bias: float, room: Path) -> dict[str, Any]:
    """Figures of one run."""
    folder = room / f"{arm}-{seed}"
    sets = [f"seed={seed}", f"label.simulated.length_bias={bias}", *ARMS[arm]]
    arguments = [a for s in sets for a in ("--set", s)]
    call = [sys.executable, "-m", "burnish.cli", "quickstart", "--dir", str(folder), *arguments]
    done = subprocess.run(call, check=False, capture_output=True, text=True)
    if done.returncode not in (0, 10, 11):
        sys.exit(f"{arm}, seed {seed}: {done.stderr}")
    evaluation = json.loads((folder / "evaluation.json").read_text())
    bias_of = json.loads((folder / "reward" / "examination.json").read_text())["length"]
    policies = evaluation["policies"]
    return {
        "sft": policies["sft"]["mean_length"],
        "ppo": policies.get("ppo", {}).get("mean_length"),
        "true": (evaluation["gold"].get("ppo") or {}).get("win_rate"),
        "before": bias_of["reward_correlation"],
        "after": bias_of.get("corrected_correlation"),
    }


def mean(values: list[float | None]) -> str:
    """Mean with a 95 % interval by Student's t over seeds."""
    known = np.array([v for v in values if v is not None])
    if len(known) < 2:
        return " / ".join(f"{v:.3f}" for v in known)
    half = stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / len(known) ** 0.5
    return f"{known.mean():.3f} ± {half:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--arms", nargs="+", choices=list(ARMS), default=["none", "sqrt", "regress", "concise"]
    )
    parser.add_argument("--bias", type=float, default=0.15)
    parser.add_argument(
        "--room", type=Path, help="keep the runs there; those that are there are not made again"
    )
    asked = parser.parse_args()
    print("| arm | PPO's tokens | SFT's | true win rate | score and length, before | after |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as aside:
        room = asked.room or Path(aside)
        for arm in asked.arms:
            rows = [carry_out(arm, seed, asked.bias, room) for seed in asked.seeds]
            cells = [mean([row[name] for row in rows]) for name in ("ppo", "sft", "true", "before", "after")]
            print(f"| {arm} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
