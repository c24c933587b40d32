"""The guard over PPO: a pure reducer from (state, figures, alerts) to (state, action with evidence).

Escalation: an unhealthy streak raises the KL coefficient; if that does not help, or something is critical,
the run goes back to its last healthy checkpoint with smaller steps; after too many roll-backs PPO is given up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from burnish.config.guard import GuardConfig
from burnish.records import Alert, Decision, StepStats

Action = Literal["none", "raise_kl", "roll_back", "give_up"]
EVIDENCE = (
    *("kl", "kl_smoothed", "kl_coef", "score", "watcher", "entropy", "length", "truncated"),
    *("repetition", "foreign", "ref_nll", "grad_norm"),
)
RAISABLE = frozenset(  # what a larger KL coefficient can mend
    {"kl_spike", "watcher_gap", "length_drift", "truncation", "repetition", "language_switch", "nonsense"}
)


@dataclass(frozen=True)
class GuardState:
    """`streak` unhealthy updates in a row, `raises` in this attempt, `rollbacks` so far, `settled_at` the tick
    from which the guard may act again."""

    streak: int = 0
    raises: int = 0
    rollbacks: int = 0
    settled_at: int = 0

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class GuardStep:
    """What one update led to. `healthy` updates are fit to be rolled back to."""

    state: GuardState
    action: Action
    decision: Decision | None
    healthy: bool


def guard_step(
    state: GuardState, stats: StepStats, alerts: Sequence[Alert], tick: int, config: GuardConfig
) -> GuardStep:
    """Judge one update. Warnings must persist for `patience` updates, a critical alert acts at once; after an
    action the guard waits `settle_updates` before the next, unless something is critical."""
    warnings = [a for a in alerts if a.severity == "warning"]
    critical = [a for a in alerts if a.severity == "critical"]
    healthy = not (warnings or critical)
    if healthy or not config.enabled:
        return GuardStep(replace(state, streak=0), "none", None, healthy)
    state = replace(state, streak=state.streak + 1)
    persists = state.streak >= config.patience and tick >= state.settled_at
    if not (critical or persists):
        return GuardStep(state, "none", None, False)
    cause = (critical or warnings)[0]
    mendable = not critical and cause.name in RAISABLE
    if mendable and state.raises < config.max_raises:
        action: Action = "raise_kl"
        state = replace(state, raises=state.raises + 1, streak=0, settled_at=tick + 1 + config.settle_updates)
        what = f"KL coefficient multiplied by {config.raise_kl_factor:g}"
    elif state.rollbacks < config.max_rollbacks:
        action = "roll_back"
        state = GuardState(rollbacks=state.rollbacks + 1, settled_at=tick + 1 + config.settle_updates)
        what = f"roll-back {state.rollbacks} of at most {config.max_rollbacks}"
    else:
        action = "give_up"
        what = f"given up after {state.rollbacks} roll-backs"
    evidence: dict[str, Any] = {name: stats[name] for name in EVIDENCE if name in stats.values}
    evidence |= {"alert": cause.name, "value": cause.value, "threshold": cause.threshold}
    evidence |= {"step": stats.step, "attempt": stats.attempt, "tick": tick}
    return GuardStep(state, action, Decision(action, f"{cause.message}: {what}", evidence), False)
