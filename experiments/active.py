"""Labels chosen where reward models disagree against labels drawn at random: accuracy by number of labels.

usage: python experiments/active.py [--seeds 0 1 2] [--how random variance bald entropy] [--steps 128 256 512 1024]
A pool of pairs of the embedded model's answers is labelled by simulated annotators as asked. Every arm starts from the
same random labels; before each step three members are trained on what is labelled and choose what is labelled next,
30 % at random. Accuracy is by the true preference, on pairs of prompts that the pool does not have.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from length import mean

from burnish.config.loading import load_config
from burnish.config.reward import RewardConfig
from burnish.labels.select import How, acquisition, choose
from burnish.models.heads import ScalarHead, new_reward_head, raw_scores
from burnish.models.pairs import EncodedPairs
from burnish.models.rates import USUAL, ladder
from burnish.models.shared_base import Base
from burnish.parallel import side_by_side
from burnish.pipeline.order import Workplace, run_pipeline
from burnish.randomness import derive_seed
from burnish.records import Preference
from burnish.rehearse.world import gold
from burnish.reward.train import train_reward_model

POOL, HELD_OUT = 1536, 1024
RANDOM_SHARE = 0.3
DEPTH = 3  # of four layers, where probes of the quickstart read


def members(base: Base, pairs: EncodedPairs, config: RewardConfig, seed: int) -> list[ScalarHead]:
    """Three reward models of the same pairs."""
    _ = pairs.sequences.features  # before threads share them
    names = [f"member-{k}" for k in range(config.members)]
    heads = [
        new_reward_head(base, seed, name, layers=base.layers, dropout=config.dropout, pooling="mean")
        for name in names
    ]
    rate = ladder(base)[USUAL]
    loops = [
        train_reward_model(
            head, pairs, config, learning_rate=rate, seed=derive_seed(seed, "reward"), member=name
        )
        for head, name in zip(heads, names, strict=True)
    ]
    for _ in side_by_side(loops, in_threads=True):
        pass
    return heads


def margins(heads: Sequence[ScalarHead], pairs: EncodedPairs) -> np.ndarray:
    """(N, K) raw scores of what was chosen minus those of what was not."""
    chosen, rejected = pairs.sides(torch.stack([raw_scores(head, pairs.sequences) for head in heads], 1))
    return np.asarray((chosen - rejected).double().numpy())


def truth(pair: Preference) -> float:
    return gold(pair.prompt, pair.chosen) - gold(pair.prompt, pair.rejected)


def carry_out(
    seed: int, hows: Sequence[How], steps: Sequence[int], room: Path
) -> dict[tuple[How, int], float]:
    """Accuracy by arm and number of labels."""
    sets = [
        f"seed={seed}",
        f"collect.n_pairs={POOL + HELD_OUT}",
        "data.n_prompts=4000",
        "monitor.trackers=[]",
    ]
    run = run_pipeline(load_config(None, sets), room / str(seed), until="label")
    place = Workplace.alone(run)
    config = run.config.reward
    pairs = place.data.store.preferences()
    place.data.close()
    held = {p.prompt.group for p in pairs[::3]}
    pool = [p for p in pairs if p.prompt.group not in held][:POOL]
    base = place.models.base.at(DEPTH, place.models.base.layers)
    known = EncodedPairs(base, place.models.codec, pool)
    told = [p for p in pairs if p.prompt.group in held and truth(p)][:HELD_OUT]
    unseen = EncodedPairs(base, place.models.codec, told)
    right = np.sign([truth(p) for p in told])
    found = {}
    for how in hows:
        labelled = [
            i
            for i, _ in choose(
                [p.comparison_id for p in pool], None, steps[0], how="random", random_share=1.0, seed=seed
            )
        ]
        for number, wanted in enumerate(steps):
            heads = members(base, known.only(labelled), config, seed)
            said = margins(heads, unseen)
            found[how, wanted] = float((np.sign((said / said.std(0)).mean(1)) == right).mean())
            if number + 1 == len(steps):
                break
            rest = sorted(set(range(len(pool))) - set(labelled))
            scores = None if how == "random" else acquisition(margins(heads, known.only(rest)), how)
            picked = choose(
                [pool[i].comparison_id for i in rest],
                scores,
                steps[number + 1] - wanted,
                how=how,
                random_share=RANDOM_SHARE,
                seed=seed + number,
            )
            labelled = [*labelled, *(rest[i] for i, _ in picked)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--how", nargs="+", choices=get_args(How), default=["random", "variance", "bald", "entropy"]
    )
    parser.add_argument("--steps", type=int, nargs="+", default=[128, 256, 512, 1024])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        rows = [carry_out(seed, asked.how, asked.steps, Path(room)) for seed in asked.seeds]
    print(f"| labels | {' | '.join(asked.how)} |")
    print("|---|" + "---|" * len(asked.how))
    for wanted in asked.steps:
        print(f"| {wanted} | {' | '.join(mean([row[how, wanted] for row in rows]) for how in asked.how)} |")
    for how in asked.how[1:]:
        last = [row[how, asked.steps[-1]] - row[asked.how[0], asked.steps[-1]] for row in rows]
        print(f"{how} against {asked.how[0]} at {asked.steps[-1]} labels: {mean(last)}")


if __name__ == "__main__":
    main()
