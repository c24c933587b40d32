"""Sampling of reference-policy answers for reward normalisation, stress tests and best-of-n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from burnish.models.batches import Batch
from burnish.models.device import traits
from burnish.models.generate import sample_rollout
from burnish.models.logprobs import Policy, response_kl
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Models
from burnish.records import Prompt, Rollout
from burnish.reward.ensemble import RewardEnsemble, gather

T = TypeVar("T")


def repeated(items: Sequence[T], times: int) -> list[T]:
    """Return every item `times` times in a row."""
    return [item for item in items for _ in range(times)]


def sample_answers(
    models: Models, prompts: Sequence[Prompt], batch_size: int, seed: int, *where: str | int
) -> Rollout:
    """Sample one answer of the reference policy to each prompt; `where` names the random stream."""
    return sample_rollout(
        models.reference(),
        models.codec,
        prompts,
        max_tokens=models.config.max_response_tokens,
        batch_size=batch_size,
        seed=seed,
        where=where,
    )


def sample_repeatedly(
    models: Models, prompts: Sequence[Prompt], answers: int, batch_size: int, seed: int, where: str
) -> list[Rollout]:
    """Sample `answers` rollouts in one call; each has one answer to every prompt."""
    whole = sample_answers(models, repeated(prompts, answers), batch_size, seed, where)
    return [
        gather([whole], [(0, i * answers + turn) for i in range(len(prompts))]) for turn in range(answers)
    ]


def reference_answers(
    models: Models,
    ensemble: RewardEnsemble,
    prompts: Sequence[Prompt],
    batch_size: int,
    seed: int,
    where: str,
) -> Rollout | None:
    """Sample the reference answers that `ensemble.score` compares with; return None if it needs none.

    They are not candidates: an answer does not differ from itself, so all members would agree on it.
    """
    return (
        sample_answers(models, prompts, batch_size, seed, where, "reference") if ensemble.relative else None
    )


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
