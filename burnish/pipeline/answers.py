"""Answers of the reference policy to prompts: what reward models are normalised on, tested with and choose among."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.models.generate import sample_rollout
from burnish.pipeline.context import Models
from burnish.records import Prompt, Rollout
from burnish.reward.ensemble import RewardEnsemble, gather


def sample_answers(
    models: Models, prompts: Sequence[Prompt], batch_size: int, seed: int, *where: str | int
) -> Rollout:
    """One answer of the reference policy to each prompt; `where` names the randomness."""
    return sample_rollout(
        models.reference(),
        models.codec,
        prompts,
        max_tokens=models.config.max_response_tokens,
        batch_size=batch_size,
        seed=seed,
        where=where,
    )


def sample_rounds(
    models: Models, prompts: Sequence[Prompt], answers: int, batch_size: int, seed: int, where: str
) -> list[Rollout]:
    """Several answers to each prompt, one of each in every round; sampled in one call."""
    whole = sample_answers(models, [p for p in prompts for _ in range(answers)], batch_size, seed, where)
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
    """One more answer to each prompt, which `ensemble.score` compares candidates with; None where its score needs
    none. It is not a candidate itself: an answer does not differ from itself, so the members would agree on it."""
    return (
        sample_answers(models, prompts, batch_size, seed, where, "reference") if ensemble.relative else None
    )
