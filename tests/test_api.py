"""The Python API: every function on the embedded model, without a run directory."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import burnish
from burnish.errors import ConfigError, DataError, RunError, TrainingError
from burnish.records import Preference, StepStats

ROOT = Path(__file__).parents[1]
FEW = burnish.PPOConfig(updates=2, batch_size=8, epochs=1, learning_rate=1e-4, value_learning_rate=1e-4)


@pytest.fixture(scope="module")
def pairs() -> list[Preference]:
    return burnish.read_preferences(ROOT / "examples" / "pairs.jsonl", max_pairs=140).pairs


@pytest.fixture(scope="module")
def model() -> burnish.LanguageModel:
    return burnish.load_model("embedded", layers="top:1")


@pytest.fixture(scope="module")
def reward(model: burnish.LanguageModel, pairs: list[Preference]) -> burnish.RewardModels:
    config = burnish.RewardConfig(members=2, reference_samples=32, depth=4, pooling="mean", epochs=4)
    return burnish.train_rewards(model, pairs[:120], config=config)


def test_rewards_score_and_are_saved(
    reward: burnish.RewardModels, pairs: list[Preference], tmp_path: Path
) -> None:
    prompts = [p.prompt for p in pairs[:120]]
    good, bad = (
        reward.score(prompts, [getattr(p, side) for p in pairs[:120]]) for side in ("chosen", "rejected")
    )
    assert sum(a > b for a, b in zip(good, bad, strict=True)) > 80, "of 120, most of them trained on"
    assert 0 <= reward.report["accuracy"]["value"] <= 1
    assert {stats.step for stats in reward.history} > {1, 2}
    reward.save(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / "ensemble.json").read_text())["aggregate"] == "mean"


def test_ppo_optimises_an_ensemble_under_the_guard(
    model: burnish.LanguageModel, reward: burnish.RewardModels, pairs: list[Preference], tmp_path: Path
) -> None:
    seen: list[StepStats] = []
    prompts = [p.prompt.text for p in pairs[:40]]
    tuned = burnish.train_ppo(model, prompts, reward, config=FEW, on_update=seen.append)
    assert tuned.outcome["state"] == "finished"
    assert [s.step for s in tuned.history] == [s.step for s in seen] == [1, 2]
    assert "watcher" in seen[0].values
    result = burnish.evaluate(tuned, model, [p.prompt for p in pairs[120:]], reward)
    assert result.win_rate.n == len(pairs) - 120
    assert result.kl is not None
    assert result.kl > 0
    assert len(result.responses) == len(result.baseline_responses) == len(result.prompts)
    tuned.save(tmp_path / "tuned")
    assert (tmp_path / "tuned" / "config.json").exists()
    loaded = burnish.load_model(tmp_path / "tuned", layers="top:1")
    assert loaded.generate(prompts[:4], seed=3) == tuned.generate(prompts[:4], seed=3)
    unrelated = burnish.evaluate(loaded, model, prompts[:8], reward)
    assert unrelated.kl is None, "two bases: their KL is not measured"
    with pytest.raises(RunError, match="trained already"):
        burnish.train_dpo(tuned, pairs)


def test_ppo_optimises_a_function(model: burnish.LanguageModel, pairs: list[Preference]) -> None:
    asked: list[int] = []

    def short(prompts: list[str], responses: list[str]) -> list[float]:
        asked.append(len(prompts))
        return [-float(len(r)) for r in responses]

    brief = burnish.train_ppo(model, [p.prompt for p in pairs[:20]], short, config=FEW)
    assert brief.outcome["state"] == "finished"
    assert asked
    assert "reward_short" in brief.history[0].values
    again = burnish.train_ppo(model, [p.prompt for p in pairs[:20]], short, config=FEW)
    assert [s.values["kl"] for s in again.history] == [s.values["kl"] for s in brief.history], "the same seed"
    result = burnish.evaluate(brief, model, ["Zoe had a cup.", "Tom saw a dog."], lambda p, a, b: 0.5)
    assert result.win_rate.value == 0.5


@pytest.mark.parametrize("aggregate", ["min", "uwo"])
def test_messages_other_aggregations_and_terms(aggregate: str, pairs: list[Preference]) -> None:
    """A dialogue reaches a reward function as messages; the ensemble and a function are added up."""
    model = burnish.load_model(config=burnish.ModelConfig(layers="top:1", use_chat_template=False))
    settings = {"members": 2, "reference_samples": 32, "depth": 4, "pooling": "last", "aggregate": aggregate}
    reward = burnish.train_rewards(
        model, pairs[:120], config=burnish.RewardConfig(**settings), examiner=False
    )
    with pytest.raises(RunError, match="no examiner"):
        burnish.evaluate(model, model, ["Zoe had a cup."], reward)
    seen: list[object] = []

    def count(prompts: list[object], responses: list[str]) -> list[float]:
        seen.extend(prompts)
        return [float(len(r)) for r in responses]

    asked = [[{"role": "user", "content": f"Tell me of Zoe {i}."}] for i in range(4)]
    burnish.train_ppo(model, asked, count, config=FEW)
    assert asked[0] in seen
    config = FEW.model_copy(update={"shaping": burnish.PPOConfig(shaping={"bounded": True}).shaping})
    bounded = burnish.train_ppo(model, [p.prompt for p in pairs[:16]], reward, config=config)
    assert bounded.outcome["state"] == "finished"
    assert all(abs(s["reward"]) <= 0.5 for s in bounded.history)


def test_ppo_that_is_given_up_leaves_the_model_as_it_was(
    model: burnish.LanguageModel, pairs: list[Preference]
) -> None:
    config = FEW.model_copy(update={"updates": 12, "learning_rate": 1e30, "warmup_updates": 0})
    guard = burnish.GuardConfig(patience=1, max_rollbacks=0, max_rate_cuts=0, max_raises=0, settle_updates=0)
    lost = burnish.train_ppo(
        model,
        [p.prompt for p in pairs[:20]],
        lambda p, r: [len(x) * 1.0 for x in r],
        config=config,
        guard=guard,
    )
    assert lost.outcome["state"] == "given_up"
    assert not lost.trained
    assert lost.generate(["Zoe had a cup."], seed=2) == model.generate(["Zoe had a cup."], seed=2)
    assert burnish.train_dpo(lost, pairs[:32], config=burnish.DPOConfig(learning_rate=1e-4)).trained


def test_dpo_trains_on_pairs(model: burnish.LanguageModel, pairs: list[Preference]) -> None:
    config = burnish.DPOConfig(learning_rate=1e-3, batch_size=16)
    tuned = burnish.train_dpo(model, pairs[:64], config=config)
    assert [s.step for s in tuned.history] == [1, 2, 3, 4]
    assert tuned.history[-1]["loss"] < tuned.history[0]["loss"]
    assert model.generate(["Zoe had a cup."]) == model.generate(["Zoe had a cup."]), (
        "the model is not changed"
    )


def test_mistakes_are_answered(
    model: burnish.LanguageModel, reward: burnish.RewardModels, pairs: list[Preference]
) -> None:
    with pytest.raises(DataError, match="prompt 1 cannot be used: empty prompt"):
        model.generate(["Zoe.", " "])
    with pytest.raises(DataError, match="at least one"):
        model.generate([])
    with pytest.raises(DataError, match="prompt 0 cannot be used: too long"):
        burnish.train_ppo(model, ["word " * 400], reward, config=FEW)
    with pytest.raises(RunError, match="another model"):
        burnish.train_ppo(burnish.load_model("embedded"), ["Zoe had a cup."], reward, config=FEW)
    with pytest.raises(RunError, match="normalised at 1; use train_rewards"):
        burnish.train_ppo(model, ["Zoe."], reward, config=FEW.model_copy(update={"temperature": 0.7}))
    with pytest.raises(RunError, match=r"ppo\.concise needs a run"):
        burnish.train_ppo(model, ["Zoe."], reward, config=FEW.model_copy(update={"concise": "Be short."}))
    adapters = burnish.load_model("embedded", layers="lora_top:1")
    shared = burnish.RewardConfig(shared_head=True, aggregate="weights")
    with pytest.raises(ConfigError, match=r"shared_head averages whole layers"):
        burnish.train_rewards(adapters, pairs, config=shared)
    with pytest.raises(TrainingError, match="gave 1 numbers for"):
        burnish.train_ppo(model, ["Zoe had a cup.", "Tom ran."], lambda p, r: [1.0], config=FEW)
    with pytest.raises(DataError, match="give a list of prompts"):
        model.generate("Zoe had a cup.")
    with pytest.raises(ValueError, match=r"temperature=0 must be above 0"):
        model.generate(["Zoe."], temperature=0)
    with pytest.raises(DataError, match="1 prompts, 2 responses"):
        reward.score(["Zoe."], ["a", "b"])
    with pytest.raises(DataError, match="the judge gave no number for prompt 'Zoe"):
        burnish.evaluate(model, model, ["Zoe had a cup."], lambda p, a, b: None, seed=1)  # type: ignore[arg-type,return-value]
    long = Preference(pairs[0].prompt, "word " * 400, "b")
    with (
        pytest.raises(DataError, match="no pair fits"),
        pytest.warns(UserWarning, match="1 of 1 pairs are left out"),
    ):
        burnish.train_dpo(model, [long])


def test_a_run_returns_its_summary(tmp_path: Path) -> None:
    finished = burnish.run(burnish.RunConfig(name="small"), tmp_path / "r", until="sft")
    assert finished.path == tmp_path / "r"
    assert finished.champion is None
    with pytest.raises(RunError, match="model_copy"):
        burnish.run(burnish.RunConfig(), tmp_path / "r", sets=["seed=1"])


def test_types_and_names_are_the_same() -> None:
    """What a type checker sees under TYPE_CHECKING is what the package imports on first use."""
    tree = ast.parse((ROOT / "burnish" / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == burnish._WHERE
    assert set(burnish.__all__) == {*seen, "__version__"}
