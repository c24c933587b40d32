"""Tiny random models of architectures that people use: plan, doctor, and a short run on imported pairs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from burnish.config.model import TINY_MODEL, ModelConfig
from burnish.errors import ModelError
from burnish.models.load import load_model, resolve_path
from burnish.records import Message, Prompt
from tests.command import burnish

EMBEDDED = resolve_path(TINY_MODEL)
SIZE = {
    "vocab_size": 2048,
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "bos_token_id": 1,
}
KV: dict[str, Any] = {"num_key_value_heads": 2}
HEADS = KV | {"head_dim": 16}
WORK: dict[str, dict[str, Any]] = {
    "llama": KV,
    "qwen2": KV | {"vocab_size": 2112},  # its tokenizer adds a token, and real ones have rows to spare
    "qwen3": HEADS,
    "mistral": HEADS,
    "gemma2": HEADS,
    "gemma3_text": HEADS,
    "phi3": KV,
    "gpt2": {"n_embd": 64, "n_layer": 4, "n_head": 4, "n_positions": 256},
    "gpt_neox": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64},
    "olmo2": KV,
    "smollm3": KV,
    "falcon": {"num_kv_heads": 4},
    "qwen3_moe": HEADS | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    "lfm2": KV | {"block_ff_dim": 128},
}
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "cohere": (KV, "CohereForCausalLM .* post-processes its logits; use another model"),
    "mamba": ({}, "MambaForCausalLM keeps a state that padding changes"),
}


def random_model(kind: str, folder: Path, **more: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SIZE | more)))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(EMBEDDED).save_pretrained(folder)
    return folder


def configuration(folder: Path, model: Path) -> Path:
    pairs = [
        {
            "prompt": f"One day, Ada had {i} red balls.",
            "chosen": f" She was happy and played for {i % 7} days.",
            "rejected": " She was sad.",
        }
        for i in range(300)
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    file = folder / "run.yaml"
    settings = {
        "threads": 1,
        "data": {"prompts": "preferences"},
        "collect": {"n_pairs": 0},
        "label": {"source": "imported", "preferences": str(folder / "pairs.jsonl")},
        "model": {"path": str(model), "max_prompt_tokens": 48, "max_response_tokens": 24},
        "reward": {"reference_samples": 32, "pooling": "last", "members": 2, "learning_rate": 1e-3},
        "ppo": {
            "updates": 2,
            "batch_size": 8,
            "micro_batch": 8,
            "learning_rate": 1e-4,
            "gate": "ignored",
        },
        "evaluate": {
            "examiner": "reward_model",
            "n_selection": 8,
            "n_test": 8,
            "kl_prompts": 8,
            "best_of_n": 1,
        },
    }
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.mark.slow("architectures")
@pytest.mark.parametrize("kind", WORK)
def test_plan_doctor_and_a_short_run(kind: str, tmp_path: Path) -> None:
    file = configuration(tmp_path, random_model(kind, tmp_path / "model", **WORK[kind]))
    assert burnish("plan", str(file)).returncode == 0
    findings = json.loads(burnish("doctor", str(file), "--json").stdout)
    assert not [f for f in findings if "cannot be checked" in f["evidence"]]
    assert {"memory", "time", "disk"} <= {f["check"] for f in findings}
    done = burnish("run", str(file), "--dir", str(tmp_path / "run"), check=False)
    assert done.returncode in (0, 10), done.stderr


@pytest.mark.slow("architectures")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_work_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    more, why = REFUSED[kind]
    file = configuration(tmp_path, random_model(kind, tmp_path / "model", **more))
    done = burnish("run", str(file), "--dir", str(tmp_path / "run"), check=False)
    assert done.returncode == 6
    assert "unexpected" not in done.stderr
    assert re.search(why, done.stderr), done.stderr
    findings = json.loads(burnish("doctor", str(file), "--json").stdout)
    assert any(re.search(why, f["evidence"]) for f in findings)


# Files of models, each broken in another way


def copied(folder: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED, folder))


def weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    file = folder / "model.safetensors"
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (
            lambda w: {k: v for k, v in w.items() if "layers.2.self_attn" not in k},
            r"4 tensors are missing \(model\.layers\.2\.self_attn\.k_proj\.weight",
        ),
        (lambda w: {"module." + k: v for k, v in w.items()}, "belong to nothing in it"),
        (
            lambda w: w | {"model.norm.weight": w["model.norm.weight"].repeat(2)},
            r"1 tensors have another shape \(model\.norm\.weight\)",
        ),
        (
            lambda w: w | {"v_head.weight": torch.zeros(1, 2)},
            r"1 tensors belong to nothing in it \(v_head\.weight",
        ),
    ],
)
def test_weights_of_another_model_are_refused_with_their_names(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], why: str
) -> None:
    folder = copied(tmp_path / "model")
    weights(folder, change)
    with pytest.raises(ModelError, match=why):
        load_model(ModelConfig(path=str(folder)))


def test_a_file_that_is_cut_off_is_an_error_of_the_model(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    raw = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(ModelConfig(path=str(folder)))


def test_a_generation_config_that_says_not_to_sample_is_saved_all_the_same(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_sample": False, "temperature": 0.6}))
    model, _ = load_model(ModelConfig(path=str(folder)))
    model.save_pretrained(tmp_path / "saved")


def test_rows_beyond_the_tokenizer_are_cut(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED, dtype=torch.float32)
    model.resize_token_embeddings(2112, mean_resizing=False)
    model.save_pretrained(folder)
    for with_weights in (True, False):
        loaded, codec = load_model(ModelConfig(path=str(folder)), weights=with_weights)
        assert loaded.get_output_embeddings().weight.shape[0] == len(codec.tokenizer) == 2048


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.add_tokens(["brandnew", "another"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="2050 tokens, but the model 2048 rows"):
        load_model(ModelConfig(path=str(folder)))


def test_control_tokens_that_are_written_out_are_text(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    _, plain = load_model(ModelConfig())
    assert plain.pad_id not in plain.encode_response("a <|pad|><|pad|> b", end=False)
    assert plain.encode_response("a b")[-1] == plain.eos_id
    assert not plain.eos_ids & set(plain.encode_prompt(Prompt("What is <|eos|>?")))
    file = folder / "tokenizer_config.json"
    template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|eos|>\n{% endfor %}assistant:"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    _, codec = load_model(ModelConfig(path=str(folder)))
    said = Prompt.from_messages([Message("user", "What is <|eos|>?"), Message("assistant", "A <|pad|>.")])
    ids = codec.encode_prompt(said)
    assert ids.count(codec.eos_id) == 2, "those of the template"
    assert codec.pad_id not in ids
    kept = codec.tokenizer.decode(ids, skip_special_tokens=False)
    assert "What is <|eos|>?<|eos|>" in kept
    usual = Prompt.from_messages([Message("user", "What is it?")])
    rendered = codec.tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is it?"}], add_generation_prompt=True, tokenize=False
    )
    assert codec.encode_prompt(usual) == codec.tokenizer(rendered, add_special_tokens=False)["input_ids"]


def test_a_template_that_refuses_a_row_costs_that_row_alone(tmp_path: Path) -> None:
    folder = copied(tmp_path / "model")
    template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m['content'] }}<|eos|>{% endfor %}"
    )
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"chat_template": template}))
    config = yaml.safe_load(configuration(tmp_path, folder).read_text())
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    for row in rows[:3]:
        row["prompt"] = [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": row["prompt"]},
        ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    burnish("run", str(tmp_path / "run.yaml"), "--dir", str(tmp_path / "run"), "--until", "label")
    rejected = [
        json.loads(line) for line in (tmp_path / "run" / "rejected" / "import.jsonl").read_text().splitlines()
    ]
    assert [row["line"] for row in rejected] == [1, 2, 3]
    assert {row["reason"] for row in rejected} == {
        "the chat template refuses the dialogue: System role not supported"
    }
    findings = {
        f["check"]: f for f in json.loads(burnish("doctor", str(tmp_path / "run.yaml"), "--json").stdout)
    }
    assert "3 the chat template refuses" in findings["rows that cannot be used"]["evidence"]
