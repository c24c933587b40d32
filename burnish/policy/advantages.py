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

HALVES = (1e-6, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)  # tokens after which a prefix's score counts half


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
    prefixes: torch.Tensor | None = None,
) -> Advantages:
    """Return the advantages of a batch from its scores (B,), with the KL where `ppo.kl.where` says.

    With `values` (B, T) they are those of GAE, else of groups; `scaled` divides them by the group's sd
    (GRPO). GAE gives every token the reward that follows it, so for it `reward` and `reward_to_go` are
    the same. `prefixes` (B, T) are scores of the prefixes before each token, for `ppo.credit: prefix`.
    """
    where = config.kl.where
    in_reward = kl_coef if where != "loss" else 0.0
    rewards = shape_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=in_reward)  # (B, T)
    returns = None
    if values is not None:
        plain, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        used = plain
    elif prefixes is not None:
        baseline = prefix_baseline(scores, prefixes, mask, together=samples_per_prompt)
        plain, _ = gae(rewards, baseline, mask, gamma=1.0, lam=config.lam)
        used = plain
        if scaled:
            sd = rewards.sum(1).view(-1, samples_per_prompt).std(1, unbiased=False)
            sd = sd.repeat_interleave(samples_per_prompt)[:, None]
            used = torch.where(sd > 1e-6, plain / sd.clamp(min=1e-6), torch.zeros_like(plain))
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


def prefix_baseline(
    scores: torch.Tensor, prefixes: torch.Tensor, mask: torch.Tensor, *, together: int
) -> torch.Tensor:
    """Return a baseline (B, T) from the other responses to a prompt and the score of the prefix so far.

    It is the mean score of the others, plus c t / (t + k) times the rise of the prefix's score after t
    tokens: a short prefix says less about the whole. c and k are those that predict the scores of the
    batch best (least squares; k from `HALVES`). Where prefixes say nothing, c is near 0, and the baseline
    is that of RLOO.

    The prefix's score is a potential of the state (Ng et al. 1999). With lambda = 1 the policy gradient
    stays unbiased, but for the two fitted numbers. Rows of a prompt are adjacent.
    """
    groups = scores.view(-1, together)
    others = ((groups.sum(1, keepdim=True) - groups) / (together - 1)).reshape(-1, 1)
    rise = (prefixes - prefixes[:, :1]).masked_fill(~mask, 0.0)
    seen = torch.arange(mask.shape[1], device=mask.device, dtype=rise.dtype)
    wanted = (scores[:, None] - others).expand_as(rise).masked_fill(~mask, 0.0)
    found: list[tuple[float, torch.Tensor]] = []
    for k in HALVES:
        x = rise * (seen / (seen + k))
        fitted = (x * wanted).sum() / (x * x).sum().clamp(min=1e-12) * x
        found.append((float((wanted - fitted).square().sum()), fitted))
    best = min(found, key=lambda one: one[0])[1]
    return (best + others).masked_fill(~mask, 0.0)
