"""What the gate before PPO says, over seeds: on the quickstart's labels, and on labels drawn by a coin.

usage: python benchmarks/gate_seeds.py [--seeds 20] [--jobs 2]
Rewards are trained and the gate is asked, nothing more. Every job computes on one thread.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from burnish.config.loading import load_config
from burnish.pipeline.context import RunContext
from burnish.pipeline.gate import pass_gate
from burnish.pipeline.run import run_pipeline
from burnish.reward.ensemble import load_watcher, prepare

LABELS = {"quickstart": [], "a coin": ["label.simulated.noise=1e9"]}


def verdict(labels: str, seed: int) -> tuple[str, str]:
    """What the gate decides, and why."""
    config = load_config(None, [*LABELS[labels], f"seed={seed}", "threads=1"])
    with tempfile.TemporaryDirectory() as room:
        run = run_pipeline(config, Path(room) / "run", until="reward")
        place = RunContext.alone(run)
        prepare(place.models.base, run.path / "reward")
        watch = load_watcher(place.models.base, run.path / "reward")
        with run.lock():
            pass_gate(place.models, place.data, place.journal.of("align"), config.ppo, watch, seed)
        event = next(e for e in run.read_rows("events.jsonl") if str(e.get("action")).startswith("gate_"))
        return event["action"].removeprefix("gate_"), event["reason"]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    with ProcessPoolExecutor(asked.jobs, max_tasks_per_child=1) as pool:
        for labels in LABELS:
            told = list(pool.map(verdict, [labels] * asked.seeds, range(asked.seeds)))
            for seed, (outcome, reason) in enumerate(told):
                print(f"{labels} {seed}: {outcome}: {reason}", flush=True)
            print(f"{labels}: {dict(Counter(outcome for outcome, _ in told))}", flush=True)


if __name__ == "__main__":
    main()
