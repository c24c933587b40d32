"""The adaptive KL controller (Ziegler et al. 2019): one coefficient that holds KL at a target."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

ERROR_CLIP = 0.2
BEGUN = 0.1  # of the target: a policy that has moved at all
STALLED = 5  # updates without a rise
RISE = 0.02  # of the target
STALL_ROOM = 4.0  # times that the coefficient may fall below its start before half of the target was reached


def initial_coef(score_sd: float, target: float) -> float:
    """The coefficient whose optimum lies at `target` nats if scores under the reference were Gaussian.

    `score_sd` is the standard deviation of the scores of responses to one prompt: what differs between prompts does
    not tilt the distribution of any. Tilting N(0, sd^2) by exp(r / coef) shifts its mean by sd^2 / coef, a KL of
    sd^2 / (2 coef^2); set that to the target: coef = sd / sqrt(2 target).
    """
    _positive("score_sd", score_sd)
    _positive("target", target)
    return score_sd / math.sqrt(2.0 * target)


def lowered_target(target: float, kl: float | None, factor: float) -> float:
    """The target that goes with a coefficient `factor` times as large: the smaller of target and measured KL (nats per
    response), divided by the factor. A measured KL under a tenth of the target counts as a tenth of it."""
    reached = target if kl is None else min(target, max(kl, BEGUN * target))
    return reached / factor


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name}={value!r} must be finite and above 0; pass such a number")


@dataclass
class AdaptiveKLController:
    """`target` in nats per response (summed over tokens, averaged over the batch), `horizon` in episodes.

    error = clip(kl / target - 1, -0.2, 0.2); coef *= 1 + error * n / horizon, on a bias-corrected moving
    average of the measured KL, within [min_coef, max_coef] (the start too). The clamp is the anti-windup:
    what lies beyond it is forgotten, so the coefficient turns with the error. The coefficient does not fall
    before the smoothed KL has once reached half its target: a policy that has only begun to move is no sign
    of too strong a penalty. One that has moved and then stopped is: after five updates without a rise the
    coefficient may fall, to a quarter of its start at most. A batch of more than a horizon counts as one
    horizon, so that no update moves it by over a fifth (the plain formula would turn the coefficient negative
    at five horizons). With a `lead`, the error is that of the KL so many updates ahead if it went on as from
    the last update to this one: an integral controller alone goes on lowering a coefficient until the target
    is passed (the derivative term of Stooke et al. 2020, section 5).

    `coef`, `average`, `weight`, `reached`, `highest` (smoothed KL), `stalled` (updates since) and `start`
    (coefficient) are state, the rest settings; `state_dict` holds both.
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
        """Take in the mean KL of `n_episodes` responses, each a sum over tokens; returns the new coefficient.

        The k1 mean of a small batch may be negative. One that is not finite raises ValueError and changes
        nothing.
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
        if self.stalled < STALLED:  # once it has stopped it may be let go on
            self.stalled = 0 if kl > self.highest + RISE * self.target else self.stalled + 1
        self.highest = max(self.highest, kl)
        moved = self.coef * (1.0 + error * min(n_episodes / self.horizon, 1.0))
        if self.reached:  # a KL above its target reaches half of it
            self.coef = self._clamp(moved)
        elif self.stalled >= STALLED and self.highest >= BEGUN * self.target:
            lowest = min(self.coef, self.start / STALL_ROOM)
            self.coef = self._clamp(max(min(moved, self.coef), lowest))
        return self.coef

    def lower_target(self, factor: float) -> None:
        """Lower the target by `lowered_target`, so that the controller does not undo a raise by `factor`."""
        self.target = lowered_target(self.target, self.smoothed, factor)

    def raise_coef(self, factor: float) -> None:
        """Multiply the coefficient, within its clamps."""
        _positive("factor", factor)
        self.coef = self._clamp(self.coef * factor)

    def _clamp(self, coef: float) -> float:
        return min(max(coef, self.min_coef), self.max_coef)

    def state_dict(self) -> dict[str, Any]:
        """State and settings, ready for JSON."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; anything else raises ValueError and changes nothing."""
        state = {
            "lead": 0.0,
            "highest": 0.0,
            "stalled": 0,
            "start": 0.0,
        } | state  # new ones
        names = {f.name for f in fields(self)}
        if set(state) != names:
            raise ValueError(
                f"controller state has the wrong keys: {sorted(set(state) ^ names)} missing or unknown; "
                "load one that `state_dict` wrote"
            )
        checked = replace(self, **state)
        for name in names:
            setattr(self, name, getattr(checked, name))
