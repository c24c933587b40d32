"""Checks before the first PPO update.

The sampler and the trainer must give equal log-probabilities, and the first learning rate is
measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import nn

from burnish.distributed import collectives
from burnish.errors import Diverged, TrainingError
from burnish.models.generate import sample_rollout
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.sequences import Sequences
from burnish.objectives import kl_k1, sequence_sum
from burnish.policy.ppo import PPO
from burnish.policy.rollouts import kl_to_reference, step_kl
from burnish.records import Prompt

KL_LIMIT = 1e-4  # nats per response
# Nats per token: mean and 99.9th percentile. Cached and full forward passes round differently. The
# largest of many tokens grows with their number, and says little.
LOGPROB_LIMITS = {torch.float32: (1e-4, 1e-3), torch.bfloat16: (0.02, 0.25)}
TAIL = 0.999
START_PROMPTS = 64


def self_check(
    policy: Policy,
    reference: Policy,
    codec: Codec,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    seed: int,
) -> dict[str, float]:
    """Check that the untrained policy equals the reference and that log-probabilities agree.

    Sample from the policy: the KL to the reference must be 0. Log-probabilities must be the same
    when sampled, recomputed in the batch, and computed for one response alone. Raises TrainingError
    naming the likely cause.
    """
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
    sampled = (again - rollout.sample_logprobs)[mask].abs()
    composition = torch.cat([(again[i, : len(a)] - a)[mask[i, : len(a)]].abs() for i, a in enumerate(alone)])
    if not kl <= KL_LIMIT:
        raise TrainingError(
            f"KL to the reference before the first update is {kl:.4g} nats per response and must be below "
            f"{KL_LIMIT:g}: policy and reference are not the same model. Likely causes: dropout left on, "
            "adapters that do not start at zero, a policy continued from other weights"
        )
    composition_gap = gap_within_limits(
        composition,
        policy.top.base.dtype,
        "log-probabilities change with the batch they are computed in",
        "padding leaks into the result. Likely causes: the model ignores attention_mask or position_ids, "
        "or pads on a side it does not expect",
    )
    sampled_gap = gap_within_limits(
        sampled,
        policy.top.base.dtype,
        "sampled and recomputed log-probabilities differ",
        "likely causes: another temperature in sampling, a cache that does not respect padding, token ids "
        "that do not survive decoding",
    )
    return {"kl": kl, "sampled_gap": sampled_gap, "composition_gap": composition_gap}


def gap_within_limits(gaps: torch.Tensor, dtype: torch.dtype, what: str, causes: str) -> float:
    """Return the mean of gaps (N,) in nats; raise TrainingError if mean or tail exceed their limits."""
    mean, tail = float(gaps.mean()), float(gaps.float().quantile(TAIL))
    most, most_tail = LOGPROB_LIMITS[dtype]
    if not (mean <= most and tail <= most_tail):
        raise TrainingError(
            f"{what} by {mean:.4g} nats a token in the mean and {tail:.4g} at the {TAIL:.1%} quantile (limits "
            f"{most:g} and {most_tail:g}): {causes}"
        )
    return mean


SCALE_STEPS = 5  # halvings of the interval in which `start_from` looks for the scale


def start_from(ppo: PPO, weights: Mapping[str, torch.Tensor], most: float) -> dict[str, float]:
    """Give the untrained policy other trained weights; return the scale of the change and its KL.

    Where the weights spend more than `most` nats per response, the change from the reference is scaled
    down until they do not. This is linear interpolation towards the initial weights (WARP, Rame et al.
    2024, 3.3). The KL to the reference is exact over the vocabulary. It is measured on responses of the
    scaled policy to the first training prompts. Raises Diverged if the KL of the unscaled weights is
    not finite.
    """
    top, prompts = ppo.policy.top, ppo.prompts[:START_PROMPTS]
    first = top.trained_state()

    def spent(scale: float) -> float:
        """Return the KL in nats per response of a scaled change, which the policy keeps."""
        top.load_trained_state({n: torch.lerp(p, weights[n].to(p), scale) for n, p in first.items()})
        rollout = sample_rollout(
            *(ppo.policy, ppo.codec, prompts),
            max_tokens=ppo.max_tokens,
            batch_size=len(prompts),
            seed=ppo.seed,
            where=("start",),
        )
        return collectives.leaders(float(kl_to_reference(ppo.policy, ppo.reference, rollout).mean()))

    low, scale, kl = 0.0, 1.0, spent(1.0)
    if not math.isfinite(kl):
        raise Diverged(f"the KL of the weights to start from is {kl}; lower dpo.learning_rate")
    if kl > most:
        high = 1.0
        for _ in range(SCALE_STEPS):
            scale = (low + high) / 2
            kl = spent(scale)
            low, high = (low, scale) if kl > most else (scale, high)
        if kl > most:
            scale, kl = low, spent(low)
    return {"scale": scale, "kl": kl}


GUESS = 1e-6  # scale of published learning rates for models with billions of parameters

LOWEST, HIGHEST = 1e-8, 0.1

FACTOR = 30.0  # largest correction by one measurement: far away, KL does not grow as the rate squared

CLOSE = 1.2

LEAST_WARM = 0.5  # a long warm-up should start below the wanted step, not end far above it

TRIES = 8


@torch.no_grad()
def first_rate(ppo: PPO) -> tuple[float | None, float]:
    """Return the learning rate whose first update has a KL of `PPO.wanted_kl`, and that KL.

    The KL is the measured one, in nats per response. The rate is None if the first batch gives no
    gradient direction.

    Adam's first step is rate * g / (|g| + eps) for the clipped gradient g, and the inner epochs
    continue in about that direction. The function moves the weights along that line and measures
    the KL to the sampled policy. It then corrects the rate, as KL grows with its square (the
    quadratic form of the Fisher information). The returned rate is divided by the warm-up factor,
    at least `LEAST_WARM`. The batch is kept for the first update, and the weights are restored.
    """
    batch = ppo.collect_first()
    rows, batch.weights, _ = ppo.learned(batch, list(range(len(batch.rollout))))
    if not rows:
        return None, 0.0
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
