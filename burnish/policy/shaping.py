"""What PPO is paid for a score: normalised, clipped, or bounded and centred."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch

from burnish.config.ppo import ShapingConfig
from burnish.records import Scores

PRIOR = 256.0  # responses of the reference policy that a running standard deviation begins with


@dataclass
class Shaping:
    """`sd` is that of scores on responses of the reference policy, `unit` that of what is paid for these. `count` and
    `squares` are state: responses seen so far (the reference's at first), and the sum of their squared scores; these
    are centred on the reference's mean already."""

    config: ShapingConfig
    sd: float
    unit: float = 1.0
    count: float = PRIOR
    squares: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sd) and self.sd > 0):
            raise ValueError(f"sd={self.sd!r} must be finite and above 0; the scores say nothing")
        self.squares = self.squares or self.sd**2 * self.count

    @property
    def scale(self) -> float:
        """What scores are divided by."""
        if self.config.normalise == "running":
            return math.sqrt(self.squares / self.count)
        return self.sd if self.config.normalise == "reference" else 1.0

    def __call__(self, scores: Scores) -> torch.Tensor:
        """(B,) what is paid for B responses. PAR: Fu et al. 2025, with one reference response a prompt; minus 1/2, so
        that the reference itself is worth nothing on average."""
        if self.config.bounded:
            assert scores.anchor is not None
            return torch.sigmoid((scores.scores - scores.anchor) / self.sd) - 0.5
        paid = scores.scores / self.scale
        if self.config.clip is None:
            return paid
        limit = self.config.clip * self.sd / self.scale
        return paid.clamp(-limit, limit)

    def measure(self, scores: Scores) -> None:
        """Take `unit` from scores of the reference policy's responses."""
        self.unit = float(self(scores).std(unbiased=False))

    def see(self, scores: Scores) -> None:
        """Take a batch into the running standard deviation, once it has been learned from."""
        self.count += len(scores.scores)
        self.squares += float(scores.scores.double().square().sum())

    def state_dict(self) -> dict[str, Any]:
        return {name: asdict(self)[name] for name in ("count", "squares")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.squares = state["count"], state["squares"]
