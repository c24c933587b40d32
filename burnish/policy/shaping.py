"""Reward shaping for PPO: scores are normalised and clipped, or bounded and centred."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from burnish.config.ppo import ShapingConfig
from burnish.records import Scores

PRIOR = 256.0  # weight of the reference policy in the running standard deviation, in responses


@dataclass
class Shaping:
    """Shaping of scores into the rewards of PPO.

    `sd` is the standard deviation of the scores of the reference policy's responses, `unit` that of
    their shaped scores. State: `count` is the number of responses so far (those of the reference at
    first), `squares` the sum of their squared scores. The scores are already centred on the
    reference's mean.
    """

    config: ShapingConfig
    sd: float
    unit: float = 1.0
    count: float = PRIOR
    squares: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sd) and self.sd > 0):
            raise ValueError(
                f"sd={self.sd!r} must be finite and above 0; scores that do not vary carry no information"
            )
        self.squares = self.squares or self.sd**2 * self.count

    @property
    def scale(self) -> float:
        """Divisor of the scores."""
        if self.config.normalise == "running":
            return math.sqrt(self.squares / self.count)
        return self.sd if self.config.normalise == "reference" else 1.0

    def __call__(self, scores: Scores) -> torch.Tensor:
        """Return the shaped scores (B,) of B responses.

        Bounded shaping is PAR (Fu et al. 2025) with one reference response per prompt, minus 1/2,
        so that the reference itself has a reward of 0 on average.
        """
        if self.config.bounded:
            assert scores.anchor is not None
            return torch.sigmoid((scores.scores - scores.anchor) / self.sd) - 0.5
        paid = scores.scores / self.scale
        if self.config.clip is None:
            return paid
        limit = self.config.clip * self.sd / self.scale
        return paid.clamp(-limit, limit)

    def measure(self, scores: Scores) -> None:
        """Set `unit` from the scores of the reference policy's responses."""
        self.unit = float(self(scores).std(unbiased=False))

    def see(self, scores: Scores) -> None:
        """Add a batch to the running standard deviation, after training on it."""
        self.count += len(scores.scores)
        self.squares += float(scores.scores.double().square().sum())

    def state_dict(self) -> dict[str, Any]:
        """Return the state, ready for JSON."""
        return {name: asdict(self)[name] for name in ("count", "squares")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        self.count, self.squares = state["count"], state["squares"]
