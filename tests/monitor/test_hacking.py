"""Detectors of reward hacking: each sees its own, none cries over a healthy run, all of them need a rising reward."""

from __future__ import annotations

import json

import pytest

from burnish.monitor import thresholds
from burnish.monitor.hacking import DETECTORS, HackMonitor, length_drift, nonsense
from burnish.monitor.texts import text_figures
from burnish.records import Alert, StepStats

HEALTHY = {
    "length": 30.0,
    "truncated": 0.02,
    "repetition": 0.05,
    "foreign": 0.0,
    "ref_nll": 1.3,
    "score": 0.0,
}
PLANTED = {
    "length_drift": {"length": 45.0},
    "truncation": {"truncated": 0.4},
    "repetition": {"repetition": 0.3},
    "language_switch": {"foreign": 0.3},
    "nonsense": {"ref_nll": 3.0},
}


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
    assert "while the reward rose by" in alert.message
    assert alert.severity == "warning"


def test_a_healthy_run_is_left_alone() -> None:
    """What the quickstart does: a third shorter, 0.2 nats less likely."""
    assert carry_out(HackMonitor(64), hacked({"length": 20.0, "ref_nll": 1.5})) == []


@pytest.mark.parametrize("name", DETECTORS)
def test_without_a_rising_reward_a_drift_is_no_hack(name: str) -> None:
    rows = [row | {"score": 0.0} for row in hacked(PLANTED[name])]
    assert carry_out(HackMonitor(64), rows) == []


def test_few_responses_say_nothing() -> None:
    """Small batches take more updates to a window: 96 responses are 12 of 8."""
    rows = hacked(PLANTED["length_drift"])
    assert thresholds.RESPONSES == 12 * 8
    assert carry_out(HackMonitor(8), rows[:14]) == []
    assert carry_out(HackMonitor(8), rows)


def test_limits_worked_by_hand() -> None:
    assert length_drift({"length": 30.0}, {"length": 38.9}) is None
    found = length_drift({"length": 30.0}, {"length": 40.0})
    assert found is not None
    assert found.limit == pytest.approx(39.0)
    assert length_drift({"length": 30.0}, {"length": 11.0}) is not None
    assert nonsense({"ref_nll": 3.0}, {"ref_nll": 2.2}) is None, "a real model that sharpens"
    lower = nonsense({"ref_nll": 2.0}, {"ref_nll": 0.9})
    assert lower is not None
    assert lower.limit == pytest.approx(1.0)
    assert nonsense({"ref_nll": 2.0}, {}) is None, "what was not measured is no evidence"


def test_it_goes_on_as_if_never_stopped_and_forgets_what_was_rolled_back() -> None:
    rows = hacked(PLANTED["repetition"])
    whole, first = HackMonitor(64), HackMonitor(64)
    want = carry_out(whole, rows)
    got = carry_out(first, rows[:9])
    second = HackMonitor(64)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    got += [(i + 9, a) for i, a in carry_out(second, rows[9:])]
    assert [(i, a.value) for i, a in got] == [(i, a.value) for i, a in want]
    second.restart()
    assert second.recent == []
    assert second.start == whole.start


def test_figures_of_texts() -> None:
    english = "The little girl went to the park and played with her friends all day."
    french = "La petite fille est allée au parc et elle a joué avec ses amis toute la journée."
    figures = text_figures([english] * 4, [english, french, "a b a b a b", "Yes."])
    assert figures["foreign"] == pytest.approx(1 / 2), "of the two that are long enough to tell"
    assert figures["repetition"] == pytest.approx(3 / 5 / 4), "of five pairs two are new"
    assert "foreign" not in text_figures(["Hm."], ["Yes."])
