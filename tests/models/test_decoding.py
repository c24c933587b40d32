"""The fast decoder must say what the model says, whatever its family, slots and refills; sampling must be fair."""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from burnish.config.model import LoraConfig
from burnish.errors import Diverged, ModelError
from burnish.models import engine
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import pad_batch
from burnish.models.device import ON_CPU
from burnish.models.engine import FastDecoder, fused, inner
from burnish.models.generate import decoder, draw, sample_ids, sample_rollout
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, make_policy, token_entropy, token_logprobs
from burnish.models.sequences import Sequences
from burnish.records import Prompt

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}
FAST = {
    "llama": LlamaConfig(**SIZES),
    "llama-bias": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama3-rope": LlamaConfig(
        **SIZES,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 1e4,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        },
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "gemma": GemmaConfig(**SIZES, head_dim=8),
}
PLAIN = {
    "mistral-window": MistralConfig(**SIZES, sliding_window=6),
    "gpt2": GPT2Config(vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, eos_token_id=1),
    "neox": GPTNeoXConfig(**{k: v for k, v in SIZES.items() if k != "num_key_value_heads"}),
}
CODEC: Any = SimpleNamespace(pad_id=0, eos_ids=frozenset([1, 2]))


def model_of(config: Any) -> Any:
    torch.manual_seed(1)
    lm = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in lm.parameters():  # biases and norms too: zeros and ones would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return lm


def some_prompts(n: int) -> list[list[int]]:
    rng = torch.Generator().manual_seed(0)
    return [torch.randint(3, 97, (3 + i % 7,), generator=rng).tolist() for i in range(n)]


def sampled(
    base: Backbone, top: TrainableLayers, n: int = 24, slots: int = 24, steps: int = 20, seed: int = 0
):  # type: ignore[no-untyped-def]
    policy = make_policy(top, 0, 1.3)
    uniforms = uniforms_of(n, steps, seed)
    found = sample_ids(policy, CODEC, some_prompts(n), uniforms, slots)
    return policy, found, found.ids


def uniforms_of(n: int, steps: int, seed: int) -> torch.Tensor:
    return torch.rand(n, steps, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def assert_drawn_at(
    policy: Policy, prompts: list[list[int]], ids: list[list[int]], uniforms: torch.Tensor
) -> None:
    """Every token is the one at its uniform in the distribution of a whole forward pass, within rounding. Tokens of
    two batch sizes are not compared: rounding may move one over an edge, and all that follow with it."""
    batch = pad_batch(prompts, ids, 0)
    mask = batch.response_mask
    cumulative = policy.logits(policy.response_hidden(batch)).double().softmax(-1).cumsum(-1)
    tokens = batch.response_ids[mask][:, None]
    above = cumulative.gather(1, tokens)[:, 0]
    below = torch.where(
        tokens[:, 0] > 0, cumulative.gather(1, (tokens - 1).clamp(min=0))[:, 0], torch.zeros_like(above)
    )
    drawn = uniforms[:, : mask.shape[1]][mask]
    assert bool(((below - 1e-5 <= drawn) & (drawn <= above + 1e-5)).all())


def modes(config: Any) -> list[str]:
    return ["all", "lora"] + ([] if "gpt" in config.model_type else ["top:1", "lora_top:1"])


@pytest.mark.parametrize("name", [*FAST, *PLAIN])
def test_what_is_sampled_is_what_the_model_says(name: str) -> None:
    config = (FAST | PLAIN)[name]
    for mode in modes(config):
        targets = "all-linear"
        base = Backbone(model_of(config), mode, LoraConfig(rank=2, target_modules=targets))
        top = TrainableLayers(base)
        with torch.no_grad():
            for parameter in top.trained_parameters():  # a trained policy, not the base
                parameter.add_(torch.randn_like(parameter) * 0.02)
        policy, found, ids = sampled(base, top)
        assert base.fast is (name in FAST)
        assert len({len(i) for i in ids}) > 3, "responses of several lengths"
        with torch.no_grad():
            batch = pad_batch(some_prompts(24), ids, 0)
            again, entropy = token_logprobs(policy, batch), token_entropy(policy, batch)
        width = again.shape[1]
        mask = batch.response_mask
        assert (again - found.logprobs[:, :width])[mask].abs().max() < 1e-4
        assert (entropy - found.entropy[:, :width])[mask].abs().max() < 1e-4


@pytest.mark.parametrize("name", ["llama", "qwen3"])
@pytest.mark.parametrize("mode", ["all", "top:1"])
def test_slots_that_are_refilled_give_the_same_responses(name: str, mode: str) -> None:
    base = Backbone(model_of(FAST[name]), mode)
    top = TrainableLayers(base)
    uniforms = uniforms_of(40, 20, 0)
    for slots in (1, 5, 16, 40):
        policy, found, ids = sampled(base, top, n=40, slots=slots)
        assert_drawn_at(policy, some_prompts(40), ids, uniforms)
        batch = pad_batch(some_prompts(40), ids, 0)
        again = token_logprobs(policy, batch)
        assert torch.allclose(found.logprobs[:, : again.shape[1]], again, atol=1e-4)
        assert found.ended == [row[-1] in CODEC.eos_ids for row in ids]


def test_steps_as_graphs_give_the_same_responses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU nothing is captured: what a graph needs is that a step may be run twice, in fixed memory."""
    base = Backbone(model_of(FAST["llama"]), "top:1")
    top = TrainableLayers(base)
    addresses: set[int] = set()
    captures = []

    def captured(step: Any, example: torch.Tensor, undo: Any) -> Any:
        captures.append(example.shape)
        first = step(example)
        undo()

        def replay(x: torch.Tensor) -> torch.Tensor:
            machine = step.__closure__[1].cell_contents
            addresses.update(k.data_ptr() for k in machine.keys)
            return step(x)

        torch.testing.assert_close(step(example), first)
        undo()
        return replay

    monkeypatch.setattr(FastDecoder, "graphs", True)
    monkeypatch.setattr(engine, "captured", captured)
    monkeypatch.setattr(engine, "traits", lambda device: replace(ON_CPU, bucket=8))
    policy, found, ids = sampled(base, top, n=24, slots=7)
    assert_drawn_at(policy, some_prompts(24), ids, uniforms_of(24, 20, 0))
    with torch.no_grad():
        again = token_logprobs(policy, pad_batch(some_prompts(24), ids, 0))
    torch.testing.assert_close(found.logprobs[:, : again.shape[1]], again, atol=1e-4, rtol=1e-4)
    assert len(captures) == 3, "of 16, 24 and all 29 tokens of the cache"
    assert set(captures) == {(7,)}
    assert len(addresses) == len(base.lm.base_model.layers), "the cache does not move"


def test_slots_that_stay_free_after_the_last_refill_do_not_outgrow_the_cache() -> None:
    """Slots 14 and 15 end at once and stay free: all others run to the limit, 14 prompts wait for 16 slots, and
    those run to the limit again, 40 steps in a cache of 2 + 20."""
    base = Backbone(model_of(FAST["llama"]), "top:1")
    policy = make_policy(TrainableLayers(base, trainable=False), 0)
    prompts = [[3 + i, 40] for i in range(30)]
    uniforms = torch.full((30, 20), 0.97, dtype=torch.float64)
    uniforms[14:16, 0] = 0.0  # the first token of all, which ends a response
    ids = sample_ids(policy, CODEC, prompts, uniforms, batch_size=16).ids
    assert [len(row) for row in ids] == [20] * 14 + [1, 1] + [20] * 14
    assert_drawn_at(policy, prompts, ids, uniforms)


def test_activations_kept_while_sampling_are_the_base_s_own() -> None:
    base = Backbone(model_of(FAST["llama"]), "top:1")
    _, found, ids = sampled(base, TrainableLayers(base), n=30, slots=8)
    computed = Sequences(base, some_prompts(30), ids, 0).features
    assert computed is not None
    for kept, own in zip(found.features, computed, strict=True):
        assert kept.keys() == {base.cut}
        assert kept[base.cut].shape == own.shape
        assert torch.allclose(kept[base.cut], own, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "mistral-window"])
def test_parts_of_a_base_read_what_the_whole_keeps(name: str) -> None:
    """Several parts of one base: what sampling kept for each is what each computes, in one pass or alone."""
    base = Backbone(model_of({**FAST, **PLAIN}[name]), "top:1")
    assert base.depths_of("top:1") == [2, 3]
    part = base.at(2)
    assert part is base.at(2)
    assert base.at(3) is base
    assert (part.depth, part.cut, base.cuts) == (2, 1, {1, 2})
    assert part.fast == base.fast == (name in FAST)
    own = {p.data_ptr() for p in base.lm.parameters()}
    assert {p.data_ptr() for p in part.lm.parameters()} <= own
    policy = make_policy(TrainableLayers(base, trainable=False), 0)
    codec: Any = SimpleNamespace(**vars(CODEC), encode_prompt=lambda p: p, decode=lambda ids: "")
    rollout = sample_rollout(policy, codec, some_prompts(9), max_tokens=6, batch_size=9, seed=0, where=("x",))
    assert rollout.features.keys() == (base.cuts if base.fast else set())
    asked = []
    row_features = base.row_features
    base.row_features = lambda *a: asked.append(sorted(a[3])) or row_features(*a)  # type: ignore[method-assign,func-returns-value]
    for place in (part, base):
        found = Sequences.of(place, rollout, 0)
        alone = Sequences(place, rollout.prompt_ids, rollout.response_ids, 0)
        for a, b in zip(found.features or [], alone.features or [], strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
        batch = found.batch(range(9))
        hidden = TrainableLayers(place, trainable=False).hidden_at(batch, slice(None))
        states = base.lm.base_model(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=batch.position_ids,
            output_hidden_states=True,
        ).hidden_states
        expected = states[-1] if place is base else base.lm.base_model.norm(states[place.depth])
        real = batch.attention_mask.bool()
        torch.testing.assert_close(hidden[real], expected[real], atol=1e-4, rtol=1e-4)
    assert asked == ([[2]] if base.fast else [[1, 2], [2]])


def test_depths_that_a_base_cannot_be_read_at_are_named() -> None:
    base = Backbone(model_of(FAST["llama"]), "top:1")
    with pytest.raises(ModelError, match=r"depth of 1 .* use one of 2 to 3"):
        base.at(1)
    assert base.depths_of("all") == [1, 2, 3]
    other = base.at(3, "top:2")
    assert (other.depth, other.cut, other.layers) == (3, 1, "top:2")
    assert base.cuts == {1, 2}
    assert base.at(3, "auto") is base
    gpt2 = Backbone(model_of(PLAIN["gpt2"]), "all")
    assert gpt2.depths_of("all") == [gpt2.depth]


@pytest.mark.parametrize("name", [*FAST, "mistral-window"])
def test_responses_to_the_same_prompt_share_its_activations(name: str) -> None:
    base = Backbone(model_of({**FAST, **PLAIN}[name]), "top:1")
    assert base.fast == (name in FAST)
    prompts = [[3, 4, 5, 6], [9, 8], [3, 4, 5, 6], [9, 8], [9, 8], [40]]
    responses = [[7, 11, 12], [13], [], [14, 15, 16, 17, 1], [18, 19], [20, 21]]
    together = Sequences(base, prompts, responses, 0)
    assert together.features is not None
    for prompt, response, features in zip(prompts, responses, together.features, strict=True):
        alone = base._own_features(pad_batch([prompt], [response], 0))  # by the model itself
        torch.testing.assert_close(features, alone[0], atol=2e-5, rtol=1e-4)


def test_a_prompt_given_many_times_is_prefilled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    base = Backbone(model_of(FAST["llama"]), "all")
    machine = decoder(TrainableLayers(base, trainable=False), 6, 16, 0)
    rows = []
    embed = machine.embed  # type: ignore[union-attr]
    monkeypatch.setattr(machine, "embed", lambda ids: rows.append(len(ids)) or embed(ids))
    prompt, other = [5, 6, 7], [8, 9]
    with torch.no_grad():
        hidden = machine.admit(range(6), [prompt, prompt, other, prompt, other, prompt])
    assert rows == [2]
    assert torch.equal(hidden[0], hidden[5])
    assert not torch.equal(hidden[0], hidden[2])


def test_projections_lie_side_by_side_and_follow_training() -> None:
    base = Backbone(model_of(FAST["llama"]), "top:1")
    top = TrainableLayers(base)
    attention = top.body.layers[0].self_attn
    parts = (attention.q_proj, attention.k_proj, attention.v_proj)
    weight, _ = fused(*parts)
    assert weight.data_ptr() == attention.q_proj.weight.data_ptr(), "a view, not a copy"
    optimizer = torch.optim.AdamW(top.trained_parameters(), lr=0.1)
    sum(p.sum() for p in top.trained_parameters()).backward()
    optimizer.step()
    assert torch.equal(weight, torch.cat([p.weight for p in parts]))
    assert torch.equal(fused(*parts)[0], weight)


class FixedHead(torch.nn.Module):
    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.fixed = logits

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.fixed.expand(len(hidden), -1).clone()


def fixed_policy(logits: list[float], temperature: float = 1.0) -> Policy:
    top: Any = SimpleNamespace()
    return Policy(top, FixedHead(torch.tensor(logits)), 0, temperature)


def test_draws_follow_the_distribution_at_its_temperature() -> None:
    logits = [9.0, 1.0, 0.0, -1.0, 2.0]
    n = 40_000
    uniforms = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens, logprobs, entropy = draw(fixed_policy(logits, 2.0), torch.zeros(n, 1), uniforms)
    expected = torch.tensor(logits)[1:].div(2.0).softmax(0)
    counts = torch.bincount(tokens, minlength=5).double()
    assert counts[0] == 0, "padding is never drawn"
    # Chi-square with 3 degrees of freedom: 16.3 is its 99.9th percentile.
    assert float(((counts[1:] - n * expected) ** 2 / (n * expected)).sum()) < 16.3
    assert torch.allclose(logprobs, expected.log()[tokens - 1], atol=1e-5)
    assert torch.allclose(entropy, -(expected * expected.log()).sum(), atol=1e-5)


def test_log_probabilities_over_a_large_vocabulary_have_no_bias() -> None:
    """Rounding must not add up over the tokens of a response: KL would not start at 0."""
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(64, 49_152, generator=rng) * 3
    policy = fixed_policy([0.0])
    policy.head.fixed = logits
    tokens, logprobs, entropy = draw(policy, torch.zeros(64, 1), torch.rand(64, generator=rng))
    exact = logits.double()
    exact[:, 0] = -torch.inf
    exact = exact.log_softmax(-1)
    gaps = logprobs - exact.gather(1, tokens[:, None])[:, 0]
    assert abs(float(gaps.mean())) < 5e-7
    assert float(gaps.abs().max()) < 5e-6
    expected = -(exact.exp() * exact.nan_to_num(neginf=0.0)).sum(-1)
    assert torch.allclose(entropy.double(), expected, atol=1e-4)


def test_the_ends_of_the_uniform_draw_possible_tokens() -> None:
    policy = fixed_policy([0.0, -1e9, 3.0, 1.0, -1e9, -1e9])
    uniforms = torch.tensor([0.0, 1.0 - 2**-53], dtype=torch.float64)
    assert draw(policy, torch.zeros(2, 1), uniforms)[0].tolist() == [2, 3]


@pytest.mark.parametrize("engine", [True, False])
def test_a_diverged_policy_is_named(
    tiny, codec: Codec, prompts: list[Prompt], engine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that are drawn of no numbers are tokens, and not fed for long."""
    nothing = fixed_policy([0.0, float("nan"), 1.0])
    tokens, logprobs, _ = draw(nothing, torch.zeros(2, 1), torch.rand(2, dtype=torch.float64))
    assert int(tokens.max()) <= 2
    assert not torch.isfinite(logprobs).any()
    if not engine:
        monkeypatch.setattr(Backbone, "fast", False)
    base = Backbone(tiny[0])
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    with torch.no_grad():
        inner(policy.top.body).norm.weight.fill_(float("inf"))
    with pytest.raises(Diverged, match="learning rate"):
        sample_rollout(policy, codec, prompts[:4], max_tokens=8, batch_size=4, seed=0, where=("x",))


def test_a_step_waits_for_its_device_once(
    tiny, codec: Codec, prompts: list[Prompt], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Off the engine, what is read from tensors is one list a token, however many responses end."""
    monkeypatch.setattr(Backbone, "fast", False)
    policy = make_policy(TrainableLayers(Backbone(tiny[0]), trainable=False), codec.pad_id)
    calls: Counter[str] = Counter()
    for name in ("tolist", "item", "nonzero", "__bool__", "__int__", "__float__"):
        own = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, name: str = name, own: Any = own) -> Any:
            # Inside the model and its mask nothing is of this module's making.
            if "burnish/models/generate.py" in inspect.stack()[1].filename:
                calls[name] += 1
            return own(tensor)

        monkeypatch.setattr(torch.Tensor, name, counted)
    encoded = [codec.encode_prompt(p) for p in prompts[:6]]
    found = sample_ids(policy, codec, encoded, torch.rand(6, 20, dtype=torch.float64), 6)
    steps = max(map(len, found.ids))
    assert calls == {"tolist": steps}
