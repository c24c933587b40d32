"""The watcher's sequential test: its rate of false actions, what it finds, and how the guard acts on it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from false_actions import CASES, EVERY, detector_figures, falls, first_action, watcher_figures

from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.monitor.watcher import CRITICAL, ERROR, Look, WatcherMonitor, critical_value, fall, windows
from burnish.pipeline.oversight import Oversight
from burnish.records import StepStats


def looked(step: int, watcher: float, proxy: float, se: float = 0.1, **other: float) -> StepStats:
    return StepStats(step, 3, {"watcher": watcher, "watcher_se": se, "score": proxy, **other})


LONG = [pytest.param(*case, marks=pytest.mark.slow("statistics") if case[0] > 36 else ()) for case in CASES]


@pytest.mark.parametrize(("updates", "answers", "correlation"), LONG)
@pytest.mark.parametrize("trend", ["flat", "rising"])
def test_at_most_one_healthy_run_in_twenty_is_acted_on(
    updates: int, answers: int, correlation: float, trend: str
) -> None:
    """At 80 runs a rate of 5 % stays under 9 actions with probability 0.98."""
    runs, rng = 80, np.random.default_rng(updates + answers)

    def mean(step: int) -> float:
        return step / updates if trend == "rising" else 0.0

    acted = [
        first_action(watcher_figures(updates, mean, rng, answers=answers, correlation=correlation), updates)
        for _ in range(runs)
    ]
    assert sum(tick is not None for tick in acted) <= 8


@pytest.mark.parametrize(("updates", "answers", "correlation"), LONG)
def test_detectors_act_on_no_run_that_stands_still_though_answers_to_a_prompt_are_alike(
    updates: int, answers: int, correlation: float
) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        figures = detector_figures(updates, rng, answers=answers, correlation=correlation)
        assert first_action(figures, updates) is None


@pytest.mark.parametrize(
    ("updates", "answers", "correlation", "share"),
    [(36, 1, 0.0, 0.85), (36, 4, 0.5, 0.6), (200, 1, 0.0, 0.9), (200, 4, 0.5, 0.85)],
)
def test_a_fall_of_half_a_standard_deviation_is_acted_on(
    updates: int, answers: int, correlation: float, share: float
) -> None:
    """After two fifths of the run the watcher falls and stays there; a false action before that is not counted."""
    runs, rng, at = 40, np.random.default_rng(7), 0.4 * updates
    acted = [
        first_action(
            watcher_figures(updates, falls(at), rng, answers=answers, correlation=correlation), updates
        )
        for _ in range(runs)
    ]
    assert sum(tick is not None and tick > at for tick in acted) >= share * runs


def test_the_critical_values_are_those_of_the_largest_of_all_comparisons() -> None:
    rng, runs = np.random.default_rng(1), 20000
    for looks, critical in ((4, CRITICAL[1]), (32, CRITICAL[4])):
        values = rng.standard_normal((looks, runs))
        sums = np.vstack([np.zeros((1, runs)), np.cumsum(values, 0)])
        largest = np.full(runs, -math.inf)
        for n in range(2, looks + 1):
            for before, after in windows(n, 0):
                early = (sums[n - after] - sums[n - after - before]) / before
                late = (sums[n] - sums[n - after]) / after
                largest = np.maximum(largest, (early - late) / math.sqrt(1 / before + 1 / after))
        assert float((largest > critical).mean()) == pytest.approx(ERROR, abs=0.006)
        assert critical_value(looks) == critical
    assert CRITICAL[2] < critical_value(12) < CRITICAL[3]
    assert critical_value(2048) == pytest.approx(2 * CRITICAL[-1] - CRITICAL[-2])


def test_windows_are_adjacent_and_begin_after_the_last_action() -> None:
    assert list(windows(1, 0)) == [], "nothing to compare with"
    assert list(windows(4, 0)) == [(1, 1), (2, 1), (3, 1), (1, 2), (2, 2)]
    assert list(windows(6, 5)) == [(1, 1), (2, 1), (4, 1), (5, 1)]
    assert list(windows(6, 6)) == []


def test_a_comparison_worked_by_hand() -> None:
    """Welch: variances 0.04 / 4 + 0.04 / 4 (two looks) and 0.09 (one); 9 degrees of freedom a look."""
    looks = [Look(1.0, 0.2, 10, 0.0), Look(2.0, 0.2, 10, 0.0), Look(0.0, 0.3, 10, 1.0)]
    variance = 0.01 + 0.01 + 0.09
    freedom = variance**2 / ((0.01**2 + 0.01**2 + 0.09**2) / 9)
    assert freedom == pytest.approx(13.12, abs=0.01)
    # Student's t with 13.12 degrees of freedom: one-sided 2.275 % (z = 2) lies at 2.20.
    found = fall(looks, 2, 1, 2.0)
    assert found is not None
    assert found.limit == pytest.approx(1.5 - 2.2 * math.sqrt(variance), abs=0.01)
    assert (found.before, found.after, found.looks) == (1.5, 0.0, 1)
    assert fall(looks, 2, 1, 4.5) is None
    honest = [*looks[:2], Look(0.0, 0.3, 10, -1.0)]
    assert fall(honest, 2, 1, 2.0) is None, "the proxy fell as well"
    rose = [*looks[:2], Look(1.6, 0.3, 10, 1.0)]
    assert fall(rose, 2, 1, 2.0) is None


def test_scores_that_never_vary_leave_nothing_to_chance() -> None:
    same = [Look(1.0, 0.0, 10, 0.0), Look(0.9, 0.0, 10, 1.0)]
    assert fall(same, 1, 1, 3.0) is not None
    assert fall([same[0], Look(1.0, 0.0, 10, 1.0)], 1, 1, 3.0) is None


def test_a_verdict_stands_until_the_next_look_and_says_what_was_seen() -> None:
    monitor = WatcherMonitor(True, 8)
    assert monitor.observe(looked(1, 2.0, 1.0)) == []
    (alert,) = monitor.observe(looked(5, -2.0, 5.0))
    assert (alert.name, alert.severity, alert.step, alert.value) == ("watcher_gap", "warning", 5, -2.0)
    text = "the watcher fell from 2.00 to -2.00 (one look) while the proxy rose from 1.00 to 5.00"
    assert alert.message == text
    assert alert.threshold == pytest.approx(2.0 - critical_value(8) * 0.1 * math.sqrt(2), abs=0.001)
    assert alert.evidence == {
        "attempt": 3,
        "watcher_before": 2.0,
        "proxy_before": 1.0,
        "proxy": 5.0,
        "looks": 1,
    }
    (again,) = monitor.observe(StepStats(6, 3, {"score": 5.0}))
    assert (again.step, again.message) == (6, text)
    assert monitor.observe(looked(10, 2.5, 5.5)) == [], "the next look is healthy"
    assert monitor.observe(StepStats(11, 3, {"score": 5.0})) == []


def test_after_an_action_only_what_follows_it_is_compared_with_what_was_before_the_fall() -> None:
    monitor = WatcherMonitor(True, 8)
    for step, value in ((1, 2.0), (5, 2.0), (10, -2.0)):
        monitor.observe(looked(step, value, step))
    monitor.acted()
    assert monitor.observe(StepStats(11, 3, {"score": 11.0})) == []
    assert (len(monitor.taken), monitor.since) == (2, 2)
    assert monitor.observe(looked(15, 2.0, 15.0)) == [], "it has recovered"
    monitor.acted()
    assert (len(monitor.taken), monitor.since) == (3, 3), "an action without a verdict drops no look"
    assert monitor.observe(looked(20, -2.0, 20.0)) != []


def test_without_a_standard_error_or_disarmed_it_abstains() -> None:
    monitor = WatcherMonitor(True, 8)
    assert monitor.observe(StepStats(1, 0, {"watcher": 2.0, "score": 0.0})) == []
    assert monitor.taken == []
    off = WatcherMonitor(False, 8)
    off.observe(looked(1, 0.5, 0.5))
    assert off.observe(looked(5, -9.0, 9.0)) == []


def test_a_checkpoint_keeps_looks_and_verdict() -> None:
    monitor, again = WatcherMonitor(True, 8), WatcherMonitor(True, 8)
    for step, value in ((1, 2.0), (5, -2.0)):
        monitor.observe(looked(step, value, step, prompts=9.0))
    again.load_state_dict(json.loads(json.dumps(monitor.state_dict())))
    later = StepStats(6, 3, {"score": 6.0})
    assert again.observe(later) == monitor.observe(later) != []
    assert again.taken == monitor.taken
    again.load_state_dict({"best": [1.0, 0.1, 0.0]})
    assert again.state_dict() == WatcherMonitor(True, 8).state_dict(), "an older checkpoint begins anew"


def test_the_guard_acts_on_two_verdicts_in_a_row_at_the_defaults_and_waits_for_new_looks() -> None:
    """One look every five updates: the guard sees the verdict on each update, and acts once per look at most."""
    oversight = Oversight.of(
        GuardConfig(), MonitorConfig(), kl_target=4.0, responses=64, armed=True, looks=8, tightest=2
    )
    actions = {}
    for step in range(1, 31):
        values = {"score": float(step), "kl_target": 4.0, "kl_smoothed": 2.0}
        if step == 1 or step % EVERY == 0:
            values |= {"watcher": 1.0 if step < 10 else -1.0, "watcher_se": 0.1, "prompts": 64.0}
        update = StepStats(step, 0, values)
        verdict = oversight.judge(update, oversight.observe(update), step)
        if verdict.action != "none":
            actions[step] = verdict.action
            assert verdict.decision is not None
            assert verdict.decision.evidence["alert"] == "watcher_gap"
    assert actions == {12: "raise_kl", 17: "raise_kl", 22: "tighten", 27: "tighten"}
