"""Reward models for studies: members trained on pairs as the reward stage trains them, and what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from burnish.config.reward import RewardConfig
from burnish.distributed.threads import side_by_side
from burnish.models.heads import Pooling, ScalarHead, raw_scores
from burnish.models.pairs import EncodedPairs
from burnish.randomness import derive_seed
from burnish.reward.train import new_models, train_reward_model

DEPTH = 3  # of the embedded model's four layers, where probes of the quickstart read


def members(
    pairs: EncodedPairs, config: RewardConfig, rate: float, seed: int, pooling: Pooling = "mean"
) -> list[ScalarHead]:
    """`config.members` reward models of the same pairs."""
    base = pairs.sequences.base
    _ = pairs.sequences.features  # before threads share them
    heads = new_models(base, [f"member-{k}" for k in range(config.members)], config, seed, pooling)
    loops = [
        train_reward_model(
            head, pairs, config, learning_rate=rate, seed=derive_seed(seed, "reward"), member=name
        )
        for name, head in heads.items()
    ]
    for _ in side_by_side(loops, in_threads=base.device.type == "cpu"):
        pass
    return list(heads.values())


def margins(heads: Sequence[ScalarHead], pairs: EncodedPairs) -> np.ndarray:
    """(N, K) raw scores of what was chosen minus those of what was not."""
    chosen, rejected = pairs.sides(torch.stack([raw_scores(head, pairs.sequences) for head in heads], 1))
    return np.asarray((chosen - rejected).double().cpu().numpy())
