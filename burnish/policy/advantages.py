"""Advantages of a batch of rollouts, and the unit in which a KL in the loss is weighed."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from burnish.config.ppo import PPOConfig
from burnish.objectives import (
    advantage_unit,
    gae,
    group_advantages,
    kl_k1,
    paid_before,
    shape_rewards,
    whiten,
)


@dataclass(frozen=True)
class Advantages:
    """Advantages (B, T) as the loss uses them, and returns (B, T) if there is a value function.

    `kl_weight` is the weight of the KL per token in the loss: the KL coefficient in the unit of the
    advantages, or 0 if the KL is in the reward.
    """

    values: torch.Tensor
    returns: torch.Tensor | None
    kl_weight: float


def advantages_of(
    config: PPOConfig,
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    values: torch.Tensor | None,
    mask: torch.Tensor,
    *,
    kl_coef: float,
    samples_per_prompt: int,
    scaled: bool,
) -> Advantages:
    """Return the advantages of a batch from its scores (B,), with the KL where `ppo.kl.where` says.

    With `values` (B, T) they are those of GAE, else of groups; `scaled` divides them by the group's sd
    (GRPO). GAE gives every token the reward that follows it, so for it `reward` and `reward_to_go` are
    the same.
    """
    where = config.kl.where
    in_reward = kl_coef if where != "loss" else 0.0
    rewards = shape_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=in_reward)  # (B, T)
    returns = None
    if values is not None:
        plain, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        used = plain
    else:
        paid = None
        if where == "reward_to_go":
            paid = paid_before(-kl_coef * kl_k1(logprobs, ref_logprobs), mask)
        plain, used = (
            group_advantages(rewards, mask, answers=samples_per_prompt, scaled=s, paid=paid)
            for s in (False, scaled)
        )
    if config.whiten_advantages:
        used = whiten(used, mask)
    weight = kl_coef * advantage_unit(used, plain, mask) if where == "loss" else 0.0
    return Advantages(used, returns, weight)
