"""Frozen weights in bfloat16 and activations computed twice: smaller, nearly the same model, plain artefacts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)
from transformers.pytorch_utils import Conv1D

from burnish.config.model import ModelConfig
from burnish.config.ppo import PPOConfig
from burnish.errors import ModelError
from burnish.models.artefacts import (
    load_policy,
    load_reward_model,
    save_plain_policy,
    save_policy,
    save_reward_model,
)
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import Batch, pad_batch
from burnish.models.generate import sample_rollout
from burnish.models.heads import ScalarHead, new_reward_head
from burnish.models.load import WIDE, Codec, find_dtype, load_model
from burnish.models.logprobs import make_policy, token_logprobs
from burnish.models.sequences import Sequences
from burnish.policy import ppo as ppo_module
from burnish.policy.kl_control import AdaptiveKLController
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import self_check
from burnish.records import Prompt, Rollout, Scores

MODES = ["all", "lora", "top:2", "lora_top:2"]


def embedded() -> PreTrainedModel:
    return load_model(ModelConfig())[0]


def halved(lm: PreTrainedModel, layers: str, *, engine: bool = True) -> Backbone:
    base = Backbone(lm, layers)
    if not engine:
        base.__dict__["_fast"] = False
    base.hold(torch.bfloat16)
    return base


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=2048, n_embd=16, n_layer=2, n_head=2, n_positions=128))


def some_batch(codec: Codec, prompts: list[Prompt]) -> Batch:
    texts = [" and she sang a song.", " They ran home, and it was good."]
    return pad_batch(
        [codec.encode_prompt(p) for p in prompts[:2]], [codec.encode_response(t) for t in texts], codec.pad_id
    )


@pytest.mark.parametrize("layers", ["top:2", "lora_top:2"])
def test_only_linear_layers_below_a_cut_are_halved(layers: str) -> None:
    half = halved(embedded(), layers)
    assert half.fast, "the engine runs them"
    dtypes = {name: p.dtype for name, p in half.lm.named_parameters()}
    below = [n for n in dtypes if any(f"layers.{i}." in n for i in range(half.cut)) and "norm" not in n]
    assert below
    assert all(dtypes.pop(n) == torch.bfloat16 for n in below)
    assert set(dtypes.values()) == {torch.float32}


@pytest.mark.parametrize("layers", ["all", "lora"])
@pytest.mark.parametrize("make", [embedded, gpt2])
def test_without_a_cut_every_linear_layer_is_halved_and_what_is_trained_is_not(layers: str, make) -> None:
    base = halved(make(), layers)
    linear = [m for m in base.lm.base_model.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    assert {p.dtype for m in linear for p in m.parameters()} == {torch.bfloat16}
    assert base.lm.get_input_embeddings().weight.dtype == torch.float32
    assert {p.dtype for p in TrainableLayers(base).trained_parameters()} == {torch.float32}


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("layers", MODES)
def test_log_probabilities_stay_near_those_of_float32(codec, prompts, layers: str, engine: bool) -> None:
    batch = some_batch(codec, prompts)
    bases = (Backbone(embedded(), layers), halved(embedded(), layers, engine=engine))
    a, b = (
        token_logprobs(make_policy(TrainableLayers(base, trainable=False), codec.pad_id), batch)
        for base in bases
    )
    assert 0 < float((a - b).abs().max()) < 0.1


@pytest.mark.parametrize("engine", [True, False])
@pytest.mark.parametrize("layers", MODES)
def test_training_starts_at_the_reference(codec, prompts, layers: str, engine: bool) -> None:
    base = halved(embedded(), layers, engine=engine)
    policy, reference = (make_policy(TrainableLayers(base, trainable=t), codec.pad_id) for t in (True, False))
    found = self_check(policy, reference, codec, prompts[:8], max_tokens=24, seed=0)
    assert found["kl"] == 0
    assert found["sampled_gap"] < 0.02


def test_ratios_start_at_one_where_decoding_rounds_otherwise_than_training(
    codec, prompts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How far they differ is the processor's business: here decoding is 0.01 nats a token off."""

    def off(*args: Any, **kwargs: Any) -> Rollout:
        rollout = sample_rollout(*args, **kwargs)
        rollout.sample_logprobs = (rollout.sample_logprobs + 0.01) * rollout.response_mask
        return rollout

    monkeypatch.setattr(ppo_module, "sample_rollout", off)
    base = halved(embedded(), "all")
    policy, reference = (make_policy(TrainableLayers(base, trainable=t), codec.pad_id) for t in (True, False))

    def score(rollout: Rollout) -> Scores:
        scores = torch.arange(len(rollout), dtype=torch.float32)
        return Scores(scores, scores[:, None], torch.zeros(len(rollout)))

    ppo = PPO(
        policy=policy,
        reference=reference,
        value=ScalarHead(TrainableLayers(base), torch.nn.Linear(base.hidden_size, 1)).eval(),
        codec=codec,
        score=score,
        prompts=prompts[:8],
        config=PPOConfig(updates=1, batch_size=8, epochs=1, micro_batch=8),
        controller=AdaptiveKLController(coef=0.1, target=1.0, horizon=60),
        max_tokens=16,
        learning_rate=1e-3,
        value_learning_rate=1e-3,
        seed=0,
    )
    (stats,) = ppo.updates()
    assert 0.005 < stats["sampling_gap"] < 0.2
    assert abs(stats["approx_kl"]) < 1e-6
    assert abs(stats["kl"]) < 1e-5


def test_what_is_sampled_is_what_training_reads(codec, prompts) -> None:
    half = halved(embedded(), "top:2")
    policy = make_policy(TrainableLayers(half, trainable=False), codec.pad_id)
    rollout = sample_rollout(policy, codec, prompts[:8], max_tokens=24, batch_size=8, seed=0, where=("x",))
    again = token_logprobs(policy, Sequences.of(half, rollout, codec.pad_id).batch(range(8)))
    gaps = (again - rollout.sample_logprobs).abs()[rollout.response_mask]
    assert float(gaps.mean()) < 0.01
    assert float(gaps.max()) < 0.1


def test_what_adapters_add_survives_being_merged_into_rounded_weights(tmp_path: Path, codec) -> None:
    half = halved(embedded(), "lora")
    top = TrainableLayers(half)
    with torch.no_grad():
        for name, parameter in top.named_parameters():
            if "lora_B" in name:
                parameter.fill_(1e-5)
    save_plain_policy(top, tmp_path, codec.tokenizer)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    name = "model.layers.0.mlp.down_proj.weight"
    added = merged[name] - half.lm.state_dict()[name].float()
    assert 0 < float(added.abs().max()) < 1e-3
    assert float((added != 0).float().mean()) > 0.9


@pytest.mark.parametrize("layers", ["all", "top:2"])
def test_a_saved_policy_is_plain_float32_and_comes_back(tmp_path: Path, codec, prompts, layers: str) -> None:
    half = halved(embedded(), layers)
    top = TrainableLayers(half)
    with torch.no_grad():
        for parameter in top.trained_parameters():
            parameter.add_(torch.randn_like(parameter) * 0.01)
    save_policy(top, tmp_path, codec.tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert {p.dtype for p in plain.parameters()} == {torch.float32}
    again = load_policy(half, tmp_path)
    assert not list(again.trained_parameters())
    batch = pad_batch([codec.encode_prompt(prompts[0])], [codec.encode_response(" She sang.")], codec.pad_id)
    torch.testing.assert_close(
        again.hidden_at(batch, slice(None)), top.hidden_at(batch, slice(None)), atol=1e-5, rtol=1e-5
    )


def test_auto_is_bfloat16_on_a_device_that_gains_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *a, there=there, **k: there)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda there=there: there)
        expected = torch.bfloat16 if there else torch.float32
        assert find_dtype("auto", gpu, 64) == find_dtype("auto", cpu, WIDE) == expected
        assert find_dtype("auto", cpu, 64) == torch.float32, "a small model on a processor"
        assert find_dtype("float32", gpu, WIDE) == torch.float32
        assert find_dtype("bfloat16", cpu, 64) == torch.bfloat16


@pytest.mark.parametrize("engine", [True, False, None])
@pytest.mark.parametrize("layers", MODES)
def test_activations_computed_twice_give_the_same_gradients_of_fewer_kept(
    codec, prompts, layers: str, engine: bool | None
) -> None:
    """By the engine, by Llama's own layers, and (None) by GPT-2's, which are given their cache in another way."""
    if engine is None and ":" in layers:
        layers = "all"
    found = []
    for checkpointing in (False, True):
        base = Backbone(gpt2() if engine is None else embedded(), layers, checkpointing=checkpointing)
        if not engine:
            base.__dict__["_fast"] = False
        torch.manual_seed(0)  # adapters
        model = new_reward_head(base, 0, "m", layers=layers, dropout=0.0)
        kept = 0

        def pack(x: torch.Tensor) -> torch.Tensor:
            nonlocal kept
            kept += x.numel()
            return x

        model.train()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            loss = model.score(some_batch(codec, prompts)).sum()
        loss.backward()
        found.append((kept, [p.grad for p in model.trained()]))
    (all_kept, plain), (less, again) = found
    assert less < 0.7 * all_kept
    torch.testing.assert_close(plain, again)


def test_checkpointing_leaves_decoding_its_cache(codec, prompts) -> None:
    rollouts = []
    for checkpointing in (False, True):
        base = Backbone(gpt2(), "all", checkpointing=checkpointing)
        policy = make_policy(TrainableLayers(base), codec.pad_id)
        rollouts.append(
            sample_rollout(policy, codec, prompts[:4], max_tokens=8, batch_size=4, seed=0, where=("x",))
        )
    assert rollouts[0].response_ids == rollouts[1].response_ids


@pytest.mark.parametrize("layers", MODES)
def test_a_model_in_bfloat16_files_is_loaded_so_and_starts_at_its_reference(
    tmp_path: Path, codec, prompts, layers: str
) -> None:
    """Its files hold half the bytes, and it is never in float32 whole."""
    lm, codec = load_model(ModelConfig())
    lm.to(torch.bfloat16).save_pretrained(tmp_path)
    codec.tokenizer.save_pretrained(tmp_path)
    config = ModelConfig(path=str(tmp_path), dtype="bfloat16")
    loaded, _ = load_model(config, as_held=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_model(config)[0].parameters()} == {torch.float32}
    base = Backbone(loaded, layers)
    base.check(codec.pad_id)
    base.hold(torch.bfloat16)
    linear = [m for m in loaded.base_model.modules() if isinstance(m, torch.nn.Linear)]
    assert {m.weight.dtype for m in linear} == {torch.bfloat16}
    others = {p.dtype for n, p in loaded.named_parameters() if "norm" in n or "embed" in n}
    assert others == {torch.float32}
    policy, reference = (make_policy(TrainableLayers(base, trainable=t), codec.pad_id) for t in (True, False))
    found = self_check(policy, reference, codec, prompts[:8], max_tokens=16, seed=0)
    assert found["kl"] == 0
    again = Backbone(load_model(config)[0], layers)
    again.hold(torch.bfloat16)
    batch = some_batch(codec, prompts)
    ours, theirs = (
        token_logprobs(make_policy(TrainableLayers(b, trainable=False), codec.pad_id), batch)
        for b in (base, again)
    )
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    base.hold(torch.float32)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_a_model_that_post_processes_its_logits_is_refused_in_bfloat16_too(
    codec, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = embedded().to(torch.bfloat16)
    monkeypatch.setattr(type(lm), "forward", scaled_forward(type(lm).forward))
    with pytest.raises(ModelError, match="post-processes its logits"):
        Backbone(lm, "top:2").check(codec.pad_id)


def scaled_forward(own: Any) -> Any:
    def forward(*args: Any, **kwargs: Any) -> Any:
        out = own(*args, **kwargs)
        out.logits = out.logits / 3
        return out

    return forward


def bfloat16_files(folder: Path, lm: PreTrainedModel, codec: Codec) -> PreTrainedModel:
    """A model as it is loaded from bfloat16 files."""
    lm.to(torch.bfloat16).save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)
    return load_model(ModelConfig(path=str(folder), dtype="bfloat16"), as_held=True)[0]


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_reward_model_of_a_model_in_bfloat16_is_saved_in_float32(
    tmp_path: Path, codec, prompts, pooling
) -> None:
    base = Backbone(bfloat16_files(tmp_path / "lm", embedded(), codec), "top:2")
    base.hold(torch.bfloat16)
    torch.manual_seed(0)
    model = new_reward_head(base, 0, "m", layers="top:2", dropout=0.0)
    model.pooling = pooling
    with torch.no_grad():
        for parameter in model.trained():
            parameter.add_(torch.randn_like(parameter) * 1e-4)
    save_reward_model(model, tmp_path / "reward", codec.tokenizer)
    again = load_reward_model(base, tmp_path / "reward")
    for name, tensor in model.top.trained_state().items():
        assert torch.equal(dict(again.top.named_parameters())[name].float(), tensor), name
    batch = some_batch(codec, prompts)
    torch.testing.assert_close(again.score(batch), model.score(batch), atol=1e-5, rtol=1e-5)


def test_a_kind_of_layer_that_the_engine_does_not_know_is_found_in_bfloat16_files_too() -> None:
    """Every fourth layer of SmolLM3 has no rotary embedding."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2, "num_key_value_heads": 1}
    more = {"vocab_size": 199, "num_hidden_layers": 6, "pad_token_id": 0, "eos_token_id": 1}
    config = SmolLM3Config(**sizes, **more, initializer_range=0.3)  # so that attention matters
    lm = SmolLM3ForCausalLM(config)
    assert not Backbone(lm, "top:2").fast
    half = Backbone(lm.to(torch.bfloat16), "top:2")
    assert len(half._sketch.lm.base_model.layers) == 3
    assert not half.fast


def test_an_output_layer_that_is_trained_is_in_float32_however_it_is_held() -> None:
    lm = embedded()
    lm.lm_head = torch.nn.Linear(lm.config.hidden_size, lm.config.vocab_size, bias=False)
    lm.config.tie_word_embeddings = False
    base = Backbone(lm, "all")
    lm.lm_head.to(torch.bfloat16)
    assert make_policy(TrainableLayers(base), 0).head.weight.dtype == torch.float32


def test_a_model_in_double_precision_is_sampled_with_a_cut(codec, prompts) -> None:
    base = Backbone(embedded().double(), "top:2")
    policy = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    rollout = sample_rollout(policy, codec, prompts[:2], max_tokens=4, batch_size=2, seed=0, where=("x",))
    again = token_logprobs(policy, Sequences.of(base, rollout, codec.pad_id).batch(range(2)))
    assert float((again - rollout.sample_logprobs).abs().max()) < 1e-5
