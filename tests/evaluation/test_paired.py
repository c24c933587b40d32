"""Candidates against one another and by kind of prompt."""

from __future__ import annotations

import pytest

from burnish.evaluation.paired import by_kind, differences


def test_a_difference_is_paired_by_prompt() -> None:
    """PPO wins where DPO loses by a fixed 0.25 on every prompt, so the interval has no width."""
    groups = [i // 2 for i in range(40)]
    dpo = [(i % 5) / 8 for i in range(40)]
    found = differences(
        {"ppo": [v + 0.25 for v in dpo], "dpo": dpo}, groups, seed=1, draws=200, confidence=0.95
    )
    row = found["ppo", "dpo"]
    assert row is not None
    assert (row["value"], row["ci_low"], row["ci_high"]) == pytest.approx((0.25, 0.25, 0.25))
    assert row["n"] == 20
    assert list(found) == [("ppo", "dpo")]


def test_rows_with_an_abstention_are_left_out_and_one_prompt_has_no_interval() -> None:
    found = differences(
        {"a": [1.0, None, 0.0], "b": [0.0, 1.0, None], "c": [0.5, 0.5, 0.5]},
        ["x", "y", "z"],
        seed=1,
        draws=50,
        confidence=0.95,
    )
    assert found["a", "b"] is None, "one prompt is decided for both"
    assert found["a", "c"] is not None
    assert found["a", "c"]["value"] == pytest.approx(0.0)


def test_a_kind_that_lost_is_named_and_a_small_one_has_no_row() -> None:
    verdicts = [1.0] * 30 + [0.0] * 30 + [0.0] * 7 + [None] * 20
    kinds = ["chat"] * 30 + ["code"] * 30 + ["maths"] * 7 + ["law"] * 20
    groups = [str(i) for i in range(len(verdicts))]
    rows = by_kind(verdicts, groups, kinds, seed=1, draws=200, confidence=0.95)
    assert [(r["kind"], r["worse"], r["n"]) for r in rows] == [("code", True, 30), ("chat", False, 30)]
    assert rows[0]["ci_high"] < 0.5 < rows[1]["ci_low"]


def test_intervals_of_many_kinds_hold_together() -> None:
    """The same 60 % of 40 prompts has a wider interval beside nineteen other kinds."""
    one = [1.0] * 24 + [0.0] * 16
    alone = by_kind(one, [str(i) for i in range(40)], ["a"] * 40, seed=1, draws=2000, confidence=0.95)
    many = by_kind(
        one * 20,
        [str(i) for i in range(800)],
        [f"k{i // 40}" for i in range(800)],
        seed=1,
        draws=2000,
        confidence=0.95,
    )
    assert many[0]["ci_low"] < alone[0]["ci_low"]
    assert many[0]["ci_high"] > alone[0]["ci_high"]


def test_answers_to_one_prompt_count_once() -> None:
    rows = by_kind(
        [0.0] * 28, [str(i // 4) for i in range(28)], ["a"] * 28, seed=1, draws=50, confidence=0.95
    )
    assert rows == [], "seven prompts with four answers each"
