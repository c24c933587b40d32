"""Before the first update: refuse to train when the figures that must be zero are not."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from burnish.errors import TrainingError
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.objectives.kl import kl_k1, sequence_sum
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
