"""The guard: patience, escalation, settling, giving up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from burnish.config.guard import GuardConfig
from burnish.detectors import DETECTORS
from burnish.policy.guard import HACKS, GuardState, guard_step
from burnish.records import Alert, StepStats

CONFIG = GuardConfig(patience=2, max_raises=1, max_rollbacks=1, settle_updates=1)


def stats(step: int = 1) -> StepStats:
    return StepStats(step, 0, {"kl": 9.0, "kl_coef": 0.1, "score": 1.0})


def alert(name: str = "kl_spike", severity: str = "warning") -> Alert:
    return Alert(name, severity, f"{name} seen", 1, 9.0, 6.0)  # type: ignore[arg-type]


def test_a_streak_ends_after_healthy_updates_in_a_row() -> None:
    one = guard_step(GuardState(streak=1), stats(), [], 5, CONFIG)
    assert (one.action, one.healthy, one.state.streak, one.decision) == ("none", True, 1, None)
    assert guard_step(one.state, stats(), [], 6, CONFIG).state.streak == 0
    between = guard_step(one.state, stats(), [alert()], 6, CONFIG)
    assert between.action == "raise_kl", "one healthy update between two others is no recovery"


def test_what_was_used_up_is_forgiven_after_long_health() -> None:
    state = GuardState(raises=1, cuts=1, rollbacks=1, tightenings=1, calm=CONFIG.forgive_updates - 1)
    after = guard_step(state, stats(), [], 50, CONFIG).state
    assert (after.raises, after.cuts) == (0, 0)
    assert (after.rollbacks, after.tightenings) == (1, 1)


def test_a_hack_that_raises_do_not_end_tightens_the_reward_before_it_rolls_back() -> None:
    state = GuardState(raises=1, streak=1)
    tight = guard_step(state, stats(), [alert("watcher_gap")], 9, CONFIG, tightest=1)
    assert (tight.action, tight.state.tightenings) == ("tighten", 1)
    again = guard_step(
        replace(tight.state, streak=1), stats(), [alert("watcher_gap")], 99, CONFIG, tightest=1
    )
    assert again.action == "roll_back"
    assert again.state.tightenings == 1
    assert guard_step(state, stats(), [alert("watcher_gap")], 9, CONFIG).action == "roll_back"


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("kl_spike", "optimiser"),
        ("loss_spike", "optimiser"),
        ("watcher_gap", "reward"),
        ("flat_reward", "reward"),
        ("exploding_reward", "reward"),
        ("stock_phrase", "reward"),
    ],
)
def test_a_decision_says_whether_the_reward_or_the_optimiser_failed(name: str, cause: str) -> None:
    out = guard_step(GuardState(), stats(), [alert(name, "critical")], 1, CONFIG)
    assert out.decision is not None
    assert out.decision.evidence["cause"] == cause


def test_a_reward_that_is_flat_is_given_up_at_once() -> None:
    out = guard_step(GuardState(), stats(), [alert("flat_reward", "critical")], 1, CONFIG)
    assert out.action == "give_up"


def test_every_detector_has_its_rung() -> None:
    assert DETECTORS.keys() - {"sampling_gap"} | {"watcher_gap"} == HACKS


def test_info_alerts_are_healthy() -> None:
    assert guard_step(GuardState(), stats(), [alert(severity="info")], 1, CONFIG).healthy


def test_one_warning_waits_two_raise_kl() -> None:
    one = guard_step(GuardState(), stats(), [alert()], 1, CONFIG)
    assert (one.action, one.healthy, one.state.streak) == ("none", False, 1)
    two = guard_step(one.state, stats(2), [alert()], 2, CONFIG)
    assert two.action == "raise_kl"
    assert two.state == GuardState(streak=0, raises=1, rollbacks=0, settled_at=4)


def test_after_an_action_it_waits_until_settled() -> None:
    state = GuardState(raises=1, cuts=1, streak=5, settled_at=4)
    assert guard_step(state, stats(), [alert()], 3, CONFIG).action == "none"
    assert guard_step(state, stats(), [alert()], 4, CONFIG).action == "roll_back"


def test_too_large_steps_are_made_smaller_before_anything_is_rolled_back() -> None:
    out = guard_step(GuardState(streak=1), stats(), [alert("loss_spike")], 2, CONFIG)
    assert out.action == "lower_rate"
    again = guard_step(replace(out.state, streak=1), stats(), [alert("loss_spike")], 4, CONFIG)
    assert again.action == "roll_back"
    assert again.state == GuardState(rollbacks=1, settled_at=6)


def test_what_nothing_mends_rolls_back_when_it_persists() -> None:
    assert guard_step(GuardState(streak=1), stats(), [alert("sampling_gap")], 2, CONFIG).action == "roll_back"


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


def test_a_decision_holds_all_its_evidence() -> None:
    state = GuardState(streak=1, rollbacks=0)
    out = guard_step(
        state, StepStats(7, 2, {"kl": 9.0, "score": 1.0}), [alert("watcher_gap")], 11, CONFIG, tightest=1
    )
    assert out.decision is not None
    assert out.healthy is False
    assert out.decision.action == out.action == "raise_kl"
    assert out.decision.evidence == {
        "kl": 9.0,
        "score": 1.0,
        "alert": "watcher_gap",
        "value": 9.0,
        "threshold": 6.0,
        "cause": "reward",
        "step": 7,
        "attempt": 2,
        "tick": 11,
    }


@pytest.mark.parametrize(
    ("state", "name", "words"),
    [
        (GuardState(streak=1), "kl_spike", "kl_spike seen: KL coefficient times 2"),
        (GuardState(streak=1), "loss_spike", "loss_spike seen: learning rates times 0.5"),
        (
            GuardState(streak=1, raises=1),
            "length_drift",
            "length_drift seen: where the reward models disagree, the score counts for less from here on",
        ),
        (GuardState(streak=1, rollbacks=0), "sampling_gap", "sampling_gap seen: roll-back 1 of at most 1"),
        (GuardState(streak=1, rollbacks=1), "sampling_gap", "sampling_gap seen: given up after 1 roll-backs"),
    ],
)
def test_what_was_done_is_told_in_words(state: GuardState, name: str, words: str) -> None:
    out = guard_step(state, stats(), [alert(name)], 5, CONFIG, tightest=1)
    assert out.decision is not None
    assert out.decision.reason == words


def test_an_alert_between_healthy_updates_starts_their_count_again() -> None:
    calm = GuardState(calm=CONFIG.calm_updates - 1, streak=1, raises=1)
    out = guard_step(calm, stats(), [alert()], 1, CONFIG.model_copy(update={"patience": 9}))
    assert (out.state.calm, out.state.streak) == (0, 2)
    off = guard_step(calm, stats(), [alert()], 1, CONFIG.model_copy(update={"enabled": False}))
    assert (off.state, off.healthy) == (calm, False)
    assert guard_step(calm, stats(), [], 1, CONFIG.model_copy(update={"enabled": False})).healthy


def test_what_was_used_up_is_not_forgiven_a_day_too_early() -> None:
    state = GuardState(raises=1, cuts=1, calm=CONFIG.forgive_updates - 2)
    after = guard_step(state, stats(), [], 50, CONFIG).state
    assert (after.raises, after.cuts) == (1, 1)


def test_every_mend_counts_one_and_a_roll_back_gives_an_attempt_its_own_again() -> None:
    wide = CONFIG.model_copy(update={"max_rate_cuts": 3, "max_rollbacks": 3})
    cut = guard_step(GuardState(streak=1), stats(), [alert("loss_spike")], 2, wide)
    assert cut.state.cuts == 1
    used = GuardState(streak=1, raises=9, cuts=9, rollbacks=1)
    back = guard_step(used, stats(), [alert("kl_spike")], 2, wide)
    assert back.state == GuardState(rollbacks=2, settled_at=3 + wide.settle_updates)
    assert back.state.state_dict()["rollbacks"] == 2


def test_a_raise_against_a_hack_lowers_the_target_too_and_says_so() -> None:
    def words(alert: str, **values: float) -> str:
        seen = StepStats(7, 0, values)
        out = guard_step(GuardState(streak=1), seen, [Alert(alert, "warning", alert, 7, 2.0, 1.0)], 9, CONFIG)
        assert out.decision is not None
        assert out.action == "raise_kl"
        return out.decision.reason

    lowered = "KL coefficient times 2, KL target from 4 to 1.5 nats for the rest of this attempt"
    assert lowered in words("length_drift", kl_target=4.0, kl_smoothed=3.0)
    assert "from 4 to 2 nats" in words("length_drift", kl_target=4.0)
    assert words("kl_spike", kl_target=4.0).endswith("KL coefficient times 2"), "the controller agrees there"
