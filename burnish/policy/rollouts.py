"""Rollouts of a PPO update with scores, log-probabilities, values and advantages."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from burnish.distributed import collectives
from burnish.errors import Diverged
from burnish.models.batches import CPU, Batch
from burnish.models.device import traits
from burnish.models.heads import ScalarHead
from burnish.models.logprobs import Policy, response_kl, token_logprobs
from burnish.models.sequences import Sequences
from burnish.objectives import (
    explained_variance,
    kl_k3,
    masked_mean,
    sequence_sum,
)
from burnish.randomness import generator
from burnish.records import Prompt, Rollout, Scores

GAP_ROWS = 4  # responses of each batch whose log-probabilities are computed again
STEP_ROWS = 16  # responses on which the KL of an update is measured

ScoreFn = Callable[[Rollout], Scores]


@dataclass
class Experience:
    """Batch of B rollouts, fixed during the inner epochs; tensors are (B, T) unless noted."""

    rollout: Rollout
    reward_rollout: Rollout  # the same responses for the reward model, without an instruction to be concise
    sequences: Sequences
    value_sequences: Sequences | None  # the same, with frozen layers of the value function computed
    scores: Scores
    old_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    entropy: torch.Tensor
    advantages: torch.Tensor
    kl_weight: float  # of the KL in the loss
    old_values: torch.Tensor | None  # None without a value function
    returns: torch.Tensor | None
    shaped_scores: torch.Tensor  # (B,) scores after shaping
    kl: torch.Tensor  # (B,) k1 estimates, nats a response
    ranked: torch.Tensor  # (B,) what orders the responses to a prompt, where a method orders them
    sampling_gap: float
    weights: torch.Tensor | None = None  # (B,) of rows in the loss, for a method that weighs whole responses
    trained_on: bool = False  # whether the policy has been changed since it sampled

    def figures(self, *, shaped: bool) -> dict[str, float]:
        """Return the metrics of the batch before training; `shaped` adds the mean shaped score."""
        rollout, scores = self.rollout, self.scores
        mask = rollout.response_mask
        k3 = sequence_sum(kl_k3(self.old_logprobs, self.ref_logprobs), mask)
        explained = None
        if self.old_values is not None and self.returns is not None:
            explained = explained_variance(self.old_values, self.returns, mask)
        values = {
            "kl": float(self.kl.mean()),
            "kl_k3": float(k3.mean()),
            "score": float(scores.scores.mean()),
            "score_sd": float(scores.scores.std(unbiased=False)),
            "ensemble_std": float(scores.ensemble_std.mean()),
            "length": float(mask.sum(1).float().mean()),
            "truncated": 1.0 - sum(rollout.ended) / len(rollout),
            "entropy": float(masked_mean(self.entropy, mask)),
            "ref_nll": -float(masked_mean(self.ref_logprobs, mask)),
            "sampling_gap": self.sampling_gap,
            "answers": float(len(rollout)),
        }
        if explained is not None:
            values["explained_variance"] = float(explained)
        if shaped:
            values["reward"] = float(self.shaped_scores.mean())
        values |= {f"reward_{name}": float(term.mean()) for name, term in scores.terms.items()}
        return values | {f"member_{k}": float(m) for k, m in enumerate(scores.members.mean(0))}


def frozen_activations(critic: ScalarHead, rollout: Rollout, pad_id: int, micro_batch: int) -> Sequences:
    """Return the sequences of a rollout with the frozen layers of the value function computed."""
    base = critic.top.base
    whole = Sequences.of(base, rollout, pad_id)
    return collectives.locally(
        lambda: base.memory.fit(
            "activations of the value function",
            micro_batch,
            partial(whole.with_frozen_layers_run, critic.top),
        )
    )


@torch.no_grad()
def read_before_training(
    policy: Policy,
    reference: Policy,
    critic: ScalarHead | None,
    rollout: Rollout,
    sequences: Sequences,
    value_sequences: Sequences | None,
    micro_batch: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Return policy and reference log-probabilities and values, all (B, T), before training.

    The values are None without a critic. Raises Diverged if a reference log-probability or a value
    is not finite.
    """
    base = policy.top.base
    # Rounding differs between decoding and training, but ratios must start at 1, so recompute.
    rounded = base.dtype != torch.float32

    def read(own: list[int], size: int) -> tuple[torch.Tensor, ...]:
        old = rollout.sample_logprobs.clone() if rounded else rollout.sample_logprobs
        ref = torch.zeros_like(old)
        values = None if value_sequences is None else torch.zeros_like(old)
        for rows, batch in sequences.batches(size, own):
            width = batch.response_mask.shape[1]
            if rounded:
                old[batch.rows, :width] = token_logprobs(policy, batch)
            ref[batch.rows, :width] = token_logprobs(reference, batch)
            if values is not None and critic is not None and value_sequences is not None:
                values[batch.rows, :width] = critic.values(value_sequences.onto(batch, rows))
        if len(own) == len(rollout):
            return tuple(x for x in (old, ref, values) if x is not None)
        index = torch.tensor(own, device=CPU).to(old.device)
        return tuple(x[index] for x in (old, ref, values) if x is not None)

    def fit(own: list[int]) -> tuple[torch.Tensor, ...]:
        return base.memory.fit("log-probabilities and values", micro_batch, partial(read, own))

    old_logprobs, ref_logprobs, *values = collectives.gather(len(rollout), fit)
    figures = {"reference log-probability": ref_logprobs} | ({"value": values[0]} if values else {})
    finite({name: float(x.abs().max()) for name, x in figures.items()})
    return old_logprobs, ref_logprobs, values[0] if values else None


@torch.no_grad()
def sampling_gap(policy: Policy, rollout: Rollout, sequences: Sequences) -> float:
    """Return the largest gap (nats) of sampled and recomputed log-probabilities in a few responses."""

    def read(own: list[int]) -> tuple[torch.Tensor]:
        batch = sequences.batch(own)
        again = token_logprobs(policy, batch)
        return ((again - rollout.sample_logprobs[batch.rows, : again.shape[1]]).abs().amax(1),)

    (gaps,) = collectives.gather(min(GAP_ROWS, len(rollout)), read)
    return float(gaps.max())


def prompts_from(
    prompts: Sequence[Prompt], first: int, responses: int, samples_per_prompt: int, seed: int, attempt: int
) -> list[Prompt]:
    """Return the prompts of `responses` responses, each `samples_per_prompt` times.

    They are the prompts from number `first` (from 0) of shuffled epochs; each attempt has its own order.
    """
    n, size = len(prompts), responses // samples_per_prompt
    picked = []
    orders: dict[int, list[int]] = {}
    for position in range(first, first + size):
        epoch = position // n
        if epoch not in orders:
            rng = generator(seed, "prompts", attempt, epoch)
            orders[epoch] = torch.randperm(n, generator=rng, device=CPU).tolist()
        picked += [prompts[orders[epoch][position % n]]] * samples_per_prompt
    return picked


@torch.no_grad()
def step_kl(policy: Policy, experience: Experience) -> float:
    """Return KL(sampled policy || policy now) of a few responses, in nats a response (k3)."""

    def read(own: list[int]) -> tuple[torch.Tensor]:
        batch = experience.sequences.batch(own)
        now = token_logprobs(policy, batch)
        old = experience.old_logprobs[batch.rows, : now.shape[1]]
        return (sequence_sum(kl_k3(old, now), batch.response_mask),)

    (apart,) = collectives.gather(min(STEP_ROWS, len(experience.rollout)), read)
    return collectives.leaders(float(apart.mean()))


def kl_to_reference(
    policy: Policy, reference: Policy, rollout: Rollout, rows: Sequence[int] | None = None
) -> torch.Tensor:
    """Return KL(policy || reference) of responses of `policy`, all or the given rows, in nats (N,).

    It is exact over the vocabulary at every sampled token.
    """
    base = policy.top.base
    sequences = Sequences.of(base, rollout, policy.pad_id)

    def read(batch: Batch) -> torch.Tensor:
        return response_kl(policy, reference, batch)

    chosen = list(range(len(rollout))) if rows is None else list(rows)
    return sequences.read(read, traits(base.device).rows, chosen, "kl")


def finite(figures: dict[str, float]) -> dict[str, float]:
    """Return the figures unchanged; raise Diverged, which the guard handles, if one is not finite."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise Diverged(f"PPO's {name} is {value}: a model has diverged; lower the learning rates")
    return figures
