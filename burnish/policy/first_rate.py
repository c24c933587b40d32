"""The learning rate PPO starts with, measured on its first batch."""

from __future__ import annotations

import math

import torch
from torch import nn

from burnish.policy.ppo import PPO

GUESS = 1e-6  # the scale of published rates for models of billions of weights
LOWEST, HIGHEST = 1e-8, 0.1
FACTOR = (
    30.0  # by which one measurement may correct the guess: far from it, KL does not grow as the rate squared
)
CLOSE = 1.2
LEAST_WARM = 0.5  # a long warm-up is to begin below the step that is wanted, not to end far above it
TRIES = 8


@torch.no_grad()
def first_rate(ppo: PPO) -> tuple[float | None, float]:
    """The rate at which the first update moves the policy by `PPO.wanted_kl`, and the KL, in nats a response, that was
    measured for it; None where the first batch gives no direction. Adam's first step is rate * g / (|g| + eps) for the
    clipped gradient g, and the inner epochs go on roughly there: the weights are moved so far along that line, the KL
    to the policy that was sampled is measured, and the rate corrected as KL grows as its square (the Fisher
    information's quadratic form). The batch is kept for the first update, the weights are as before."""
    batch = ppo.collect_first()
    rows = list(range(len(batch.rollout)))
    with torch.enable_grad():
        ppo.accumulate(batch, rows)
    parameters = [p for p in ppo.policy_parameters if p.grad is not None]
    norm = float(nn.utils.clip_grad_norm_(parameters, ppo.config.max_grad_norm))
    if not (math.isfinite(norm) and norm > 0):
        ppo.optimizer.zero_grad(set_to_none=True)
        return None, 0.0
    start = [p.clone() for p in parameters]
    for p in parameters:
        assert p.grad is not None
        p.grad.div_(p.grad.abs() + ppo.config.adam_eps)
    steps = ppo.config.epochs * ppo.config.minibatches
    rate, kl = GUESS, 0.0
    for _ in range(TRIES):
        for p, was in zip(parameters, start, strict=True):
            assert p.grad is not None
            p.copy_(was - rate * steps * p.grad)
        kl = ppo.step_kl(batch)
        factor = math.sqrt(ppo.wanted_kl / kl) if kl > 0 else FACTOR if math.isfinite(kl) else 1 / FACTOR
        if 1 / CLOSE < factor < CLOSE:
            break
        rate = min(max(rate * min(max(factor, 1 / FACTOR), FACTOR), LOWEST), HIGHEST)
    for p, was in zip(parameters, start, strict=True):
        p.copy_(was)
    ppo.optimizer.zero_grad(set_to_none=True)
    return rate / max(ppo.warm, LEAST_WARM), kl
