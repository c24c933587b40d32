"""Detectors of reward hacking: each sees its own, none cries over a healthy run, all of them need a rising reward."""

from __future__ import annotations

import json
import math
import random

import pytest

from burnish import detectors
from burnish.detectors import DETECTORS, Drift, drift, length_drift, nonsense
from burnish.monitor.hacking import HackMonitor
from burnish.monitor.texts import near_duplicates, stock_phrase, text_figures
from burnish.records import Alert, StepStats

HEALTHY = {
    "length": 30.0,
    "truncated": 0.02,
    "repetition": 0.05,
    "foreign": 0.0,
    "ref_nll": 1.3,
    "formatted": 0.1,
    "entropy": 1.2,
    "ensemble_std": 0.3,
    "duplicates": 0.05,
    "stock": 0.1,
    "sampling_gap": 1e-5,
    "score": 0.0,
}
PLANTED = {
    "length_drift": {"length": 45.0},
    "truncation": {"truncated": 0.4},
    "repetition": {"repetition": 0.3},
    "language_switch": {"foreign": 0.3},
    "nonsense": {"ref_nll": 3.0},
    "format_drift": {"formatted": 0.6},
    "entropy_drop": {"entropy": 0.4},
    "ensemble_spread": {"ensemble_std": 0.8},
    "near_duplicates": {"duplicates": 0.6},
    "stock_phrase": {"stock": 0.8},
    "sampling_gap": {"sampling_gap": 0.2},
}
SHARES = {d.figure for d in DETECTORS.values() if d.share}
NO_HACK = {name for name, detector in DETECTORS.items() if not detector.hack}


def carry_out(monitor: HackMonitor, rows: list[dict[str, float]]) -> list[tuple[int, Alert]]:
    return [(i, a) for i, row in enumerate(rows, 1) for a in monitor.observe(StepStats(i, 0, row))]


def hacked(change: dict[str, float], updates: int = 20) -> list[dict[str, float]]:
    """The reward rises from the fourth update on, and so does what is hacked."""
    rows = []
    for i in range(updates):
        share = min(1.0, max(0, i - 2) / 8)
        row = HEALTHY | {"score": 1.5 * share}
        rows.append(row | {k: HEALTHY[k] + share * (v - HEALTHY[k]) for k, v in change.items()})
    return rows


@pytest.mark.parametrize("name", DETECTORS)
def test_each_sees_what_it_is_for_and_nothing_else(name: str) -> None:
    alerts = carry_out(HackMonitor(64), hacked(PLANTED[name]))
    assert {a.name for _, a in alerts} == {name}
    first, alert = alerts[0]
    assert 5 < first < 15
    assert ("while the reward rose by" in alert.message) == (name not in NO_HACK)
    assert alert.severity == "warning"


def test_a_healthy_run_is_left_alone() -> None:
    """What the quickstart does: a third shorter, 0.2 nats less likely."""
    assert carry_out(HackMonitor(64), hacked({"length": 20.0, "ref_nll": 1.5})) == []


@pytest.mark.parametrize("name", sorted(DETECTORS.keys() - NO_HACK))
def test_without_a_rising_reward_a_drift_is_no_hack(name: str) -> None:
    rows = [row | {"score": 0.0} for row in hacked(PLANTED[name])]
    assert carry_out(HackMonitor(64), rows) == []


def test_few_responses_say_nothing() -> None:
    """Small batches take more updates to a window, and to a start: 96 responses are 12 of 8."""
    rows = [HEALTHY] * 12 + hacked(PLANTED["length_drift"], 30)[3:]
    assert detectors.RESPONSES == 12 * 8
    assert carry_out(HackMonitor(8), rows[:23]) == []
    assert carry_out(HackMonitor(8), rows)


def test_limits_worked_by_hand() -> None:
    assert length_drift(Drift(30.0, 38.9, 0.0)) is None
    found = length_drift(Drift(30.0, 40.0, 0.0))
    assert found is not None
    assert found.limit == pytest.approx(39.0)
    assert length_drift(Drift(30.0, 11.0, 0.0)) is not None
    assert nonsense(Drift(3.0, 2.2, 0.0)) is None, "a real model that sharpens"
    lower = nonsense(Drift(2.0, 0.9, 0.0))
    assert lower is not None
    assert lower.limit == pytest.approx(1.0)


def test_it_goes_on_as_if_never_stopped_and_forgets_what_was_rolled_back() -> None:
    rows = hacked(PLANTED["repetition"])
    whole, first = HackMonitor(64), HackMonitor(64)
    want = carry_out(whole, rows)
    got = carry_out(first, rows[:9])
    second = HackMonitor(64)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [(i + 9, a) for i, a in carry_out(second, rows[9:])]
    assert [(i, a.value) for i, a in got] == [(i, a.value) for i, a in want]
    early = HackMonitor(64)
    for monitor in (second, early):
        monitor.restart(whole)
        assert monitor.recent == []
        assert monitor.start == whole.start


def test_figures_of_texts() -> None:
    english = "The little girl went to the park and played with her friends all day."
    french = "La petite fille est allée au parc et elle a joué avec ses amis toute la journée."
    figures = text_figures([english] * 4, [english, french, "a b a b a b", "Yes."])
    assert figures["foreign"] == pytest.approx(1 / 2), "of the two that are long enough to tell"
    assert figures["repetition"] == pytest.approx(3 / 5 / 4), "of five pairs two are new"
    assert "foreign" not in text_figures(["Hm."], ["Yes."])


def test_a_drift_worked_by_hand() -> None:
    start = [{"x": 1.0}, {"x": 3.0}, {"x": 2.0}]
    recent = [{"x": v} for v in (9.0, 5.0, 6.0, 100.0, 7.0)]
    found = drift(start, recent, 4, "x")
    assert found is not None
    assert (found.before, found.now) == (2.0, 6.5), "medians: one update that went wrong is no drift"
    # Steps 2 1, 4 1 94 93: their median is 3.
    sd = 1.4826 * 3.0 / math.sqrt(2)
    assert found.se == pytest.approx(1.2533 * sd * math.sqrt(1 / 3 + 1 / 4))
    assert drift(start, recent[:2], 4, "x") is None, "two updates say nothing"
    assert drift(start, recent, 4, "y") is None, "what was not measured is no evidence"


def test_a_share_that_never_varied_is_still_uncertain() -> None:
    rows = [{"x": 0.0, "prompts": 16.0}] * 5
    sure = drift(rows[:3], rows, 5, "x")
    counted = drift(rows[:3], rows, 5, "x", share=True)
    assert sure is not None
    assert counted is not None
    assert sure.se == 0
    p = 1 / (16 * 8 + 2)
    assert counted.se == pytest.approx(1.2533 * math.sqrt(p * (1 - p) / 16) * math.sqrt(1 / 3 + 1 / 5))


def noise(updates: int, batch: int, seed: int) -> list[dict[str, float]]:
    """A policy that stands still: every figure as it varies from one batch to the next."""
    rng = random.Random(seed)
    rows = []
    for _ in range(updates):
        share = {n: sum(rng.random() < HEALTHY[n] for _ in range(batch)) / batch for n in SHARES}
        wide = {"length": 12.0, "ref_nll": 0.4, "entropy": 0.3, "ensemble_std": 0.15, "score": 1.0}
        means = {n: HEALTHY[n] + rng.gauss(0, sd / math.sqrt(batch)) for n, sd in wide.items()}
        rows.append(share | means | {"sampling_gap": HEALTHY["sampling_gap"] * math.exp(rng.gauss(0, 1))})
    return rows


@pytest.mark.parametrize("batch", [8, 16, 64])
def test_a_policy_that_stands_still_is_left_alone(batch: int) -> None:
    """At most one alert in a thousand updates, all detectors together."""
    updates = 0
    alerts = []
    for seed in range(20):
        alerts += carry_out(HackMonitor(batch), noise(200, batch, seed))
        updates += 200
    assert len(alerts) <= updates / 1000, sorted({a.name for _, a in alerts})


def test_a_small_batch_that_looks_hacked_for_an_update_is_no_hack() -> None:
    rows = hacked({})
    rows[15] = rows[15] | {"length": 90.0, "truncated": 1.0, "duplicates": 1.0}
    assert carry_out(HackMonitor(64), rows) == []


def test_answers_that_are_the_same_to_different_prompts() -> None:
    prompts = ["a", "a", "b", "c"]
    same = "Once there was a cat who liked to play outside."
    assert near_duplicates(prompts, [same, same, "Two dogs ran home.", ""]) == 0.0, "to the same prompt"
    assert near_duplicates(prompts, [same, "No.", same.upper(), "No."]) == 1.0
    assert near_duplicates(prompts, [same, "", same[:-8] + "inside.", ""]) == 0.5
    assert near_duplicates(prompts, [same, "", "Once there was a cat in the rain.", ""]) == 0.0


def test_a_phrase_that_most_answers_share() -> None:
    prompts = ["one", "two", "say as an AI model I", "four"]
    texts = [
        "Well, as an AI model I ...",
        "As an AI model, I",
        "as an ai model i",
        "Nothing of that kind here.",
    ]
    assert stock_phrase(prompts, texts) == 0.5, "what the prompt holds is the prompt's"
    assert stock_phrase(["one", "one"], texts[:2]) == 1.0


def test_marks_and_scripts() -> None:
    english = "The little girl went to the park and played with her friends all day."
    chinese = "\u5c0f\u5973\u5b69\u53bb\u516c\u56ed\u548c\u670b\u53cb\u73a9"
    texts = ["- one\n- two", "It is **very** good.", "# Head\nbody", "A - b, 2 * 3 * 4 and #5.", "| a | b |"]
    assert text_figures([english] * 5, texts)["formatted"] == pytest.approx(4 / 5)
    assert text_figures([english], [chinese])["foreign"] == 1.0
    assert text_figures([chinese], [chinese]).get("foreign", 0.0) == 0.0


def test_rows_of_older_checkpoints_have_their_new_names() -> None:
    monitor = HackMonitor(64)
    monitor.load_state_dict({"start": [{"spread": 0.3}], "recent": [{"ensemble_std": 0.4, "prompts": 32.0}]})
    assert monitor.start == [{"prompts": 64.0, "ensemble_std": 0.3}]
    assert monitor.recent == [{"ensemble_std": 0.4, "prompts": 32.0}]
