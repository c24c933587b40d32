"""The adaptive KL controller (Ziegler et al. 2019): one coefficient that holds KL at a target."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

ERROR_CLIP = 0.2
BEGUN = 0.1  # share of the target; below it, the policy has hardly moved
STALLED = 5  # updates without a rise of the smoothed KL that count as a stall
RISE = 0.02  # share of the target that counts as a rise
STALL_ROOM = 4.0  # before half the target is reached, a stall divides the start by at most this


def initial_coef(score_sd: float, target: float) -> float:
    """Return the coefficient with its optimum at `target` nats for Gaussian reference scores.

    `score_sd` is the standard deviation of the scores of responses to one prompt. Differences
    between prompts do not tilt the distribution of any prompt. Tilting N(0, sd^2) by exp(r / coef)
    shifts its mean by sd^2 / coef, a KL of sd^2 / (2 coef^2). Set that to the target: coef = sd /
    sqrt(2 target).
    """
    _positive("score_sd", score_sd)
    _positive("target", target)
    return score_sd / math.sqrt(2.0 * target)


def lowered_target(target: float, kl: float | None, factor: float) -> float:
    """Return the KL target for a coefficient that is `factor` times as large.

    It is the smaller of the target and the measured KL (nats per response), divided by the factor.
    A measured KL under a tenth of the target counts as a tenth of it.
    """
    reached = target if kl is None else min(target, max(kl, BEGUN * target))
    return reached / factor


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r} must be finite and above 0; pass such a number")


@dataclass
class AdaptiveKLController:
    """Controller that adapts one KL coefficient to hold the KL at a target.

    `target` is in nats per response (summed over tokens, averaged over the batch), `horizon` in
    episodes.

    `error = clip(kl / target - 1, -0.2, 0.2); coef *= 1 + error * n / horizon`, on a bias-corrected
    moving average of the measured KL, within [min_coef, max_coef] (the start too).

    - Anti-windup: the clamp discards any excess, so the coefficient turns as soon as the error
      changes sign.
    - The coefficient does not fall until the smoothed KL has once reached half the target. A policy
      that has only begun to move does not show that the penalty is too strong.
    - A policy that has moved and then stopped does show it. After five updates without a rise the
      coefficient may fall, but not below a quarter of its start.
    - A batch of more than a horizon counts as one horizon, so no update moves the coefficient by
      more than a fifth. The plain formula would make it negative at five horizons.
    - With a `lead`, the error is that of the KL `lead` updates ahead, extrapolated from the last
      two updates. An integral controller alone keeps lowering the coefficient until the target is
      passed (the derivative term of Stooke et al. 2020, section 5).

    State: `coef`, `average`, `weight`, `reached`, `highest` (smoothed KL), `stalled` (updates
    since) and `start` (coefficient). The other fields are settings; `state_dict` returns both.
    """

    coef: float
    target: float
    horizon: float
    smoothing: float = 0.0
    min_coef: float = 1e-4
    max_coef: float = 10.0
    average: float = 0.0
    weight: float = 0.0
    reached: bool = False
    lead: float = 0.0
    highest: float = 0.0
    stalled: int = 0
    start: float = 0.0

    def __post_init__(self) -> None:
        for name in ("coef", "target", "horizon", "min_coef", "max_coef"):
            _positive(name, getattr(self, name))
        if self.min_coef > self.max_coef:
            raise ValueError(f"min_coef={self.min_coef} must not exceed max_coef={self.max_coef}; swap them")
        if not 0.0 <= self.smoothing < 1.0:
            raise ValueError(f"smoothing={self.smoothing!r} must lie in [0, 1); 0 turns it off")
        if not (math.isfinite(self.lead) and self.lead >= 0):
            raise ValueError(f"lead={self.lead!r} must be finite and at least 0; 0 turns it off")
        self.coef = self._clamp(self.coef)
        self.start = self.start or self.coef

    @property
    def smoothed(self) -> float | None:
        """Moving average of the measured KL, None before the first measurement."""
        return self.average / self.weight if self.weight else None

    def update(self, kl_seq_sum_nats: float, n_episodes: int) -> float:
        """Update the coefficient with the mean KL of `n_episodes` responses, and return it.

        The KL of a response is a sum over tokens; the k1 mean of a small batch may be negative.
        Raises ValueError, and changes nothing, if the KL is not finite.
        """
        if not math.isfinite(kl_seq_sum_nats):
            raise ValueError(f"kl_seq_sum_nats={kl_seq_sum_nats!r} must be finite; skip this update")
        _positive("n_episodes", n_episodes)
        before = self.smoothed
        self.average = self.smoothing * self.average + (1 - self.smoothing) * kl_seq_sum_nats
        self.weight = self.smoothing * self.weight + (1 - self.smoothing)
        kl = self.average / self.weight
        self.reached = self.reached or kl >= self.target / 2
        ahead = kl + self.lead * (kl - (kl if before is None else before))
        error = min(max(ahead / self.target - 1.0, -ERROR_CLIP), ERROR_CLIP)
        if self.stalled < STALLED:  # a stall, once found, is not reset
            self.stalled = 0 if kl > self.highest + RISE * self.target else self.stalled + 1
        self.highest = max(self.highest, kl)
        moved = self.coef * (1.0 + error * min(n_episodes / self.horizon, 1.0))
        if self.reached:  # includes every KL above the target
            self.coef = self._clamp(moved)
        elif self.stalled >= STALLED and self.highest >= BEGUN * self.target:
            lowest = min(self.coef, self.start / STALL_ROOM)
            self.coef = self._clamp(max(min(moved, self.coef), lowest))
        return self.coef

    def lower_target(self, factor: float) -> None:
        """Lower the target by `lowered_target`, so that a raise by `factor` is not undone."""
        self.target = lowered_target(self.target, self.smoothed, factor)

    def raise_coef(self, factor: float) -> None:
        """Multiply the coefficient by `factor`, within its limits."""
        _positive("factor", factor)
        self.coef = self._clamp(self.coef * factor)

    def _clamp(self, coef: float) -> float:
        return min(max(coef, self.min_coef), self.max_coef)

    def state_dict(self) -> dict[str, Any]:
        """Return the state and the settings, ready for JSON."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a `state_dict`; raise ValueError, and change nothing, for any other content."""
        state = {
            "lead": 0.0,
            "highest": 0.0,
            "stalled": 0,
            "start": 0.0,
        } | state  # keys that older checkpoints lack
        names = {f.name for f in fields(self)}
        if set(state) != names:
            raise ValueError(
                f"controller state has the wrong keys: {sorted(set(state) ^ names)} missing or unknown; "
                "load one that `state_dict` wrote"
            )
        checked = replace(self, **state)
        for name in names:
            setattr(self, name, getattr(checked, name))
