"""Health and hacking monitors: planted faults are found, calm runs are left alone, missing figures abstain."""

from __future__ import annotations

import random

from burnish.config.monitor import MonitorConfig
from burnish.monitor.health import HealthMonitor
from burnish.records import StepStats


def step(n: int = 1, **values: float) -> StepStats:
    return StepStats(n, 0, values)


def monitor() -> HealthMonitor:
    return HealthMonitor(MonitorConfig(), kl_target=4.0)


def names(alerts: list) -> list[tuple[str, str]]:
    return [(a.name, a.severity) for a in alerts]


def test_a_calm_run_gives_no_alert() -> None:
    rng, m = random.Random(0), monitor()
    for n in range(200):
        noisy = step(
            n,
            kl=4 + rng.gauss(0, 0.6),
            entropy=1.6 + rng.gauss(0, 0.05),
            value_loss=0.3 * rng.lognormvariate(0, 0.3),
            clip_fraction=0.1,
            approx_kl=0.01,
            skipped=0.0,
        )
        assert m.observe(noisy) == []


def test_kl_spikes_by_degree() -> None:
    assert names(monitor().observe(step(kl=8.1))) == [("kl_spike", "warning")]
    assert names(monitor().observe(step(kl=16.1))) == [("kl_spike", "critical")]
    assert monitor().observe(step(kl=8.0)) == []
    assert names(monitor().observe(step(kl=1.0, kl_smoothed=9.0))) == [("kl_spike", "warning")]


def test_entropy_collapse_is_judged_against_the_start_even_after_a_restart() -> None:
    m = monitor()
    assert m.observe(step(entropy=2.0)) == []
    m.restart(m)
    assert m.observe(step(entropy=0.61)) == []
    assert names(m.observe(step(entropy=0.59))) == [("entropy_collapse", "critical")]


def test_loss_spike_needs_a_calm_past() -> None:
    m = monitor()
    assert m.observe(step(value_loss=100.0)) == []
    for _ in range(6):
        m.observe(step(value_loss=1.0))
    assert names(m.observe(step(value_loss=9.0))) == [("loss_spike", "warning")]


def test_non_finite_updates_alert_when_repeated() -> None:
    m = monitor()
    assert m.observe(step(skipped=1.0)) == []
    assert m.observe(step(skipped=2.0)) == []
    assert names(m.observe(step(skipped=1.0))) == [("non_finite", "critical")]
    assert m.observe(step(skipped=0.0)) == []


def test_a_missing_figure_is_no_alert() -> None:
    assert monitor().observe(step()) == []


def test_state_survives_a_restart_of_the_process() -> None:
    m, again = monitor(), monitor()
    for n in range(7):
        m.observe(step(n, entropy=2.0, value_loss=1.0, skipped=1.0))
    again.load_state_dict(m.state_dict())
    bad = step(9, entropy=0.1, value_loss=99.0, skipped=1.0)
    assert again.observe(bad) == m.observe(bad) != []


def rewarded(score: float, sd: float, entropy: float = 2.0) -> StepStats:
    return StepStats(1, 0, {"score": score, "score_sd": sd, "entropy": entropy})


def test_one_score_for_all_answers_is_critical_when_it_lasts_and_no_single_answer_explains_it() -> None:
    m = monitor()
    assert m.observe(rewarded(0.0, 1.0)) == []
    found = [m.observe(rewarded(0.3, 1e-8)) for _ in range(5)]
    assert [len(alerts) for alerts in found] == [0, 0, 0, 0, 1]
    assert (found[-1][0].name, found[-1][0].severity) == ("flat_reward", "critical")
    collapsed = monitor()
    collapsed.observe(rewarded(0.0, 1.0))
    names = {a.name for _ in range(6) for a in collapsed.observe(rewarded(0.3, 0.0, entropy=0.1))}
    assert names == {"entropy_collapse"}


def test_a_score_that_no_answer_is_worth() -> None:
    m = monitor()
    m.observe(rewarded(1.0, 0.5))
    assert m.observe(rewarded(25.9, 0.5)) == []
    (alert,) = m.observe(rewarded(-24.1, 0.5))
    assert (alert.name, alert.severity, alert.threshold) == ("exploding_reward", "critical", 25.0)
    later = monitor()
    later.restart(m)
    assert later.observe(rewarded(-24.1, 0.5)), "what it was before the roll-back is what it is held against"
