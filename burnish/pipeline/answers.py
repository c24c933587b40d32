"""Answers of SFT and of saved policies to given prompts, their KL, and their scores by the ensemble."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from burnish.models.generate import sample_rollout
from burnish.pipeline.context import Data, Journal, Models
from burnish.randomness import derive_seed
from burnish.records import Preference, Prompt, Rollout
from burnish.reward.ensemble import RewardEnsemble, gather, load_ensemble, pick, scores_of_samples

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


@dataclass
class ScoredSamples:
    """Several rollouts of the same N prompts, with the ensemble's scores (samples, N)."""

    samples: list[Rollout]
    scores: torch.Tensor

    @property
    def gain(self) -> float:
        """Mean gain of the best answer over its prompt's mean, in reference standard deviations."""
        return float((self.scores.amax(0) - self.scores.mean(0)).mean())

    def best(self) -> Rollout:
        """Return the answer to each prompt that the ensemble scores highest."""
        return pick(self.samples, self.scores.argmax(0))

    def pairs(self, watch: Callable[[Rollout], torch.Tensor] | None = None) -> list[Preference]:
        """Return pairs that prefer each prompt's best answer to its worst.

        `watch` (N,) must score them in the same order. Equal or empty texts give no pair.
        """
        best, worst = self.best(), pick(self.samples, self.scores.argmin(0))
        agreed = [True] * len(best) if watch is None else (watch(best) > watch(worst)).tolist()
        return [
            Preference(p, good, bad, chosen_ended=good_ended, rejected_ended=bad_ended)
            for p, good, bad, good_ended, bad_ended, kept in zip(
                best.prompts, best.texts, worst.texts, best.ended, worst.ended, agreed, strict=True
            )
            if kept and good.strip() and bad.strip() and good.strip() != bad.strip()
        ]


@dataclass
class OwnAnswers:
    """Samples of a policy's own answers, drawn `batch_size` at a time and reused for equal requests."""

    models: Models
    data: Data
    journal: Journal
    batch_size: int
    seed: int
    _known: dict[tuple[int, int, Path | None], ScoredSamples] = field(default_factory=dict)

    def forget(self) -> None:
        """Free the answers, which hold activations."""
        self._known.clear()

    def scored(self, prompts: int, n: int, saved: Path | None = None) -> ScoredSamples:
        """Return `n` scored answers of SFT or a `saved` policy to each of the first training prompts."""
        if (prompts, n, saved) not in self._known:
            policy = self.models.reference()
            if saved is not None:
                policy, temperature = self.models.saved_policy(saved), policy.temperature
                policy.temperature = temperature
            seed = derive_seed(self.seed, "distill")
            who = "SFT" if saved is None else saved.name
            asked = self.data.splits.train[:prompts]
            samples = []
            for turn in range(n):
                self.journal.view.note(f"align: {who}'s own answer {turn + 1} of {n} to {len(asked)} prompts")
                samples.append(
                    sample_rollout(
                        policy,
                        self.models.codec,
                        asked,
                        max_tokens=self.models.config.max_response_tokens,
                        batch_size=self.batch_size,
                        seed=seed,
                        where=("sample", turn),
                    )
                )
            ensemble = load_ensemble(self.models.base, self.journal.path / "reward")
            reference = reference_answers(self.models, ensemble, asked, self.batch_size, seed, "sample")
            scores = scores_of_samples(ensemble, samples, reference, self.models.codec.pad_id)
            self._known[prompts, n, saved] = ScoredSamples(samples, scores)
        return self._known[prompts, n, saved]
