"""Guard over PPO: a pure function from (state, figures, alerts) to (state, action, evidence).

The guard answers a persistent warning with the mildest action that can help. It raises the KL
coefficient, combines the reward models more carefully, or lowers the learning rate. If the policy
exploits the reward, a raise also lowers the KL target. If the warning persists, it rolls the run
back to the last checkpoint that has proved healthy, with smaller steps. After too many roll-backs
it gives PPO up. A critical alert rolls back at once. A reward from which no policy can learn gives
PPO up at once. A streak ends after several healthy updates in a row; after many, the counts of
raises and cuts restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from burnish import detectors
from burnish.config.guard import GuardConfig
from burnish.detectors import FIGURES
from burnish.policy.kl_control import lowered_target
from burnish.records import Alert, Decision, StepStats

Action = Literal["none", "raise_kl", "tighten", "lower_rate", "roll_back", "give_up"]
Cause = Literal["reward", "optimiser"]
EVIDENCE = ("kl", "kl_smoothed", "kl_coef", "kl_target", "watcher", *FIGURES, "grad_norm")
HACKS = detectors.HACKS | {"watcher_gap"}  # alerts that mean that the policy exploits the reward
HOPELESS = "flat_reward"  # no other policy can improve it
REWARD = HACKS | {HOPELESS, "exploding_reward"}  # alerts that mean the reward has failed
MENDS: dict[str, tuple[Action, ...]] = {
    **dict.fromkeys(HACKS, ("raise_kl", "tighten")),
    "kl_spike": ("raise_kl", "lower_rate"),
    **dict.fromkeys(("clip_fraction", "approx_kl", "loss_spike"), ("lower_rate",)),
}
"""Actions that can help against each alert, mildest first."""


def cause_of(alert: str) -> Cause:
    """Return whether an alert means that the reward or the optimiser has failed."""
    return "reward" if alert in REWARD else "optimiser"


@dataclass(frozen=True)
class GuardState:
    """State of the guard between updates.

    `streak`: unhealthy updates not yet followed by enough healthy ones. `calm`: healthy updates in
    a row. `raises`, `cuts`: KL raises and learning-rate cuts in this attempt. `tightenings`,
    `rollbacks`: counts over all attempts. `settled_at`: the tick from which the guard may act
    again.
    """

    streak: int = 0
    calm: int = 0
    raises: int = 0
    cuts: int = 0
    tightenings: int = 0
    rollbacks: int = 0
    settled_at: int = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as a dict, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class GuardStep:
    """Result of judging one update; `healthy` means that no alert was a warning or critical."""

    state: GuardState
    action: Action
    decision: Decision | None
    healthy: bool


def guard_step(
    state: GuardState,
    stats: StepStats,
    alerts: Sequence[Alert],
    tick: int,
    config: GuardConfig,
    *,
    tightest: int = 0,
) -> GuardStep:
    """Judge one update and choose the action of the guard.

    A warning must persist for `patience` updates; a critical alert leads to an action at once.
    After an action the guard waits `settle_updates` before the next, unless an alert is critical.
    `tightest` is how often the reward models can be combined more carefully.
    """
    warnings = [a for a in alerts if a.severity == "warning"]
    critical = [a for a in alerts if a.severity == "critical"]
    healthy = not (warnings or critical)
    if not config.enabled:
        return GuardStep(state, "none", None, healthy)
    if healthy:
        return GuardStep(_calmer(state, config), "none", None, True)
    state = replace(state, streak=state.streak + 1, calm=0)
    persists = state.streak >= config.patience and tick >= state.settled_at
    if not (critical or persists):
        return GuardStep(state, "none", None, False)
    cause = (critical or warnings)[0]
    limits = {"raise_kl": config.max_raises, "tighten": tightest, "lower_rate": config.max_rate_cuts}
    used = {"raise_kl": state.raises, "tighten": state.tightenings, "lower_rate": state.cuts}
    mends = () if critical else MENDS.get(cause.name, ())
    action: Action = next((m for m in mends if used[m] < limits[m]), "roll_back")
    if action == "roll_back" and (cause.name == HOPELESS or state.rollbacks >= config.max_rollbacks):
        action = "give_up"
    after, what = _taken(state, action, cause_of(cause.name), stats, tick, config)
    evidence: dict[str, Any] = {name: stats[name] for name in EVIDENCE if name in stats.values}
    evidence |= {"alert": cause.name, "value": cause.value, "threshold": cause.threshold}
    evidence |= {"cause": cause_of(cause.name), "step": stats.step, "attempt": stats.attempt, "tick": tick}
    return GuardStep(after, action, Decision(action, f"{cause.message}: {what}", evidence), False)


def _calmer(state: GuardState, config: GuardConfig) -> GuardState:
    """Return the state after a healthy update: end the streak, and later reset raises and cuts."""
    calm = state.calm + 1
    state = replace(state, calm=calm, streak=0 if calm >= config.calm_updates else state.streak)
    return replace(state, raises=0, cuts=0) if calm >= config.forgive_updates else state


def _taken(
    state: GuardState, action: Action, cause: Cause, stats: StepStats, tick: int, config: GuardConfig
) -> tuple[GuardState, str]:
    """Return the state after an action and a description of the action."""
    acted = replace(state, streak=0, settled_at=tick + 1 + config.settle_updates)
    if action == "raise_kl":
        text = f"KL coefficient times {config.raise_kl_factor:g}"
        if cause == "reward" and "kl_target" in stats.values:
            target = stats["kl_target"]
            lower = lowered_target(target, stats.values.get("kl_smoothed"), config.raise_kl_factor)
            text += f", KL target from {target:.3g} to {lower:.3g} nats for the rest of this attempt"
        return replace(acted, raises=state.raises + 1), text
    if action == "tighten":
        text = "where the reward models disagree, the score counts for less from here on"
        return replace(acted, tightenings=state.tightenings + 1), text
    if action == "lower_rate":
        return replace(acted, cuts=state.cuts + 1), f"learning rates times {config.learning_rate_factor:g}"
    if action == "roll_back":
        text = f"roll-back {state.rollbacks + 1} of at most {config.max_rollbacks}"
        return replace(acted, raises=0, cuts=0, rollbacks=state.rollbacks + 1), text
    return state, f"given up after {state.rollbacks} roll-backs"
