"""What monitors say in full, and where exactly they begin to: at a limit nothing is wrong, past it all is told."""

from __future__ import annotations

from typing import ClassVar

import pytest

from burnish import detectors as at
from burnish.config.monitor import MonitorConfig
from burnish.detectors import DETECTORS, Drift, Found, drift, risen
from burnish.monitor.hacking import HackMonitor
from burnish.monitor.health import HealthMonitor
from burnish.records import Alert, StepStats


class Limits(MonitorConfig):
    """Monitor limits with other constants, which a binary fraction or two updates can reach exactly."""

    skipped_limit: ClassVar[int] = 2
    flat_limit: ClassVar[int] = 2
    reward_jump: ClassVar[float] = 16.0


CONFIG = Limits(kl_spike=2.0, entropy_floor=0.25, loss_spike=8.0, clip_fraction=0.5, approx_kl=0.25)


def step(n: int = 7, attempt: int = 3, **values: float) -> StepStats:
    return StepStats(n, attempt, values)


def seen(*updates: StepStats) -> list[Alert]:
    """The alerts of the last of some updates."""
    monitor = HealthMonitor(CONFIG, kl_target=4.0)
    return [monitor.observe(update) for update in updates][-1]


CALM = [step(value_loss=1.0)] * 5


@pytest.mark.parametrize(
    ("before", "values", "name", "severity", "value", "limit", "words"),
    [
        (
            [],
            {"kl": 9.0},
            "kl_spike",
            "warning",
            9.0,
            8.0,
            "KL 9.0 nats per response is over 8.0 (4 is the target)",
        ),
        ([], {"kl": 16.1}, "kl_spike", "critical", 16.1, 8.0, "KL 16.1 nats"),
        (
            [step(entropy=2.0)],
            {"entropy": 0.4},
            "entropy_collapse",
            "critical",
            0.4,
            0.5,
            "entropy 0.40 nats a token has fallen under 0.50, 25% of its start",
        ),
        (
            CALM,
            {"value_loss": 9.0},
            "loss_spike",
            "warning",
            9.0,
            8.0,
            "value loss 9 jumped over 8, 8 times its median",
        ),
        (
            [step(value_loss=0.25)] * 5,
            {"value_loss": 2.5},
            "loss_spike",
            "warning",
            2.5,
            2.0,
            "jumped over 2",
        ),
        (
            [],
            {"clip_fraction": 0.6},
            "clip_fraction",
            "warning",
            0.6,
            0.5,
            "share of clipped ratios 0.60 is over 0.5: steps are too large",
        ),
        (
            [],
            {"approx_kl": 0.3},
            "approx_kl",
            "warning",
            0.3,
            0.25,
            "KL to the policy before the update 0.30 is over 0.25: steps are too large",
        ),
        (
            [step(skipped=1.0)],
            {"skipped": 1.0},
            "non_finite",
            "critical",
            2,
            2,
            "2 updates in a row had steps that were not finite",
        ),
        (
            [step(score=0.0, score_sd=1.0), step(score=0.5, score_sd=0.0)],
            {"score": 0.5, "score_sd": 0.0},
            "flat_reward",
            "critical",
            2,
            2,
            "2 updates in a row had one score for all answers: there is nothing to learn from it",
        ),
        (
            [step(score=1.0, score_sd=0.5)],
            {"score": -8.0, "score_sd": 0.5},
            "exploding_reward",
            "critical",
            9.0,
            8.0,
            "the score has gone from 1 to -8, over 8 away: not plausible",
        ),
    ],
)
def test_an_alert_tells_all(
    before: list[StepStats],
    values: dict[str, float],
    name: str,
    severity: str,
    value: float,
    limit: float,
    words: str,
) -> None:
    (alert,) = seen(*before, step(**values))
    assert (alert.name, alert.severity, alert.step) == (name, severity, 7)
    assert alert.value == pytest.approx(value)
    assert alert.threshold == pytest.approx(limit)
    assert words in alert.message
    assert alert.evidence == {"attempt": 3}


@pytest.mark.parametrize(
    ("before", "values"),
    [
        ([], {"kl": 8.0}),
        ([step(entropy=2.0)], {"entropy": 0.5}),
        (CALM, {"value_loss": 8.0}),
        (CALM[:4], {"value_loss": 99.0}),
        ([step(value_loss=0.25)] * 5, {"value_loss": 2.0}),
        ([step(value_loss=0.0)] * 5, {"value_loss": 5e-8}),  # where the past is 0 nothing is a multiple of it
        ([], {"clip_fraction": 0.5, "approx_kl": 0.25}),
        ([step(skipped=1.0), step(skipped=0.0)], {"skipped": 1.0}),
        ([step(skipped=1.0), step()], {"skipped": 1.0}),
        ([step(score=1.0, score_sd=0.5)], {"score": -7.0, "score_sd": 0.5}),
        (
            [step(score=1.0, score_sd=1e-6)],
            {"score": 9.0, "score_sd": 1.0},
        ),  # it began without a spread to measure by
        ([step(score=0.0, score_sd=4.0)] * 2, {"score": 0.0, "score_sd": 5e-6}),
        ([], {"score": 9.0}),
        ([], {"score_sd": 0.0}),
    ],
)
def test_at_its_limit_nothing_is_wrong(before: list[StepStats], values: dict[str, float]) -> None:
    assert seen(*before, step(**values)) == []


def test_a_small_target_is_held_to_as_well() -> None:
    monitor = HealthMonitor(CONFIG, kl_target=0.25)
    assert monitor.observe(step(kl=0.5)) == []
    assert [a.name for a in monitor.observe(step(kl=0.51))] == ["kl_spike"]


def test_at_twice_its_limit_kl_is_no_more_than_a_warning() -> None:
    assert [a.severity for a in seen(step(kl=16.0))] == ["warning"]


def test_a_constant_reward_is_one_whatever_its_scale_and_one_of_its_own_needs_no_entropy() -> None:
    flat = [step(score=0.0, score_sd=4.0), *[step(score=0.0, score_sd=4e-6)] * 2]
    assert [a.name for a in seen(*flat)] == ["flat_reward"], "rounding grows with the scale"
    small = [step(score=0.0, score_sd=0.25), *[step(score=0.0, score_sd=1e-6)] * 2]
    assert [a.name for a in seen(*small)] == ["flat_reward"]
    noisy = [step(score=0.0, score_sd=0.25), *[step(score=0.0, score_sd=1.5e-6)] * 2]
    assert seen(*noisy) == []
    lively = [step(score=0.0, score_sd=1.0, entropy=2.0), *[step(score=0.0, score_sd=0.0, entropy=0.5)] * 2]
    assert [a.name for a in seen(*lively)] == ["flat_reward"], "at the floor it has not collapsed yet"
    none = [step(score=0.0, score_sd=0.0, entropy=0.1)] * 2
    assert [a.name for a in seen(*none)] == ["flat_reward"]


def test_the_most_severe_comes_first() -> None:
    found = seen(step(entropy=2.0), step(kl=9.0, entropy=0.1, clip_fraction=0.9))
    assert [a.severity for a in found] == ["critical", "warning", "warning"]


def test_after_a_roll_back_the_past_is_forgotten_and_the_start_is_not() -> None:
    monitor = HealthMonitor(CONFIG, kl_target=4.0)
    for _ in range(5):
        monitor.observe(step(value_loss=1.0, skipped=0.0, score=1.0, score_sd=0.0, entropy=2.0))
    monitor.skips = monitor.flat = 1
    monitor.restart(monitor)
    assert (monitor.skips, monitor.flat, monitor.losses) == (0, 0, [])
    assert monitor.observe(step(value_loss=99.0, skipped=1.0, score=1.0, score_sd=0.0)) == []
    assert HealthMonitor(CONFIG, 4.0).flat == HealthMonitor(CONFIG, 4.0).skips == 0


def test_a_checkpoint_keeps_what_it_was_judged_by_and_an_older_one_knows_less() -> None:
    monitor = HealthMonitor(CONFIG, kl_target=4.0)
    monitor.observe(step(score=1.0, score_sd=0.5))
    kept = monitor.state_dict()
    kept["reward_start"] = list(kept["reward_start"])  # as JSON has it
    again = HealthMonitor(CONFIG, kl_target=4.0)
    again.load_state_dict(kept)
    assert again.reward_start == (1.0, 0.5)
    older = HealthMonitor(CONFIG, kl_target=4.0)
    older.load_state_dict({"entropy_start": 2.0, "losses": [1.0], "skips": 1})
    assert (older.skips, older.flat, older.reward_start) == (1, 0, None)


# Detectors of hacking

RISEN = {
    "truncation": (at.TRUNCATED, "answers that are cut off"),
    "repetition": (at.REPETITION, "repeated word pairs"),
    "language_switch": (at.FOREIGN, "answers in another language than their prompt"),
    "format_drift": (at.FORMATTED, "answers with lists, headings, code or bold words"),
    "near_duplicates": (at.DUPLICATES, "answers that repeat the answer to another prompt"),
    "stock_phrase": (at.STOCK, "prompts answered with the same phrase"),
}


@pytest.mark.parametrize("name", RISEN)
def test_a_share_that_has_risen(name: str) -> None:
    (margin, words), before = RISEN[name], 0.125
    more = before + margin + 0.01
    for look in (DETECTORS[name].look, risen(margin, words)):
        assert look(Drift(before, before + margin, 0.0)) is None
        assert look(Drift(before, more, 0.0)) == Found(
            more, before + margin, f"{words}: {before:.0%} before, {more:.0%} now"
        )


@pytest.mark.parametrize(
    ("name", "before", "limit", "past", "words"),
    [
        ("length_drift", 10, 13.0, 14, "answers have grown from 10 to 14 tokens"),
        ("length_drift", 10, 4.0, 3, "answers have shrunk from 10 to 3 tokens"),
        ("nonsense", 2.0, 2.8, 3.0, "gives 3.00 nats per token to these answers, 2.00 to its own"),
        ("nonsense", 2.0, 1.0, 0.9, "gives 0.90 nats per token"),
        ("entropy_drop", 2.0, 0.9, 0.8, "entropy has fallen from 2.00 to 0.80 nats a token"),
        ("ensemble_spread", 2.0, 3.0, 3.1, "disagree by 3.10 about these answers, 2.00 at the start"),
        ("sampling_gap", 0.01, 0.1, 0.2, "differ by 0.2 nats, 0.01 at the start"),
        ("sampling_gap", 0.001, 0.05, 0.06, "differ by 0.06 nats"),
    ],
)
def test_a_figure_past_its_limit(name: str, before: float, limit: float, past: float, words: str) -> None:
    look = DETECTORS[name].look
    assert look(Drift(before, limit, 0.0)) is None
    found = look(Drift(before, past, 0.0))
    assert found is not None
    assert (found.value, found.limit) == (past, pytest.approx(limit))
    assert words in found.text


def test_an_alert_of_a_detector_tells_all() -> None:
    monitor = HackMonitor(responses=96)
    for n in range(3):
        assert monitor.observe(step(n, score=float(n % 2), length=100.0)) == []
    for n in range(2):
        assert monitor.observe(step(n, score=9.0, length=200.0)) == [], "three updates are the fewest"
    (alert,) = monitor.observe(step(8, score=9.0, length=200.0))
    text = "answers have grown from 100 to 200 tokens while the reward rose by 9.00"
    assert alert == Alert(
        "length_drift",
        "warning",
        text,
        8,
        200.0,
        130.0,
        {"attempt": 3, "updates": 3, "se": 0.0, "reward_rise": 9.0},
    )
    gap = HackMonitor(responses=96)
    for value in (0.01, 0.01, 0.01, 9.0, 9.0):
        gap.observe(step(sampling_gap=value))
    (told,) = gap.observe(step(sampling_gap=9.0))
    assert (told.name, told.evidence["updates"]) == ("sampling_gap", 3)
    assert "reward_rise" not in told.evidence


def test_the_start_is_as_long_as_it_takes_to_see_enough_answers() -> None:
    few = HackMonitor(responses=24)
    for n in range(6):
        few.observe(step(n, score=1.0, length=9.0))
    assert (len(few.start), len(few.recent)) == (4, 2)
    many = HackMonitor(responses=960)
    for n in range(6):
        many.observe(step(n, score=1.0, length=9.0))
    assert (len(many.start), len(many.recent)) == (3, 3)


def test_a_share_of_few_answers_is_not_sure_of_what_many_are() -> None:
    """A fifth of them more, without any noise from update to update: chance among 8 answers, none among 800."""
    heard = {}
    for responses in (8, 800):
        monitor = HackMonitor(responses)
        for n in range(12):
            monitor.observe(step(n, score=n % 2 * 0.01, truncated=0.4))
        heard[responses] = [
            a.name for _ in range(12) for a in monitor.observe(step(score=9.0, truncated=0.6))
        ]
    assert heard[8] == []
    assert "truncation" in heard[800]


def test_what_is_no_share_is_not_taken_for_one_though_it_lies_between_0_and_1() -> None:
    monitor = HackMonitor(responses=8)
    heard = set()
    for n in range(36):
        early = n < 12
        figures = {
            "score": 0.4 if early else 0.5,
            "ensemble_std": 0.1 if early else 0.16,
            "length": 9.0 if early else 90.0,
        }
        heard |= {a.name for a in monitor.observe(step(n, **figures))}
    assert heard == {"length_drift", "ensemble_spread"}


def test_after_a_roll_back_a_start_that_is_known_is_kept() -> None:
    before, after = HackMonitor(96), HackMonitor(96)
    for n in range(4):
        before.observe(step(n, length=9.0))
        after.observe(step(n, length=5.0))
    after.restart(before)
    assert (after.start[0]["length"], after.recent) == (5.0, [])
    fresh = HackMonitor(96)
    fresh.restart(before)
    assert fresh.start == before.start


# What chance does


def rows(*values: float) -> list[dict[str, float]]:
    return [{"x": v, "prompts": 10.0} for v in values]


def test_a_drift_needs_three_updates_and_counts_what_chance_does() -> None:
    assert drift(rows(1, 1, 1), rows(2, 2), 5, "x") is None
    steady = drift(rows(1, 1, 1), rows(2, 2, 2), 5, "x")
    assert steady == Drift(1, 2, 0.0)
    single = drift(rows(1), rows(2, 2, 2), 5, "x")
    assert single is not None, "a start of one update is what there is"
    shares = drift(rows(0, 0, 0), rows(0.5, 0.5, 0.5), 5, "x", share=True)
    p = (10 * 1.5 + 1) / (60 + 2)
    assert shares is not None
    assert shares.se == pytest.approx(1.2533 * (p * (1 - p) / 10) ** 0.5 * (2 / 3) ** 0.5)
