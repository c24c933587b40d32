"""What SFT itself answers to training prompts, and what the reward ensemble thinks of it."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from burnish.models.sampling import sample_rollout
from burnish.pipeline.data import Data
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.randomness import derive_seed
from burnish.records import Preference, Rollout
from burnish.reward.ensemble import pick, round_scores
from burnish.reward.saved import load_ensemble


@dataclass
class Judged:
    """Several answers to each of N prompts, one of each in every round, with the ensemble's scores (rounds, N)."""

    rounds: list[Rollout]
    scores: torch.Tensor

    @property
    def gain(self) -> float:
        """How far the best lies above the mean of a prompt's answers, in reference standard deviations."""
        return float((self.scores.amax(0) - self.scores.mean(0)).mean())

    def best(self) -> Rollout:
        return pick(self.rounds, self.scores.argmax(0))

    def pairs(self) -> list[Preference]:
        """The best answer to each prompt over the worst; none where they are the same text or one of them is empty."""
        best, worst = self.best(), pick(self.rounds, self.scores.argmin(0))
        return [
            Preference(p, good, bad, chosen_ended=good_ended, rejected_ended=bad_ended)
            for p, good, bad, good_ended, bad_ended in zip(
                best.prompts, best.texts, worst.texts, best.ended, worst.ended, strict=True
            )
            if good.strip() and bad.strip() and good.strip() != bad.strip()
        ]


@dataclass
class OwnAnswers:
    """Samples once for whoever asks the same again, `batch_size` answers at a time."""

    models: Models
    data: Data
    journal: Journal
    batch_size: int
    seed: int
    _known: dict[tuple[int, int], Judged] = field(default_factory=dict)

    def judged(self, prompts: int, n: int) -> Judged:
        """`n` answers to each of the first training prompts, judged."""
        if (prompts, n) not in self._known:
            asked = self.data.splits.train[:prompts]
            rounds = []
            for turn in range(n):
                self.journal.view.note(f"align: SFT's own answer {turn + 1} of {n} to {len(asked)} prompts")
                rounds.append(
                    sample_rollout(
                        self.models.reference(),
                        self.models.codec,
                        asked,
                        max_tokens=self.models.config.max_response_tokens,
                        batch_size=self.batch_size,
                        seed=derive_seed(self.seed, "distill"),
                        where=("sample", turn),
                    )
                )
            ensemble = load_ensemble(self.models.base, self.journal.path / "reward")
            scores = round_scores(ensemble, rounds, self.models.codec.pad_id)
            self._known[prompts, n] = Judged(rounds, scores)
        return self._known[prompts, n]
