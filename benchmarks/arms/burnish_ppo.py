"""One arm: a whole Burnish run up to the end of PPO, timed between updates (monitors, guard, logging included).
Prints one JSON line: seconds of every update, peak MiB (of the whole process), mean response length."""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch

from burnish.config.loading import load_config
from burnish.monitor.live import View
from burnish.pipeline import run as stages


class Clock(View):
    def __init__(self) -> None:
        super().__init__("clock", 1.0)
        self.times: list[float] = []

    def progress(self, done: int, total: int) -> None:
        self.times.append(time.perf_counter())

    def note(self, text: str) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arena", type=Path)
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--members", type=int, default=3)
    parser.add_argument("--layers", default="top:2")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--set", action="append", default=[])
    args = parser.parse_args()
    torch.set_num_threads(2)
    sets = {
        "model.path": args.arena / "model",
        "model.layers": args.layers,
        "model.max_prompt_tokens": 24,
        "model.max_response_tokens": args.length,
        "label.source": "imported",
        "label.preferences": args.arena / "pairs.jsonl",
        "label.max_pairs": 128,
        "data.prompts": args.arena / "prompts.jsonl",
        "data.rejected_rows_limit": 0.99,
        "evaluate.examiner": "reward_model",
        "evaluate.n_selection": 8,
        "evaluate.n_test": 8,
        "reward.members": args.members,
        "reward.reference_samples": 32,
        "ppo.gate": "ignored",  # its pairs are random, so no reward can be learnt from them
        "ppo.updates": args.updates + 1,  # the first one warms up and is not counted
        "ppo.batch_size": args.batch,
        "ppo.micro_batch": args.batch,
        "ppo.epochs": 4,
        "ppo.learning_rate": 1e-5,
        "ppo.checkpoint_every": 1000,
        "threads": 2,
    }
    config = load_config(None, [f"{k}={v}" for k, v in sets.items()] + args.set)
    clock = Clock()
    stages.open_view = lambda *a, **k: clock
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        stages.run_pipeline(config, run, until="align")
        steps = [json.loads(line) for line in (run / "metrics" / "ppo.jsonl").open()]
        timing = [json.loads(line) for line in (run / "timing" / "ppo.jsonl").open()]
    seconds = [b - a for a, b in zip(clock.times, clock.times[1:], strict=False)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    length = sum(s["length"] for s in steps) / len(steps)
    shares = {k: [round(t[k], 3) for t in timing] for k in ("sampling_share", "scoring_share")}
    print(json.dumps({"seconds": seconds, "peak_mib": peak, "length": length} | shares))


if __name__ == "__main__":
    main()
