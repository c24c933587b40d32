"""Reward functions in TRL's signature: columns by name, conversations as messages, rewards that a row has not."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from burnish.config.ppo import FunctionReward
from burnish.data.preferences import read_columns_of_pairs
from burnish.data.prompts import read_columns, read_prompts
from burnish.errors import ConfigError, TrainingError
from burnish.records import Message, Prompt, Rollout
from burnish.reward.functions import ColumnReward, SummedRewards, called, load_term, takes_columns
from burnish.rewards import json_schema, length_range, math_answer, regex
from tests.reward.test_functions import ensemble, rollout
from tests.small_run import SMALL, run


def answered(prompts: Sequence[Prompt], texts: list[str]) -> Rollout:
    found = rollout(texts)
    found.prompts = list(prompts)
    return found


# A function as TRL's documentation writes them: https://huggingface.co/docs/trl/grpo_trainer
def exact(completions: list[list[dict[str, str]]], ground_truth: list[str], **kwargs: Any) -> list[float]:
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if c == gt else 0.0 for c, gt in zip(contents, ground_truth, strict=True)]


def test_a_function_written_for_trl_gets_conversations_and_columns() -> None:
    asked = [Prompt.from_messages([Message("user", "2+2?")]), Prompt.from_messages([Message("user", "3+3?")])]
    columns = {asked[0].id: {"ground_truth": "4"}, asked[1].id: {"ground_truth": "6", "level": 2}}
    reward = ColumnReward("m:exact", exact, lambda: columns, {})
    assert called("m:exact", reward, answered(asked, ["4", "5"])) == [1.0, 0.0]


def test_text_prompts_give_text_and_only_what_a_function_takes_is_passed() -> None:
    seen: list[dict[str, Any]] = []

    def f(
        prompts: list[str], completions: list[str], level: list[int | None], scale: float = 1.0
    ) -> list[float]:
        seen.append({"prompts": prompts, "completions": completions, "level": level, "scale": scale})
        return [0.0, 1.0]

    asked = [Prompt("a"), Prompt("b")]
    columns = {asked[0].id: {"level": 3, "other": "x"}}
    reward = ColumnReward("m:f", f, lambda: columns, {"scale": 2.0})
    assert reward.scores(answered(asked, ["x", "y"])) == [0.0, 1.0]
    assert seen == [{"prompts": ["a", "b"], "completions": ["x", "y"], "level": [3, None], "scale": 2.0}]


def test_a_reward_that_a_row_has_not_adds_nothing() -> None:
    def some(completions: list[str], **columns: Any) -> list[float | None]:
        return [None, 3.0]

    reward = ColumnReward("m:some", some, dict, {})
    found = SummedRewards(ensemble, 1.0, [(FunctionReward(function="m:some"), reward)])(rollout(["a", "b"]))
    assert found.scores.tolist() == [1.0, -2.0 + 3.0]
    assert found.terms["some"].tolist() == [0.0, 3.0]
    with pytest.raises(TrainingError, match="gave None for response 0"):
        called("m:f", lambda *_: [None, 1.0], rollout(["a", "b"]))  # type: ignore[arg-type, return-value]


def test_what_a_function_lacks_is_named_before_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"id": {"solution": "4", "level": 1}}
    with pytest.raises(ConfigError, match=r"needs 'ground_truth', .*they have level, solution"):
        ColumnReward("m:exact", exact, lambda: columns, {})
    with pytest.raises(ConfigError, match="they have no columns"):
        ColumnReward("m:exact", exact, dict, {})
    (tmp_path / "column_rewards.py").write_text(
        "def new(completions, answer):\n    return [1.0] * len(completions)\n\n"
        "def old(prompts, responses, lengths):\n    return [1.0] * len(responses)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    term = FunctionReward(function="column_rewards:new", arguments={"wrong": 1})
    with pytest.raises(ConfigError, match="has no parameter 'wrong'"):
        load_term(term, lambda: columns)
    with pytest.raises(ConfigError, match="`arguments` cannot be passed"):
        load_term(FunctionReward(function="column_rewards:old", arguments={"x": 1}))
    reward = load_term(FunctionReward(function="column_rewards:new", arguments={"answer": "4"}))
    assert called("new", reward, rollout(["a", "b"])) == [1.0, 1.0]


def test_three_parameters_that_end_in_lengths_are_the_other_signature() -> None:
    def old(prompts: list[str], completions: list[str], lengths: list[int]) -> list[float]:
        return [float(n) for n in lengths]

    assert not takes_columns(old)
    assert takes_columns(exact)
    assert called("m:old", old, rollout(["a", "b"])) == [1.0, 2.0]


def test_columns_of_prompts_and_of_pairs_are_read_by_prompt(tmp_path: Path) -> None:
    file = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": "1+1=", "answer": 2},
        {"prompt": "1+1=", "answer": 3},
        {"prompt": "2+2=", "answer": 4, "hard": True},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    asked = {p.id for p in read_prompts(file)}
    found = read_columns(file, asked)
    assert read_columns(file, set()) == {}
    assert [found[p.id] for p in read_prompts(file)] == [{"answer": 2}, {"answer": 4, "hard": True}]
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(json.dumps({"prompt": "Why?", "chosen": "So.", "rejected": "No.", "topic": "life"}))
    of_pairs = read_columns_of_pairs(pairs, "train", {Prompt("Why?").id}, None, {})
    assert of_pairs[Prompt("Why?").id]["topic"] == "life"


def test_regex_and_length() -> None:
    assert regex(["answer: 42", "none"], pattern=r"answer:\s*\d+") == [1.0, 0.0]
    assert regex(["a1", "b", "c"], pattern=[r"\d", None, "x"]) == [1.0, None, 0.0]
    assert regex([[{"role": "assistant", "content": "a\nb"}]], pattern="a.b") == [1.0]
    assert length_range(["one two", "one", "one two three four"], least=2, most=3) == [1.0, 0.0, 0.0]
    assert length_range(["x " * 500], least=1) == [1.0]


def test_json_is_checked_against_a_schema() -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    given = ['{"n": 3}', '{"n": "3"}', "no", '```json\n{"n": 1}\n```', "[" * 100_000]
    assert json_schema(given, schema=schema) == [1.0, 0.0, 0.0, 1.0, 0.0]
    assert json_schema(["NaN", "3", "4"], schema=[{"type": "number"}, None, {}]) == [0.0, None, 1.0]
    assert json_schema(["3", "3"], schema=['{"type": "integer"}', {"type": "string"}]) == [1.0, 0.0]


def test_mathematical_answers_are_compared_by_value() -> None:
    given = ["So it is $\\frac{1}{2}$.", "The answer is 0.5", "\\boxed{3}", "I do not know", "12"]
    assert math_answer(given, answer=["1/2", "\\frac{1}{2}", "4", "7", 12]) == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert math_answer(["4"], answer=[""]) == [None]


@pytest.mark.e2e
def test_a_run_optimises_a_column_of_its_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt names a letter; the reward is its share of the response. Held-out looks use it too."""
    (tmp_path / "letters.py").write_text(
        "def share(completions, letter, **columns):\n"
        "    return [c.count(x) / max(1, len(c)) for c, x in zip(completions, letter)]\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    words = ("Once upon a time", "The old man", "Lily had a dog", "Tom saw a cat", "One day")
    rows = [{"prompt": f"{w} {n}", "letter": "e"} for n in range(40) for w in words]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(
        tmp_path,
        *(s for s in SMALL if "n_prompts" not in s),
        f"data.prompts={tmp_path / 'prompts.jsonl'}",
        "label.source=simulated",
        "evaluate.examiner=reward_model",
        "ppo.rewards=[{function: 'letters:share', weight: 20}]",
        "ppo.ensemble_weight=0",
        "ppo.updates=4",
    )
    updates = [json.loads(line) for line in (tmp_path / "r/metrics/ppo.jsonl").read_text().splitlines()]
    assert all(0 < row["reward_share"] < 1 for row in updates)
    looks = [json.loads(line) for line in (tmp_path / "r/metrics/looks.jsonl").read_text().splitlines()]
    assert all(0 < row["reward_share"] < 1 for row in looks)
    assert torch.isfinite(torch.tensor([row["score"] for row in updates])).all()
