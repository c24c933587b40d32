"""Checks before the first PPO update: equal log-probabilities of sampler and trainer, and the first learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from burnish.errors import TrainingError
from burnish.models.generate import sample_rollout
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.sequences import Sequences
from burnish.objectives import kl_k1, sequence_sum
from burnish.policy.ppo import PPO
from burnish.policy.rollouts import step_kl
from burnish.records import Prompt

KL_LIMIT = 1e-4  # nats per response
# Nats per token: rounding of cached against whole forward passes, by the precision of their products.
LOGPROB_LIMITS = {torch.float32: 1e-3, torch.bfloat16: 0.25}


def self_check(
    policy: Policy,
    reference: Policy,
    codec: Codec,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Sample from the untrained policy and compare: KL to the reference must be 0, log-probabilities the same
    when sampled, recomputed, and computed alone. Raises TrainingError naming the likely cause."""
    rollout = sample_rollout(
        policy, codec, prompts, max_tokens=max_tokens, batch_size=len(prompts), seed=seed, where=("check",)
    )
    sequences = Sequences.of(policy.top.base, rollout, codec.pad_id)
    rows = list(range(len(rollout)))
    with torch.no_grad():
        batch = sequences.batch(rows)
        again = token_logprobs(policy, batch)
        anchor = token_logprobs(reference, batch)
        alone = [token_logprobs(policy, sequences.batch([row]))[0] for row in rows[:4]]
    mask = rollout.response_mask
    kl = float(sequence_sum(kl_k1(again, anchor), mask).abs().max())
    sampled = float((again - rollout.sample_logprobs)[mask].abs().max())
    composition = max(float((again[i, : len(a)] - a).abs().max()) for i, a in enumerate(alone))
    if not kl <= KL_LIMIT:
        raise TrainingError(
            f"KL to the reference before the first update is {kl:.4g} nats per response and must be below "
            f"{KL_LIMIT:g}: policy and reference are not the same model. Likely causes: dropout left on, "
            "adapters that do not start at zero, a policy continued from other weights"
        )
    base = policy.top.base
    limit = LOGPROB_LIMITS[torch.float32 if base.fast else base.dtype]
    if not composition <= limit:
        raise TrainingError(
            f"log-probabilities change by {composition:.4g} with the batch they are computed in (limit "
            f"{limit:g}): padding leaks into the result. Likely causes: the model ignores "
            "attention_mask or position_ids, or pads on a side it does not expect"
        )
    if not sampled <= limit:
        raise TrainingError(
            f"sampled and recomputed log-probabilities differ by up to {sampled:.4g} nats a token (limit "
            f"{limit:g}). Likely causes: another temperature in sampling, a cache that does not respect "
            "padding, token ids that do not survive decoding"
        )
    return {"kl": kl, "sampled_gap": sampled, "composition_gap": composition}


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
        kl = step_kl(ppo.policy, batch)
        factor = math.sqrt(ppo.wanted_kl / kl) if kl > 0 else FACTOR if math.isfinite(kl) else 1 / FACTOR
        if 1 / CLOSE < factor < CLOSE:
            break
        rate = min(max(rate * min(max(factor, 1 / FACTOR), FACTOR), LOWEST), HIGHEST)
    for p, was in zip(parameters, start, strict=True):
        p.copy_(was)
    ppo.optimizer.zero_grad(set_to_none=True)
    return rate / max(ppo.warm, LEAST_WARM), kl
