"""Rewards that are functions: added with weights, held to a finite number each, told by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from burnish.config.ppo import FunctionReward, PPOConfig
from burnish.errors import ConfigError, TrainingError
from burnish.records import Prompt, Rollout, Scores
from burnish.reward.functions import SummedRewards, called, load_function, source_of


def rollout(texts: list[str]) -> Rollout:
    n = len(texts)
    nothing = torch.zeros(0)
    return Rollout(
        [Prompt(f"p{i}") for i in range(n)],
        [[5]] * n,
        [[7] * (i + 1) for i in range(n)],
        texts,
        [True] * n,
        nothing,
        nothing,
        nothing.bool(),
    )


def ensemble(found: Rollout) -> Scores:
    scores = torch.tensor([1.0, -2.0])
    return Scores(scores, scores[:, None].expand(-1, 3), torch.tensor([0.1, 0.2]))


def test_terms_add_up_with_their_weights_and_are_told() -> None:
    seen: list[Any] = []

    def polite(prompts: list[str], texts: list[str], tokens: list[int]) -> list[float]:
        seen.append((prompts, texts, tokens))
        return [float("please" in t) for t in texts]

    terms = [(FunctionReward(function="m:polite", weight=0.5), polite)]
    found = SummedRewards(ensemble, 2.0, terms)(rollout(["please", "no"]))
    assert found.scores.tolist() == [2 * 1.0 + 0.5 * 1, 2 * -2.0 + 0.5 * 0]
    assert found.terms["ensemble"].tolist() == [1.0, -2.0]
    assert found.terms["polite"].tolist() == [1.0, 0.0]
    assert found.ensemble_std.tolist() == pytest.approx([0.1, 0.2])
    assert seen == [(["p0", "p1"], ["please", "no"], [1, 2])]


def test_the_sum_is_centred_on_reference_responses() -> None:
    terms = [(FunctionReward(function="m:cost", weight=0.5), lambda p, r, n: [-10.0 * k for k in n])]
    reward = SummedRewards(ensemble, 1.0, terms)
    found = rollout(["a", "b"])  # 1 - 5 and -2 - 10: mean -8, standard deviation 4
    assert [reward.center(found) for _ in range(2)] == [4.0, 4.0]
    assert reward(found).scores.tolist() == [4.0, -4.0]
    assert reward(found).terms["cost"].tolist() == [-10.0, -20.0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([1.0], "gave 1 numbers for 2 responses"),
        ([1.0, float("nan")], r"gave nan for response 1 \('no'\)"),
        ([None, 1.0], "gave None for response 0"),
        ([True, 1.0], "gave True for response 0"),
    ],
)
def test_anything_but_a_finite_number_each_is_an_error(given: list[Any], message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        called("m:f", lambda *_: given, rollout(["please", "no"]))


def test_a_function_that_fails_is_named_with_its_error() -> None:
    def fails(*_: object) -> list[float]:
        raise KeyError("x")

    with pytest.raises(TrainingError, match="m:f failed: KeyError: 'x'"):
        called("m:f", fails, rollout(["a", "b"]))


def test_functions_are_found_in_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text("def polite(p, r, n):\n    return [1.0] * len(r)\n\nNOT = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert load_function("my_rewards:polite")([], ["x"], []) == [1.0]
    assert source_of("my_rewards:polite") == tmp_path / "my_rewards.py"
    for name, message in (
        ("my_rewards:rude", "cannot be imported"),
        ("no_such_module:f", "cannot be imported"),
        ("my_rewards:NOT", "not a function but a int"),
    ):
        with pytest.raises(ConfigError, match=message):
            load_function(name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rewards": [{"function": "a:f"}, {"function": "b:f"}]}, "two terms would be called 'f'"),
        ({"rewards": [{"function": "a:ensemble"}]}, "two terms would be called 'ensemble'"),
        ({"ensemble_weight": 0}, "leaves nothing to optimise"),
        ({"rewards": [{"function": "polite"}]}, "String should match pattern"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PPOConfig(**settings)
