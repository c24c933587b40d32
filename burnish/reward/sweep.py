"""What a learning rate comes to in a short trial of a reward model."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.config.reward import RewardConfig
from burnish.models.heads import Pooling, new_reward_head
from burnish.models.pairs import EncodedPairs
from burnish.reward.train import train_reward_model, unseen_loss


def trial_loss(
    pairs: EncodedPairs,
    learned: Sequence[int],
    unseen: Sequence[int],
    config: RewardConfig,
    pooling: Pooling,
    rate: float,
    seed: int,
) -> float:
    """Mean Bradley-Terry loss, in nats a pair, on the `unseen` pairs after one pass over the `learned` ones."""
    base = pairs.sequences.base
    short = config.model_copy(update={"epochs": 1, "bootstrap": False, "early_stopping": 0.0})
    model = new_reward_head(base, seed, "sweep", layers=base.layers, dropout=config.dropout, pooling=pooling)
    for _ in train_reward_model(
        model, pairs.only(learned), short, learning_rate=rate, seed=seed, member="sweep"
    ):
        pass
    return unseen_loss(model, pairs, unseen, config.micro_batch)
