"""The learning rate of reward models, found by short trials: no rule of thumb fits models a thousand times apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from burnish.config.reward import RewardConfig
from burnish.models.batches import CPU
from burnish.models.heads import Pooling, new_reward_head
from burnish.models.pairs import EncodedPairs
from burnish.objectives.losses import bradley_terry_loss
from burnish.randomness import generator
from burnish.reward.train import train_reward_model

STEPS = 24  # updates of a trial, at most
HELD_OUT = 96  # prompts


@dataclass(frozen=True)
class Trial:
    """A rate and the mean Bradley-Terry loss, in nats a pair, that it came to on prompts it had not seen; infinite
    where it diverged."""

    rate: float
    loss: float


def find_rate(
    pairs: EncodedPairs,
    config: RewardConfig,
    pooling: Pooling,
    rates: Sequence[float],
    seed: int,
) -> list[Trial]:
    """Trials of every rate on part of the pairs, with their loss on others; the best first."""
    base = pairs.sequences.base
    groups = list(dict.fromkeys(pairs.groups))
    order = torch.randperm(len(groups), generator=generator(seed, "sweep"), device=CPU).tolist()
    held = {groups[i] for i in order[: min(HELD_OUT, len(groups) // 4)]}
    fitted = {groups[i] for i in order[len(held) : len(held) + STEPS * config.batch_size]}
    learned = pairs.only([i for i, g in enumerate(pairs.groups) if g in fitted])
    unseen = pairs.only([i for i, g in enumerate(pairs.groups) if g in held])
    short = config.model_copy(update={"epochs": 1, "bootstrap": False})
    found = []
    for rate in rates:
        model = new_reward_head(
            base, seed, "sweep", layers=base.layers, dropout=config.dropout, pooling=pooling
        )
        for _ in train_reward_model(model, learned, short, learning_rate=rate, seed=seed, member="sweep"):
            pass
        with torch.no_grad():
            parts = [
                bradley_terry_loss(*unseen.each(model.score, part)).sum()
                for part in unseen.parted(range(len(unseen)), config.micro_batch)
            ]
        loss = float(torch.stack(parts).sum()) / len(unseen)
        found.append(Trial(rate, math.inf if math.isnan(loss) else loss))
    return sorted(found, key=lambda trial: trial.loss)
