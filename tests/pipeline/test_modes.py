"""Other ways to run: demonstrations first, adapters, imported pairs, a policy that diverges outright."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import burnish
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from burnish.config.loading import load_config
from burnish.config.model import ModelConfig
from burnish.data.preferences import read_preferences, write_preferences
from burnish.models.artefacts import save_policy
from burnish.models.batches import pad_batch
from burnish.models.load import Codec, load_model
from burnish.models.logprobs import Policy, make_policy, token_logprobs
from burnish.models.sampling import sample_rollout
from burnish.models.shared_base import Base, Top
from burnish.pipeline.export import export_adapter
from burnish.pipeline.order import Workplace
from burnish.pipeline.report import export_champion
from burnish.records import Preference, Prompt, content_id
from burnish.rehearse import build
from burnish.rehearse.grammar import prompts
from burnish.runs import RunDirectory

pytestmark = pytest.mark.e2e
SMALL = [
    "threads=1",
    "ppo.updates=3",
    "ppo.batch_size=8",
    "ppo.epochs=1",
    "ppo.checkpoint_every=2",
    "ppo.gate=ignored",  # with so few labels
    "dpo.when=never",
    "evaluate.n_selection=8",
    "evaluate.n_test=8",
    "evaluate.kl_prompts=16",
    "evaluate.best_of_n=1",
    "reward.reference_samples=32",
    "monitor.trackers=[]",
    "monitor.sample_every=1",
]


def run(tmp_path: Path, *sets: str, check: bool = True):  # type: ignore[no-untyped-def]
    args = [a for s in (*SMALL, *sets) for a in ("--set", s)]
    return burnish("run", "--dir", str(tmp_path / "r"), *args, check=check)


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Imported pairs: glad stories beat sad ones; one is far too long, one has no winner."""
    rows = [
        Preference(p, f" They were happy and sang {i}.", f" They wept {i}.")
        for i, p in enumerate(prompts(160, 3))
    ]
    rows.append(Preference(rows[0].prompt, " so" * 400, " no"))
    rows.append(Preference(rows[1].prompt, " same", " same"))
    write_preferences(rows, tmp_path / "pairs.jsonl")
    return tmp_path / "pairs.jsonl"


def test_imported_pairs_and_a_reward_model_as_examiner(tmp_path: Path, pairs: Path) -> None:
    run(
        tmp_path,
        "label.source=imported",
        f"label.preferences={pairs}",
        "data.prompts=preferences",
        "evaluate.examiner=reward_model",
    )
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["provisional"] is True
    assert summary["gold"] is None
    assert summary["reward"]["accuracy"]["value"] > 0.9
    assert summary["reward"]["pairs"]["examiner"] > 8
    assert "provisional" in (tmp_path / "r" / "report.html").read_text()
    rejected = RunDirectory.open(tmp_path / "r").read_rows("rejected/import.jsonl")
    assert sorted((r["line"], r["reason"]) for r in rejected) == [(161, "too long"), (162, "identical sides")]
    assert len(list((tmp_path / "r" / "samples").glob("ppo-*.jsonl"))) == 3, "samples of every update"
    examination = json.loads((tmp_path / "r" / "reward" / "examination.json").read_text())
    assert 0.2 < examination["baselines"]["first"] < 0.8, "sides are drawn, winners do not always stand first"


@pytest.mark.parametrize("mode", ["lora", "lora_top:2", "all"])
def test_adapters_and_top_layers(tmp_path: Path, mode: str) -> None:
    run(tmp_path, f"model.layers={mode}", "collect.n_pairs=96", "data.n_prompts=200")
    state = json.loads((tmp_path / "r" / "align.json").read_text())
    assert state["ppo"]["state"] == "finished"
    adapted = mode.startswith("lora")
    for name in ("ppo", "reward/member-0", "reward/watcher"):
        assert (tmp_path / "r" / name / "adapter_model.safetensors").exists() == adapted
        assert (tmp_path / "r" / name / "model.safetensors").exists() != adapted
    # Whoever wins, the champion and what is exported are whole models.
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "champion").config.num_hidden_layers == 4
    burnish("export", str(tmp_path / "r"), str(tmp_path / "reward"), "--as", "reward")
    reading = json.loads((tmp_path / "r" / "reward" / "readings.json").read_text())["members"]
    kind = AutoModel if reading["pooling"] == "mean" else AutoModelForSequenceClassification
    reward = kind.from_pretrained(tmp_path / "reward" / "member-2")
    assert reward.config.num_hidden_layers == reading["depth"]
    assert not list(tmp_path.glob("reward/*/adapter*"))
    evaluation = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    told = burnish("export", str(tmp_path / "r"), str(tmp_path / "a"), "--as", "adapter", check=False)
    if adapted and evaluation["champion"] == "ppo":
        assert told.returncode == 0
    else:
        assert told.returncode == 5
        assert "--as policy" in told.stderr


def test_a_champion_of_adapters_is_shipped_whole_and_exported_as_an_adapter(
    tmp_path: Path, codec: Codec
) -> None:
    """A run whose PPO policy was found champion, on top of a model of its own."""
    sets = ["model.layers=lora", "collect.n_pairs=96", "data.n_prompts=200"]
    config = load_config(None, [*SMALL, *sets])
    path = tmp_path / "r"
    run = RunDirectory.create_or_open(path, config)
    run.freeze()
    lm, _ = load_model(ModelConfig())
    lm.save_pretrained(path / "sft")
    codec.tokenizer.save_pretrained(path / "sft")
    top = Top(Base(lm, "lora"))
    with torch.no_grad():
        for parameter in top.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_policy(top, path / "ppo", codec.tokenizer)
    verdict = {"champion": "ppo", "reason": "because", "policies": {"ppo": {}}}
    (path / "evaluation.json").write_text(json.dumps(verdict))
    export_champion(Workplace.alone(run).models, path, verdict, "card")
    told = export_adapter(path, tmp_path / "a")
    assert told["champion"] == "ppo"
    whole = AutoModelForCausalLM.from_pretrained(path / "champion")
    ids = torch.tensor([codec.encode_prompt(prompts(1, 0)[0])])
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "base")
    expected = lm(ids).logits
    assert torch.allclose(base(ids).logits, expected)
    adapted = PeftModel.from_pretrained(base, tmp_path / "a")
    assert torch.allclose(adapted(ids).logits, whole(ids).logits, atol=1e-4)
    assert not torch.allclose(whole(ids).logits, expected, atol=1e-2)
    card = (tmp_path / "a" / "README.md").read_text()
    names: dict[str, Any] = {}
    exec(card.split("```python")[1].split("```")[0], names)
    assert torch.allclose(names["model"](ids).logits, whole(ids).logits, atol=1e-4)


def test_demonstrations_make_the_reference(tmp_path: Path) -> None:
    endings = (" They sang.", " It rained and they went home.", " Then a dog came.", " She was glad.")
    rows = [{"prompt": p.text, "completion": endings[i % 4]} for i, p in enumerate(prompts(64, 5))]
    rows.append({"prompt": "x", "completion": " so" * 300})
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    run(
        tmp_path,
        f"sft.demonstrations={file}",
        "model.layers=all",
        "sft.batch_size=8",
        "sft.epochs=2",
        "collect.n_pairs=256",
        "data.n_prompts=200",
        "label.simulated.noise=2",
    )
    assert len(RunDirectory.open(tmp_path / "r").read_rows("rejected/sft.jsonl")) == 1
    before, after = (load_model(ModelConfig(), path=path) for path in (None, tmp_path / "r" / "sft"))
    assert mean_loss(*after, rows[:64]) < mean_loss(*before, rows[:64]) - 0.2  # nats a token
    evaluation = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert evaluation["policies"]["sft"]["mean_length"] < mean_sampled_length(*before)


def policy_of(lm: PreTrainedModel, codec: Codec) -> Policy:
    return make_policy(Top(Base(lm), trainable=False), codec.pad_id)


def mean_loss(lm: PreTrainedModel, codec: Codec, rows: list[dict[str, str]]) -> float:
    """Mean over demonstrations of the cross-entropy of their completion, nats a token."""
    batch = pad_batch(
        [codec.encode_prompt(Prompt(r["prompt"])) for r in rows],
        [codec.encode_response(r["completion"]) for r in rows],
        codec.pad_id,
    )
    with torch.no_grad():
        sums = token_logprobs(policy_of(lm, codec), batch).sum(1)
    return float((-sums / batch.response_mask.sum(1)).mean())


def mean_sampled_length(lm: PreTrainedModel, codec: Codec) -> float:
    rollout = sample_rollout(
        policy_of(lm, codec), codec, prompts(64, 9), max_tokens=56, batch_size=64, seed=0, where=("base",)
    )
    return sum(rollout.lengths) / len(rollout)


def test_a_policy_that_cannot_even_be_sampled_is_rolled_back_and_given_up(tmp_path: Path) -> None:
    run(
        tmp_path,
        "collect.n_pairs=96",
        "data.n_prompts=200",
        "ppo.learning_rate=1e30",
        "ppo.warmup_updates=0",
        "dpo.when=fallback",
    )
    events = RunDirectory.open(tmp_path / "r").read_rows("events.jsonl")
    actions = [e["action"] for e in events if e["kind"] == "decision"]
    assert actions.count("roll_back") == 2
    assert "give_up" in actions
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert summary["fallback"]["triggered"] is True
    assert summary["ppo"]["state"] == "given_up"


def test_a_function_of_the_users_is_optimised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers alone are paid for: the function's mean rises, and its file is an input of the stage."""
    file = tmp_path / "short_rewards.py"
    file.write_text("def short(prompts, responses, tokens):\n    return [-n / 10 for n in tokens]\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    more = [
        "collect.n_pairs=96",
        "data.n_prompts=300",
        "ppo.rewards=[{function: 'short_rewards:short', weight: 2}]",
        "ppo.ensemble_weight=0",
        "ppo.updates=12",
        "ppo.batch_size=32",
        "ppo.epochs=2",
        "ppo.kl.target=8",
    ]
    run(tmp_path, *more)
    rows = RunDirectory.open(tmp_path / "r").read_rows("metrics/ppo.jsonl")
    shifts = [r["score"] - 2 * r["reward_short"] for r in rows]
    assert max(shifts) - min(shifts) < 1e-3, "the same constant in every update"
    assert abs(rows[0]["score"]) < 1, "centred on the reference policy's responses"
    first, last = (sum(r["reward_short"] for r in part) / 3 for part in (rows[:3], rows[-3:]))
    assert last > first + 0.5, "about 2.5 of the 3 that there are to gain"
    file.write_text(file.read_text().replace("/ 10", "/ 11"))
    refused = run(tmp_path, *more, check=False)
    assert refused.returncode == 5
    assert "the content of reward functions" in refused.stderr


@pytest.mark.parametrize(
    ("architecture", "dtype"), [("gpt2", "float32"), ("qwen3", "bfloat16"), ("gemma3", "bfloat16")]
)
def test_another_architecture_goes_all_the_way_to_a_decision(
    tmp_path: Path, architecture: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained for seconds: what is shown is that every stage runs it."""
    monkeypatch.setattr(build, "STORIES_FOR_TOKENIZER", 2000)
    made = build.train(hidden=48, layers=3, steps=150, size=32, rate=3e-3, seed=0, architecture=architecture)
    build.save(*made, tmp_path / "model")
    run(
        tmp_path,
        f"model.path={tmp_path / 'model'}",
        f"model.dtype={dtype}",
        "model.gradient_checkpointing=true",
        "collect.n_pairs=96",
        "data.n_prompts=200",
        "reward.learning_rate=1e-3",
        "ppo.learning_rate=1e-3",
        "ppo.value_learning_rate=1e-3",
        "dpo.when=always",
        "dpo.learning_rate=1e-3",
    )
    state = json.loads((tmp_path / "r" / "align.json").read_text())
    assert state["ppo"]["state"] == "finished"
    evaluation = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert evaluation["champion"] in ("sft", "ppo", "dpo")
    assert {"sft", "ppo", "dpo"} <= evaluation["policies"].keys()
    rows = RunDirectory.open(tmp_path / "r").read_rows("metrics/ppo.jsonl")
    assert all(row["skipped"] == 0 for row in rows)
    assert 0 < evaluation["policies"]["ppo"]["kl"] < 50
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "champion").config.vocab_size == 2048


def test_the_embedded_model_in_bfloat16_goes_all_the_way(tmp_path: Path) -> None:
    run(tmp_path, "model.dtype=bfloat16", "model.layers=all", "collect.n_pairs=96", "data.n_prompts=200")
    state = json.loads((tmp_path / "r" / "align.json").read_text())
    assert state["ppo"]["state"] == "finished"
    rows = RunDirectory.open(tmp_path / "r").read_rows("metrics/ppo.jsonl")
    assert rows[0]["kl"] == 0
    assert rows[0]["sampling_gap"] < 0.2, "decoding rounds otherwise than training, a little"
    assert all(row["skipped"] == 0 for row in rows)


def test_a_reward_of_shuffled_labels_is_stopped_at_the_gate_and_forced_on_request(
    tmp_path: Path, pairs: Path
) -> None:
    """Which of two answers is called the better is drawn: no PPO, and nothing else was asked for."""
    rows = [json.loads(line) for line in pairs.read_text().splitlines()]
    for i, r in enumerate(rows):
        if content_id("coin", str(i))[0] < "8":
            r["chosen"], r["rejected"] = r["rejected"], r["chosen"]
    pairs.write_text("".join(json.dumps(r) + "\n" for r in rows))
    more = [
        "label.source=imported",
        f"label.preferences={pairs}",
        "data.prompts=preferences",
        "evaluate.examiner=reward_model",
        "ppo.gate=obeyed",
    ]
    stopped = run(tmp_path, *more, check=False)
    assert stopped.returncode == 11, stopped.stderr
    summary = json.loads((tmp_path / "r" / "summary.json").read_text())
    assert (summary["ppo"]["state"], summary["champion"]) == ("stopped", "sft")
    assert not (tmp_path / "r" / "ppo").exists()
    assert "knows nothing that a trivial rule does not" in stopped.stderr + stopped.stdout
    assert "stopped" in (tmp_path / "r" / "report.html").read_text()
    args = [a for s in (*SMALL, *more[:-1]) for a in ("--set", s)]
    burnish("run", "--dir", str(tmp_path / "r"), *args, "--force", "--redo")
    events = RunDirectory.open(tmp_path / "r").read_rows("events.jsonl")
    assert [e["action"] for e in events if e["kind"] == "decision"].count("gate_stop") == 1
    assert any("tried all the same" in e.get("reason", "") for e in events)
    assert (tmp_path / "r" / "ppo").exists()


def test_best_of_n_distilled_and_answers_compared_are_candidates_too(tmp_path: Path) -> None:
    run(
        tmp_path,
        "collect.n_pairs=256",
        "data.n_prompts=300",
        "ppo.advantage=rloo",
        "ppo.answers=4",
        "distill.when=always",
        "distill.prompts=32",
        "distill.n=3",
        "dpo.when=always",
        "dpo.pairs=on_policy",
        "dpo.prompts=32",
        "dpo.n=3",
        "reward.layers=top:1",
    )
    evaluation = json.loads((tmp_path / "r" / "evaluation.json").read_text())
    assert {"sft", "ppo", "distill"} <= evaluation["policies"].keys()
    assert evaluation["policies"]["distill"]["kl"] > 0
    aligned = json.loads((tmp_path / "r" / "align.json").read_text())
    pairs = read_preferences(tmp_path / "r" / "on_policy_pairs.jsonl").pairs
    assert aligned["dpo"]["pairs_from"] == "on_policy"
    assert 16 < aligned["dpo"]["pairs"] == len(pairs) <= 32, "best and worst of three are seldom the same"
    assert len({p.prompt.id for p in pairs}) == len(pairs)
    events = RunDirectory.open(tmp_path / "r").read_rows("events.jsonl")
    found = {e["evidence"]["job"]: e["evidence"] for e in events if e.get("action") == "learning_rate"}
    assert len(found["dpo"]["trials"]) == 4
    outcome = aligned["distill"]
    assert outcome["prompts"] == 32
    assert outcome["score_gain"] > 0.2
    rows = RunDirectory.open(tmp_path / "r").read_rows("metrics/distill.jsonl")
    assert len(rows) == outcome["updates"] == 4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "distill").config.num_hidden_layers == 4
    first = RunDirectory.open(tmp_path / "r").read_rows("metrics/ppo.jsonl")[0]
    assert "explained_variance" not in first
    assert "distill" in (tmp_path / "r" / "report.html").read_text()
