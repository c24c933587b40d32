"""The frozen bottom in bfloat16: half-size weights, nearly the same model, plain float32 artefacts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from burnish.config.model import ModelConfig
from burnish.errors import ModelError
from burnish.models.artefacts import load_policy, save_policy
from burnish.models.batches import pad_batch
from burnish.models.load import load_model
from burnish.models.logprobs import make_policy, token_logprobs
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.models.shared_base import Base, Top


def halved() -> tuple[Base, Base]:
    """The embedded model, and the same with its frozen layers in bfloat16."""
    whole, half = (Base(load_model(ModelConfig())[0], "top:2") for _ in range(2))
    half.halve_frozen()
    return whole, half


def test_only_linear_layers_below_the_cut_are_halved() -> None:
    _, half = halved()
    dtypes = {name: p.dtype for name, p in half.lm.named_parameters()}
    below = [n for n in dtypes if any(f"layers.{i}." in n for i in range(half.cut)) and "norm" not in n]
    assert below
    assert all(dtypes.pop(n) == torch.bfloat16 for n in below)
    assert set(dtypes.values()) == {torch.float32}


def test_log_probabilities_stay_near_those_of_float32(prompts) -> None:
    codec = load_model(ModelConfig())[1]
    texts = [" and she sang a song.", " They ran home, and it was good."]
    batch = pad_batch(
        [codec.encode_prompt(p) for p in prompts[:2]], [codec.encode_response(t) for t in texts], codec.pad_id
    )
    a, b = (token_logprobs(make_policy(Top(base, trainable=False), codec.pad_id), batch) for base in halved())
    assert 0 < float((a - b).abs().max()) < 0.1


def test_what_is_sampled_is_what_training_reads(prompts) -> None:
    codec = load_model(ModelConfig())[1]
    _, half = halved()
    policy = make_policy(Top(half, trainable=False), codec.pad_id)
    rollout = sample_rollout(policy, codec, prompts[:8], max_tokens=24, batch_size=8, seed=0, where=("x",))
    again = token_logprobs(policy, Sequences.of(half, rollout, codec.pad_id).batch(range(8)))
    assert float((again - rollout.sample_logprobs).abs().max()) < 1e-4


def test_a_saved_policy_is_plain_float32_and_comes_back(tmp_path: Path, prompts) -> None:
    _, half = halved()
    codec = load_model(ModelConfig())[1]
    top = Top(half)
    with torch.no_grad():
        for parameter in top.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    save_policy(top, tmp_path, codec.tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    again = load_policy(half, tmp_path)
    assert not list(again.trained_parameters())
    batch = pad_batch([codec.encode_prompt(prompts[0])], [codec.encode_response(" She sang.")], codec.pad_id)
    torch.testing.assert_close(again.hidden_at(batch, slice(None)), top.hidden_at(batch, slice(None)))


def test_what_cannot_be_halved_says_what_to_use() -> None:
    with pytest.raises(ModelError, match="top:N"):
        Base(load_model(ModelConfig())[0], "all").halve_frozen()
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=2, n_head=2))
    with pytest.raises(ModelError, match="below a cut"):
        Base(gpt2, "lora").halve_frozen()
    lm = load_model(ModelConfig())[0]
    assert isinstance(lm, LlamaForCausalLM)
    lm.config.use_sliding_window, lm.config.sliding_window = True, 4
    with pytest.raises(ModelError, match="Llama-like"):
        Base(lm, "top:1").halve_frozen()
