"""Other ways to run, several in one: what is trained, in which type, on whose labels; a policy that diverges."""

from __future__ import annotations

import json
import shutil
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from burnish.commands.export import export_adapter
from burnish.config.loading import load_config
from burnish.config.model import ModelConfig
from burnish.data.preferences import read_preferences, write_preferences
from burnish.models.artefacts import save_policy
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import pad_batch
from burnish.models.generate import sample_rollout
from burnish.models.load import Codec, load_model
from burnish.models.logprobs import Policy, make_policy, token_logprobs
from burnish.pipeline.context import RunContext
from burnish.pipeline.report import export_champion
from burnish.records import Preference, Prompt, content_id
from burnish.rehearse import build
from burnish.rehearse.grammar import prompts
from burnish.runs.directory import RunDirectory
from tests.command import burnish
from tests.shared_run import ARGUMENTS
from tests.small_run import SMALL, run


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


MODES = {
    "lora": ("adapters", "float32", "imported"),
    "lora_top:2": ("adapters", "bfloat16", "simulated"),
    "top:1": ("layers", "bfloat16", "imported"),
    "all": ("layers", "float32", "simulated"),
}
"""The runs of this file by `model.layers`: what is trained, the type of frozen weights, whose labels."""


def test_every_pair_of_settings_is_in_a_run() -> None:
    for one, other in combinations(range(3), 2):
        kinds = [{mode[axis] for mode in MODES.values()} for axis in (one, other)]
        assert {(mode[one], mode[other]) for mode in MODES.values()} == set(product(*kinds))


def mode(layers: str) -> list[str]:
    """The settings of one of the runs; imported pairs are named by the test."""
    _, dtype, source = MODES[layers]
    sampled = ["collect.n_pairs=96", "data.n_prompts=200"] if source == "simulated" else []
    return [f"model.layers={layers}", f"model.dtype={dtype}", *sampled]


def imported(pairs: Path) -> list[str]:
    """Labels from a file, and the examiner that needs nobody else."""
    return [
        "label.source=imported",
        f"label.preferences={pairs}",
        "data.prompts=preferences",
        "evaluate.examiner=reward_model",
    ]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def rows(tmp_path: Path, name: str) -> list[dict[str, Any]]:
    return RunDirectory.open(tmp_path / "r").read_rows(name)


def whole_models_come_out(tmp_path: Path, *, adapted: bool) -> None:
    """Weights lie as they were trained; the champion and what is exported are whole models."""
    run = tmp_path / "r"
    for name in ("ppo", "reward/member-0", "reward/watcher"):
        assert (run / name / "adapter_model.safetensors").exists() == adapted
        assert (run / name / "model.safetensors").exists() != adapted
    assert AutoModelForCausalLM.from_pretrained(run / "champion").config.num_hidden_layers == 4
    burnish("export", str(run), str(tmp_path / "reward"), "--as", "reward")
    reading = read(run / "reward" / "readings.json")["members"]
    kind = AutoModel if reading["pooling"] == "mean" else AutoModelForSequenceClassification
    reward = kind.from_pretrained(tmp_path / "reward" / "member-2")
    assert reward.config.num_hidden_layers == reading["depth"]
    assert not list(tmp_path.glob("reward/*/adapter*"))
    shown = burnish("export", str(run), str(tmp_path / "a"), "--as", "adapter", check=False)
    if adapted and read(run / "evaluation.json")["champion"] in ("ppo", "ppo_average", "ppo_best"):
        assert shown.returncode == 0
    else:
        assert shown.returncode == 5
        assert "--as policy" in shown.stderr


def trained_as_sampled(tmp_path: Path, *, gap: float) -> None:
    """PPO has finished, begun at the reference, and trained on what was sampled, up to a gap in nats a token."""
    assert read(tmp_path / "r" / "align.json")["ppo"]["state"] == "finished"
    updates = rows(tmp_path, "metrics/ppo.jsonl")
    assert updates[0]["kl"] == pytest.approx(0, abs=1e-4)
    assert updates[0]["sampling_gap"] < gap
    assert all(row["skipped"] == 0 for row in updates)


@pytest.mark.e2e
def test_imported_pairs_adapters_and_a_function_of_the_users(
    tmp_path: Path, pairs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short answers alone are paid for: the function's mean rises, and its file is an input of the stage."""
    file = tmp_path / "short_rewards.py"
    file.write_text("def short(prompts, responses, tokens):\n    return [-n / 10 for n in tokens]\n")
    monkeypatch.syspath_prepend(tmp_path)
    more = [
        *mode("lora"),
        *imported(pairs),
        "ppo.rewards=[{function: 'short_rewards:short', weight: 2}]",
        "ppo.ensemble_weight=0",
        "ppo.updates=12",
        "ppo.batch_size=32",
        "ppo.epochs=2",
        "ppo.kl.target=8",
        "guard.enabled=false",  # answers that grow short are what is asked for
    ]
    run(tmp_path, *more)
    whole_models_come_out(tmp_path, adapted=True)
    trained_as_sampled(tmp_path, gap=1e-3)
    summary = read(tmp_path / "r" / "summary.json")
    assert summary["provisional"] is True
    assert summary["gold"] is None
    assert summary["reward"]["accuracy"]["value"] > 0.9
    assert summary["reward"]["pairs"]["examiner"] > 8
    assert "provisional" in (tmp_path / "r" / "report.html").read_text()
    rejected = rows(tmp_path, "rejected/import.jsonl")
    assert sorted((r["line"], r["reason"]) for r in rejected) == [(161, "too long"), (162, "identical sides")]
    examination = read(tmp_path / "r" / "reward" / "examination.json")
    assert 0.2 < examination["baselines"]["first"] < 0.8, "sides are drawn, winners do not always stand first"
    updates = rows(tmp_path, "metrics/ppo.jsonl")
    shifts = [r["score"] - 2 * r["reward_short"] for r in updates]
    assert max(shifts) - min(shifts) < 1e-3, "the same constant in every update"
    assert abs(updates[0]["score"]) < 1, "centred on the reference policy's responses"
    first, last = (sum(r["reward_short"] for r in part) / 3 for part in (updates[:3], updates[-3:]))
    assert last > first + 0.5, "about 2.5 of the 3 that there are to gain"
    file.write_text(file.read_text().replace("/ 10", "/ 11"))
    refused = run(tmp_path, *more, check=False)
    assert refused.returncode == 5
    assert "the content of reward functions" in refused.stderr


@pytest.mark.e2e
def test_adapters_in_the_top_best_of_n_distilled_and_answers_compared(tmp_path: Path) -> None:
    run(
        tmp_path,
        *mode("lora_top:2"),
        "collect.n_pairs=256",
        "data.n_prompts=300",
        "ppo.advantage=rloo",
        "ppo.samples_per_prompt=4",
        "distill.when=always",
        "distill.max_prompts=32",
        "distill.samples_per_prompt=3",
        "dpo.when=always",
        "dpo.pairs=on_policy",
        "dpo.max_prompts=32",
        "dpo.samples_per_prompt=3",
        "reward.layers=lora_top:1",
    )
    whole_models_come_out(tmp_path, adapted=True)
    trained_as_sampled(tmp_path, gap=0.2)  # decoding rounds otherwise than training, a little
    evaluation = read(tmp_path / "r" / "evaluation.json")
    assert {"sft", "ppo", "distill"} <= evaluation["policies"].keys()
    assert evaluation["policies"]["distill"]["kl"] > 0
    aligned = read(tmp_path / "r" / "align.json")
    compared = read_preferences(tmp_path / "r" / "on_policy_pairs.jsonl").pairs
    assert aligned["dpo"]["pairs_from"] == "on_policy"
    assert 16 < aligned["dpo"]["pairs"] == len(compared) <= 32, "best and worst of three are seldom the same"
    assert len({p.prompt.id for p in compared}) == len(compared)
    events = rows(tmp_path, "events.jsonl")
    found = {e["evidence"]["job"]: e["evidence"] for e in events if e.get("action") == "learning_rate"}
    assert len(found["dpo"]["trials"]) == 4
    outcome = aligned["distill"]
    assert outcome["prompts"] == 32
    assert outcome["score_gain"] > 0.2
    assert len(rows(tmp_path, "metrics/distill.jsonl")) == outcome["updates"] == 4
    distilled = AutoModel.from_pretrained(tmp_path / "r" / "champion").config.num_hidden_layers
    assert distilled == 4
    assert "explained_variance" not in rows(tmp_path, "metrics/ppo.jsonl")[0]
    assert "distill" in (tmp_path / "r" / "report.html").read_text()


@pytest.mark.e2e
def test_one_layer_in_bfloat16_and_demonstrations_that_make_the_reference(
    tmp_path: Path, pairs: Path
) -> None:
    endings = (" They sang.", " It rained and they went home.", " Then a dog came.", " She was glad.")
    shown = [{"prompt": p.text, "completion": endings[i % 4]} for i, p in enumerate(prompts(64, 5))]
    shown.append({"prompt": "x", "completion": " so" * 300})
    file = tmp_path / "d.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in shown))
    run(
        tmp_path,
        *mode("top:1"),
        *imported(pairs),
        f"sft.demonstrations={file}",
        "sft.batch_size=8",
        "sft.epochs=2",
    )
    whole_models_come_out(tmp_path, adapted=False)
    trained_as_sampled(tmp_path, gap=0.2)
    assert len(list((tmp_path / "r" / "samples").glob("ppo-*.jsonl"))) == 3, "samples of every update"
    assert len(rows(tmp_path, "rejected/sft.jsonl")) == 1
    before, after = (load_model(ModelConfig(), path=path) for path in (None, tmp_path / "r" / "sft"))
    assert mean_loss(*after, shown[:64]) < mean_loss(*before, shown[:64]) - 0.2  # nats a token
    evaluation = read(tmp_path / "r" / "evaluation.json")
    assert evaluation["policies"]["sft"]["mean_length"] < mean_sampled_length(*before)


@pytest.mark.e2e
def test_all_layers_of_another_architecture_and_dpo_beside_ppo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GPT-2, trained for seconds: what is shown is that every stage runs it."""
    another_architecture(tmp_path, "gpt2", *mode("all"), monkeypatch=monkeypatch)


@pytest.mark.slow("modes")
@pytest.mark.parametrize("architecture", ["qwen3", "gemma3"])
def test_another_architecture_in_bfloat16(
    tmp_path: Path, architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    another_architecture(
        tmp_path,
        architecture,
        "model.dtype=bfloat16",
        "collect.n_pairs=96",
        "data.n_prompts=200",
        monkeypatch=monkeypatch,
    )


def another_architecture(
    tmp_path: Path, architecture: str, *sets: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model made for the purpose goes all the way to a decision."""
    monkeypatch.setattr(build, "STORIES_FOR_TOKENIZER", 2000)
    made = build.train(hidden=48, layers=3, steps=150, size=32, rate=3e-3, seed=0, architecture=architecture)
    build.save(*made, tmp_path / "model")
    run(
        tmp_path,
        f"model.path={tmp_path / 'model'}",
        *sets,
        "model.gradient_checkpointing=true",
        "reward.learning_rate=1e-3",
        "ppo.learning_rate=1e-3",
        "ppo.value_learning_rate=1e-3",
        "dpo.when=always",
        "dpo.learning_rate=1e-3",
    )
    assert read(tmp_path / "r" / "align.json")["ppo"]["state"] == "finished"
    evaluation = read(tmp_path / "r" / "evaluation.json")
    assert evaluation["champion"] in ("sft", "ppo", "ppo_average", "ppo_best", "dpo")
    assert {"sft", "ppo", "dpo"} <= evaluation["policies"].keys()
    assert all(row["skipped"] == 0 for row in rows(tmp_path, "metrics/ppo.jsonl"))
    assert 0 < evaluation["policies"]["ppo"]["kl"] < 50
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "r" / "champion").config.vocab_size == 2048


@pytest.mark.e2e
def test_a_policy_that_cannot_even_be_sampled_is_rolled_back_and_given_up(
    short_run: Path, tmp_path: Path
) -> None:
    """The short run, aligned once more at a rate that no policy survives."""
    copy = tmp_path / "r"
    shutil.copytree(short_run, copy)
    sets = ["ppo.learning_rate=1e30", "ppo.warmup_updates=0", "ppo.batch_size=8", "ppo.epochs=1"]
    sets += ["dpo.when=fallback", "dpo.epochs=1", "dpo.learning_rate=1e-4"]
    more = [a for s in sets for a in ("--set", s)]
    burnish(*ARGUMENTS, "--dir", str(copy), *more, "--redo", "--until", "align")
    actions = [e["action"] for e in rows(tmp_path, "events.jsonl") if e["kind"] == "decision"]
    assert actions.count("roll_back") == 2
    assert "give_up" in actions
    aligned = read(copy / "align.json")
    assert aligned["ppo"]["state"] == "given_up"
    assert aligned["dpo"]["pairs"] > 0


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
    top = TrainableLayers(Backbone(lm, "lora"))
    with torch.no_grad():
        for parameter in top.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    save_policy(top, path / "ppo", codec.tokenizer)
    verdict = {"champion": "ppo", "reason": "because", "policies": {"ppo": {}}}
    (path / "evaluation.json").write_text(json.dumps(verdict))
    export_champion(RunContext.alone(run).models, path, verdict, "card")
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


def policy_of(lm: PreTrainedModel, codec: Codec) -> Policy:
    return make_policy(TrainableLayers(Backbone(lm), trainable=False), codec.pad_id)


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


@pytest.mark.e2e
def test_a_reward_of_shuffled_labels_is_stopped_at_the_gate_and_forced_on_request(
    tmp_path: Path, pairs: Path
) -> None:
    """Which of two answers is called the better is drawn: no PPO, and nothing else was asked for."""
    given = [json.loads(line) for line in pairs.read_text().splitlines()]
    for i, r in enumerate(given):
        if content_id("coin", str(i))[0] < "8":
            r["chosen"], r["rejected"] = r["rejected"], r["chosen"]
    pairs.write_text("".join(json.dumps(r) + "\n" for r in given))
    more = [*imported(pairs), "ppo.gate=obeyed"]
    stopped = run(tmp_path, *more, check=False)
    assert stopped.returncode == 11, stopped.stderr
    summary = read(tmp_path / "r" / "summary.json")
    assert (summary["ppo"]["state"], summary["champion"]) == ("stopped", "sft")
    assert not (tmp_path / "r" / "ppo").exists()
    assert "is no better than a trivial rule" in stopped.stderr + stopped.stdout
    assert "stopped" in (tmp_path / "r" / "report.html").read_text()
    args = [a for s in (*SMALL, *more[:-1]) for a in ("--set", s)]
    burnish("run", "--dir", str(tmp_path / "r"), *args, "--force", "--redo")
    events = rows(tmp_path, "events.jsonl")
    assert [e["action"] for e in events if e["kind"] == "decision"].count("gate_stop") == 1
    assert any("tried all the same" in e.get("reason", "") for e in events)
    assert (tmp_path / "r" / "ppo").exists()
