"""The champion rule: selected on one split, tested once on the other, the baseline unless surely beaten."""

import math

import pytest

from burnish.evaluation.champion import Candidate, Held, choose_champion, held_to
from burnish.records import Interval


def candidate(name: str, selection: float, low: float, high: float = 0.9) -> Candidate:
    return Candidate(
        name,
        Interval(selection, selection - 0.1, selection + 0.1, 128),
        Interval((low + high) / 2, low, high, 256),
    )


def test_a_sure_winner_ships_with_its_figures() -> None:
    decision = choose_champion([candidate("ppo", 0.7, 0.6, 0.8)])
    assert (decision.champion, decision.selected) == ("ppo", "ppo")
    assert decision.reason == "ppo beats sft on the test prompts: 0.700 [0.600, 0.800], n = 256"
    assert decision.evidence == {
        "selected": "ppo",
        "selection": {"ppo": 0.7},
        "test_win_rate": pytest.approx(0.7),
        "ci_low": 0.6,
        "ci_high": 0.8,
        "n": 256,
    }


@pytest.mark.parametrize(("low", "champion"), [(0.5, "sft"), (0.49, "sft"), (0.501, "ppo")])
def test_the_lower_bound_must_exceed_one_half(low: float, champion: str) -> None:
    assert choose_champion([candidate("ppo", 0.8, low)]).champion == champion


def test_who_fails_the_test_leaves_the_baseline_and_not_the_runner_up() -> None:
    decision = choose_champion([candidate("dpo", 0.6, 0.7), candidate("ppo", 0.65, 0.48)])
    assert decision.selected == "ppo"
    assert decision.champion == "sft"
    assert "ppo does not significantly beat sft" in decision.reason
    assert decision.reason.endswith("sft stays")


def test_selection_does_not_look_at_test_figures() -> None:
    decision = choose_champion([candidate("ppo", 0.7, 0.55), candidate("dpo", 0.6, 0.8)])
    assert decision.champion == "ppo"
    unread = Candidate("dpo", Interval(0.6, 0.5, 0.7, 9), Interval(math.nan, math.nan, math.nan, 9))
    assert choose_champion([candidate("ppo", 0.7, 0.55), unread]).champion == "ppo"


def test_among_equals_the_first_given_is_selected() -> None:
    pair = [candidate("dpo", 0.6, 0.55), candidate("ppo", 0.6, 0.7)]
    assert choose_champion(pair).selected == "dpo"
    assert choose_champion(pair[::-1]).selected == "ppo"


def test_no_candidate_leaves_the_baseline() -> None:
    decision = choose_champion([], baseline="start")
    assert (decision.champion, decision.selected) == ("start", None)
    assert decision.reason == "no candidate: start stays"


def test_figures_nobody_can_rank_raise() -> None:
    nan = Interval(math.nan, math.nan, math.nan, 0)
    fine = Interval(0.6, 0.55, 0.7, 128)
    with pytest.raises(ValueError, match="ppo: selection win rate nan"):
        choose_champion([Candidate("ppo", nan, fine)])
    with pytest.raises(ValueError, match="ppo: test lower bound nan"):
        choose_champion([Candidate("ppo", fine, nan)])


def test_names_must_differ() -> None:
    with pytest.raises(ValueError, match="occurs twice"):
        choose_champion([candidate("ppo", 0.6, 0.6), candidate("ppo", 0.7, 0.6)])
    with pytest.raises(ValueError, match="occurs twice"):
        choose_champion([candidate("sft", 0.6, 0.6)])


def held(name: str, value: float, half: float, tolerance: float = 0.0) -> Held:
    return Held(name, 0.5 + value, 0.5, Interval(value, value - half, value + half, 50), tolerance)


def test_a_champion_that_surely_loses_on_a_regression_set_does_not_ship() -> None:
    won = choose_champion([candidate("ppo", 0.7, 0.6, 0.8)])
    assert won.champion == "ppo"
    out = held_to(won, [held("facts", -0.2, 0.1), held("style", 0.1, 0.05)])
    assert (out.champion, out.selected) == ("sft", "ppo")
    assert (
        "but significantly loses on facts: 0.300 against 0.500 (-0.200 [-0.300, -0.100], n = 50): sft stays"
        in out.reason
    )
    assert out.evidence["regression_sets"] == {"facts": -0.2, "style": 0.1}


def test_what_is_not_sure_or_is_tolerance_does_not_stop_it() -> None:
    won = choose_champion([candidate("ppo", 0.7, 0.6, 0.8)])
    kept = held_to(won, [held("facts", -0.2, 0.3), held("style", -0.2, 0.1, tolerance=0.1)])
    assert (kept.champion, kept.reason) == ("ppo", won.reason)
    assert held_to(won, []).champion == "ppo"
