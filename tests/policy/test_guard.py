"""The guard: patience, escalation, settling, giving up."""

from __future__ import annotations

from burnish.config.guard import GuardConfig
from burnish.policy.guard import GuardState, guard_step
from burnish.records import Alert, StepStats

CONFIG = GuardConfig(patience=2, max_raises=1, max_rollbacks=1, settle_updates=1)


def stats(step: int = 1) -> StepStats:
    return StepStats(step, 0, {"kl": 9.0, "kl_coef": 0.1, "score": 1.0})


def alert(name: str = "kl_spike", severity: str = "warning") -> Alert:
    return Alert(name, severity, f"{name} seen", 1, 9.0, 6.0)  # type: ignore[arg-type]


def test_a_healthy_update_clears_the_streak_and_does_nothing() -> None:
    out = guard_step(GuardState(streak=1), stats(), [], 5, CONFIG)
    assert (out.action, out.healthy, out.state.streak, out.decision) == ("none", True, 0, None)


def test_info_alerts_are_healthy() -> None:
    assert guard_step(GuardState(), stats(), [alert(severity="info")], 1, CONFIG).healthy


def test_one_warning_waits_two_raise_kl() -> None:
    one = guard_step(GuardState(), stats(), [alert()], 1, CONFIG)
    assert (one.action, one.healthy, one.state.streak) == ("none", False, 1)
    two = guard_step(one.state, stats(2), [alert()], 2, CONFIG)
    assert two.action == "raise_kl"
    assert two.state == GuardState(streak=0, raises=1, rollbacks=0, settled_at=4)


def test_after_an_action_it_waits_until_settled() -> None:
    state = GuardState(raises=1, streak=5, settled_at=4)
    assert guard_step(state, stats(), [alert()], 3, CONFIG).action == "none"
    assert guard_step(state, stats(), [alert()], 4, CONFIG).action == "roll_back"


def test_what_kl_cannot_mend_rolls_back_at_once_when_persistent() -> None:
    out = guard_step(GuardState(streak=1), stats(), [alert("loss_spike")], 2, CONFIG)
    assert out.action == "roll_back"
    assert out.state == GuardState(rollbacks=1, settled_at=4)


def test_critical_acts_at_once_even_unsettled() -> None:
    out = guard_step(GuardState(settled_at=99), stats(), [alert(severity="critical")], 1, CONFIG)
    assert out.action == "roll_back"


def test_gives_up_after_the_last_rollback_with_the_figures() -> None:
    out = guard_step(GuardState(rollbacks=1), stats(7), [alert(severity="critical")], 9, CONFIG)
    assert out.action == "give_up"
    assert out.decision is not None
    assert out.decision.evidence["kl"] == 9.0
    assert out.decision.evidence["threshold"] == 6.0
    assert out.decision.evidence["step"] == 7
    assert "1 roll-back" in out.decision.reason


def test_the_most_severe_alert_is_the_cause() -> None:
    out = guard_step(GuardState(), stats(), [alert(), alert("non_finite", "critical")], 1, CONFIG)
    assert out.decision is not None
    assert out.decision.evidence["alert"] == "non_finite"


def test_switched_off_it_never_acts() -> None:
    off = CONFIG.model_copy(update={"enabled": False})
    state = GuardState()
    for tick in range(10):
        out = guard_step(state, stats(), [alert(severity="critical")], tick, off)
        state = out.state
        assert out.action == "none"
        assert not out.healthy
