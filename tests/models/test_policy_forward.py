"""Padding, batch composition, cuts and exports must not change what a model says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
)

from burnish.config.model import LoraConfig, ModelConfig
from burnish.errors import ModelError
from burnish.models.artefacts import (
    load_policy,
    load_reward_model,
    save_plain_policy,
    save_plain_reward_model,
    save_policy,
    save_reward_model,
)
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import pad_batch
from burnish.models.generate import sample_rollout
from burnish.models.heads import new_reward_head, raw_scores
from burnish.models.load import Codec, load_model, make_codec
from burnish.models.logprobs import make_policy, response_kl, token_entropy, token_logprobs
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.policy.ppo_start import self_check
from burnish.records import Message, Preference, Prompt

MODES = ["all", "top:2", "lora", "lora_top:2"]


def rollout_of(base: Backbone, codec: Codec, prompts: list[Prompt], temperature: float = 1.0):
    policy = make_policy(TrainableLayers(base, trainable=False), codec.pad_id, temperature)
    rollout = sample_rollout(
        policy, codec, prompts, max_tokens=24, batch_size=len(prompts), seed=3, where=("t",)
    )
    sequences = Sequences.of(base, rollout, codec.pad_id)
    return policy, rollout, sequences


def test_pad_batch_goes_by_length_even_when_text_holds_the_pad_id() -> None:
    batch = pad_batch([[5, 0], [7]], [[0, 3], [4]], pad_id=0)
    assert batch.input_ids.tolist() == [[5, 0, 0, 3], [0, 7, 4, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [0, 1, 1, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3], [0, 0, 1, 1]]
    assert batch.response_mask.tolist() == [[True, True], [True, False]]
    assert batch.last_index.tolist() == [3, 2]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_the_recomputed_ones(tiny, codec, prompts, mode, temperature) -> None:
    base = Backbone(tiny[0], mode)
    policy, rollout, sequences = rollout_of(base, codec, prompts[:12], temperature)
    with torch.no_grad():
        again = token_logprobs(policy, sequences.batch(range(12)))
        entropy = token_entropy(policy, sequences.batch(range(12)))
    assert torch.allclose(again, rollout.sample_logprobs, atol=1e-4)
    assert (again[~rollout.response_mask] == 0).all()
    assert (entropy[rollout.response_mask] > -1e-3).all()
    assert entropy[rollout.response_mask].mean() > 0.1


@pytest.mark.parametrize("mode", MODES)
def test_logprobs_do_not_depend_on_batch_composition(tiny, codec, prompts, mode) -> None:
    base = Backbone(tiny[0], mode)
    policy, rollout, sequences = rollout_of(base, codec, prompts[:8])
    with torch.no_grad():
        whole = token_logprobs(policy, sequences.batch(range(8)))
        for row in range(8):
            alone = token_logprobs(policy, sequences.batch([row]))[0]
            assert torch.allclose(whole[row, : len(alone)], alone, atol=1e-4)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("mode", MODES)
def test_kl_before_training_is_zero_whatever_the_tokenizers_padding_side(
    tiny, codec, prompts, mode, side, monkeypatch
) -> None:
    monkeypatch.setattr(codec.tokenizer, "padding_side", side)
    base = Backbone(tiny[0], mode)
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    reference = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    figures = self_check(policy, reference, codec, prompts[:16], max_tokens=16, seed=0)
    assert figures["kl"] < 1e-4


def test_whole_model_agrees_with_transformers_own_forward(tiny, base, codec, prompts) -> None:
    ids = codec.encode_prompt(prompts[0]) + codec.encode_response(" A short story.")
    logits = tiny[0](torch.tensor([ids])).logits[0]
    logits[:, codec.pad_id] = -1e9
    expected = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids)[1:, None])[:, 0]
    n = len(codec.encode_prompt(prompts[0]))
    policy = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    ours = token_logprobs(policy, pad_batch([ids[:n]], [ids[n:]], codec.pad_id))[0]
    assert torch.allclose(ours, expected[n - 1 :], atol=1e-5)


@pytest.mark.parametrize("mode", ["all", "top:1", "top:2"])
def test_a_model_taken_apart_is_the_whole_model(tiny, codec, mode) -> None:
    Backbone(tiny[0], mode).check(codec.pad_id)


def test_a_model_that_post_processes_its_logits_is_refused() -> None:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 16}
    config = Gemma2Config(
        **sizes, vocab_size=50, num_hidden_layers=2, head_dim=8, final_logit_softcapping=0.1
    )
    with pytest.raises(ModelError, match="post-processes"):
        Backbone(AutoModelForCausalLM.from_config(config)).check(0)


def test_cut_deeper_than_the_model_names_the_alternative(tiny) -> None:
    with pytest.raises(ModelError, match="use 'all'"):
        Backbone(tiny[0], "top:40")


@pytest.mark.parametrize("mode", MODES)
def test_training_moves_the_policy_and_neither_base_nor_reference(tiny, codec, prompts, mode) -> None:
    base = Backbone(tiny[0], mode, LoraConfig(rank=4))
    before = {n: p.clone() for n, p in base.lm.named_parameters()}
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    reference, _, sequences = rollout_of(base, codec, prompts[:8])
    optimizer = torch.optim.SGD(policy.top.trained_parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (-token_logprobs(policy, sequences.batch(range(8))).sum() / 50).backward()
        optimizer.step()
    assert response_kl(policy, reference, sequences.batch(range(8))).mean() > 1e-3
    assert all(torch.equal(before[n], p) for n, p in base.lm.named_parameters())


@pytest.mark.parametrize("mode", MODES)
def test_an_exported_policy_is_a_plain_model_with_the_same_logprobs(
    tiny, codec, prompts, mode, tmp_path: Path
) -> None:
    base = Backbone(tiny[0], mode)
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    with torch.no_grad():
        for p in policy.top.trained_parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    _, _, sequences = rollout_of(base, codec, prompts[:4])
    save_plain_policy(policy.top, tmp_path, codec.tokenizer)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert lm.config.pad_token_id == codec.pad_id
    assert codec.pad_id in lm.generation_config.suppress_tokens
    again, codec_again = load_model(ModelConfig(), path=tmp_path)
    theirs = make_policy(TrainableLayers(Backbone(again), trainable=False), codec_again.pad_id)
    batch = Sequences(Backbone(again), sequences.prompt_ids, sequences.response_ids, codec.pad_id).batch(
        range(4)
    )
    with torch.no_grad():
        ours = token_logprobs(policy, sequences.batch(range(4)))
        assert torch.allclose(ours, token_logprobs(theirs, batch), atol=1e-4)


@pytest.mark.parametrize("mode", MODES)
def test_an_exported_reward_model_gives_its_raw_scores_in_mixed_batches(
    tiny, codec, prompts, mode, tmp_path: Path
) -> None:
    base = Backbone(tiny[0], mode)
    model = new_reward_head(base, 0, "member-0", layers=mode, dropout=0.1).eval()
    with torch.no_grad():
        for p in model.top.trained_parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(2)) * 0.02)
    _, _, sequences = rollout_of(base, codec, prompts[:6])
    raw = raw_scores(model, sequences)
    save_plain_reward_model(model, tmp_path, codec.tokenizer)
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    rows = [[*p, *r] for p, r in zip(sequences.prompt_ids, sequences.response_ids, strict=True)]
    batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    assert plain.config.num_labels == 1
    with torch.no_grad():
        assert torch.allclose(plain(**batch).logits[:, 0], raw, atol=1e-5)
    save_reward_model(model, tmp_path / "kept", codec.tokenizer)
    for folder in (tmp_path / "kept", *([] if mode.startswith("lora") else [tmp_path])):
        again = load_reward_model(base, folder)
        assert again.trained() == []
        assert torch.allclose(raw_scores(again, sequences), raw, atol=1e-5)


@pytest.mark.parametrize(("make", "mode"), [("llama", "lora"), ("llama", "lora_top:2"), ("gpt2", "lora")])
def test_adapters_are_saved_alone_and_share_the_base_when_they_come_back(
    tiny, codec, prompts, mode: str, make: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": len(codec.tokenizer), "n_positions": 128}
    lm = tiny[0] if make == "llama" else AutoModelForCausalLM.from_config(GPT2Config(**sizes))
    base = Backbone(lm, mode, LoraConfig(rank=4))
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    member = new_reward_head(base, 0, "m", layers=mode, dropout=0.0).eval()
    with torch.no_grad():
        for p in (*policy.top.trained_parameters(), *member.top.trained_parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    _, _, sequences = rollout_of(base, codec, prompts[:4])
    batch = sequences.batch(range(4))
    with torch.no_grad():
        wanted, raw = token_logprobs(policy, batch), raw_scores(member, sequences)
    save_policy(policy.top, tmp_path / "policy", codec.tokenizer)
    save_reward_model(member, tmp_path / "member", codec.tokenizer)
    base.lm.save_pretrained(tmp_path / "base")
    size = sum(f.stat().st_size for f in (tmp_path / "policy").glob("*.safetensors"))
    assert size < 0.5 * (tmp_path / "base" / "model.safetensors").stat().st_size

    again = make_policy(load_policy(base, tmp_path / "policy"), codec.pad_id)
    scored = load_reward_model(base, tmp_path / "member")
    shared = {p.data_ptr() for p in base.lm.parameters()}
    own = [p for p in again.top.parameters() if p.data_ptr() not in shared]
    assert sum(p.numel() for p in own) == sum(p.numel() for p in policy.top.trained_parameters())
    with torch.no_grad():
        assert torch.allclose(token_logprobs(again, batch), wanted, atol=1e-5)
        assert torch.allclose(raw_scores(scored, sequences), raw, atol=1e-5)

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    with_peft = PeftModel.from_pretrained(plain, tmp_path / "policy").eval()
    scorer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    scorer = PeftModel.from_pretrained(scorer, tmp_path / "member").eval()
    rows = zip(sequences.prompt_ids, sequences.response_ids, strict=True)
    for row, (prompt, response) in enumerate(rows):
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            logits = with_peft(ids).logits[0, len(prompt) - 1 : -1]
            score = scorer(ids).logits[0, 0]
        logits[:, codec.pad_id] = -1e9
        theirs = logits.log_softmax(-1).gather(1, torch.tensor(response)[:, None])[:, 0]
        assert torch.allclose(theirs, wanted[row, : len(response)], atol=1e-4)
        assert torch.allclose(score, raw[row], atol=1e-4)


def test_adapters_of_another_rank_or_kind_are_refused(tiny, codec, tmp_path: Path) -> None:
    save_policy(TrainableLayers(Backbone(tiny[0], "lora_top:1")), tmp_path, codec.tokenizer)
    for layers in ("lora_top:2", "top:1"):
        with pytest.raises(ModelError, match=r"was model\.layers changed"):
            load_policy(Backbone(tiny[0], layers), tmp_path)


def test_adapters_are_drawn_from_their_seed_alone(tiny) -> None:
    base = Backbone(tiny[0], "lora")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, third = (dict(TrainableLayers(base, seed=s).named_parameters()) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    drawn = [n for n in first if "lora_A" in n]
    assert all(torch.equal(first[n], second[n]) for n in drawn)
    assert not any(torch.equal(first[n], third[n]) for n in drawn)


@pytest.mark.parametrize("mode", ["all", "top:2"])
def test_a_saved_reward_model_trains_what_a_new_one_would(tiny, codec, mode, tmp_path: Path) -> None:
    """As the start of a value function: its own copies, nothing that it shares with the base."""
    base = Backbone(tiny[0], mode)
    new = new_reward_head(base, 0, "member-0", layers=mode, dropout=0.0)
    save_reward_model(new, tmp_path, codec.tokenizer)
    again = load_reward_model(base, tmp_path, trainable=True)
    assert {n for n, p in again.named_parameters() if p.requires_grad} == {
        n for n, p in new.named_parameters() if p.requires_grad
    }
    assert again.head.weight.requires_grad
    assert not any(p.requires_grad for p in base.lm.parameters())


def test_a_tokenizer_whose_pad_is_its_end_gets_a_pad_of_its_own(tmp_path: Path) -> None:
    lm, codec = load_model(ModelConfig())
    rows = lm.get_input_embeddings().num_embeddings
    codec.tokenizer.pad_token = codec.tokenizer.eos_token
    again = make_codec(codec.tokenizer, lm, None)
    assert again.pad_id not in again.eos_ids
    assert lm.config.pad_token_id == again.pad_id
    assert lm.get_input_embeddings().num_embeddings == rows + 1


def test_pad_is_never_sampled(tiny, base, codec, prompts) -> None:
    policy, rollout, _ = rollout_of(base, codec, prompts[:16])
    assert all(codec.pad_id not in ids for ids in rollout.response_ids)
    hidden = torch.randn(5, base.hidden_size)
    assert (policy.logits(hidden).softmax(-1)[:, codec.pad_id] == 0).all()


def test_text_round_trips(codec) -> None:
    for text in [" Ada was happy.", ' "What a top," said Zoe.  Two  spaces, é and 日本!']:
        assert codec.decode(codec.encode_response(text)) == text


def test_unknown_model_says_what_to_give() -> None:
    with pytest.raises(ModelError, match="nowhere"):
        load_model(ModelConfig(path="nowhere/at-all"))


def test_the_bodys_own_dropout_stays_off_and_draws_nothing() -> None:
    """A body that comes with dropout, in training: the same scores every time, and no draw from the global
    generator, which threads would share."""
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 32}
    lm = AutoModelForCausalLM.from_config(
        GPT2Config(**sizes, resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5)
    )
    model = new_reward_head(Backbone(lm, "all"), 0, "member-0", layers="all", dropout=0.0)
    model.train()
    batch = pad_batch([[3, 4, 5]], [[6, 7, 8]], 0)
    before = torch.get_rng_state()
    first, second = model.score(batch), model.score(batch)
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_all_layers_means_an_untied_output_layer_too(prompts, codec, tmp_path: Path) -> None:
    """It is trained, saved, and comes back, as a plain model and as a policy over the shared base."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    rows = len(codec.tokenizer)
    lm = AutoModelForCausalLM.from_config(LlamaConfig(**sizes, vocab_size=rows, tie_word_embeddings=False))
    base = Backbone(lm, "all")
    start = lm.lm_head.weight.clone()
    policy = make_policy(TrainableLayers(base), codec.pad_id)
    reference, _, sequences = rollout_of(base, codec, prompts[:4])
    batch = sequences.batch(range(4))
    assert response_kl(policy, reference, batch).abs().max() < 1e-5
    optimizer = torch.optim.SGD(policy.top.trained_parameters(), lr=0.5)
    (-token_logprobs(policy, batch).sum() / 50).backward()
    optimizer.step()
    assert (policy.head.weight - start).abs().max() > 1e-4
    assert torch.equal(lm.lm_head.weight, start), "the base stays"
    state = policy.top.trained_state()
    assert "output.weight" in state
    again = make_policy(TrainableLayers(base), codec.pad_id)
    again.top.load_trained_state(state)
    save_policy(policy.top, tmp_path, codec.tokenizer)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(plain.lm_head.weight, policy.head.weight)
    loaded = make_policy(load_policy(base, tmp_path), codec.pad_id)
    with torch.no_grad():
        ours = token_logprobs(policy, batch)
        for other in (again, loaded):
            assert torch.allclose(ours, token_logprobs(other, batch), atol=1e-5)
    assert loaded.top.trained_parameters() == []


def test_dialogues_go_through_the_template_unless_it_is_switched_off() -> None:
    lm, codec = load_model(ModelConfig())
    codec.tokenizer.chat_template = (
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    )
    chat = Prompt.from_messages(
        [Message("user", "Hello"), Message("assistant", "Yes"), Message("user", "Why")]
    )

    def text_of(use: bool | None, prompt: Prompt) -> str:
        return codec.decode(make_codec(codec.tokenizer, lm, use).encode_prompt(prompt))

    templated, plain = "<user>Hello<assistant>Yes<user>Why<assistant>", "Hello there"
    assert text_of(None, chat) == text_of(True, chat) == templated
    assert text_of(False, chat) == "User: Hello\n\nAssistant: Yes\n\nUser: Why\n\nAssistant:"
    assert text_of(None, Prompt(plain)) == text_of(False, Prompt(plain)) == plain
    assert text_of(True, Prompt(plain)) == f"<user>{plain}<assistant>"


@pytest.mark.parametrize(
    ("depth", "layers", "cut"),
    [(1, "all", 0), (2, "all", 0), (3, "top:2", 1), (5, "top:2", 3), (30, "top:6", 24)],
)
def test_auto_trains_the_top_fifth_of_the_layers_and_two_at_least(depth: int, layers: str, cut: int) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "vocab_size": 50}
    base = Backbone(AutoModelForCausalLM.from_config(LlamaConfig(**sizes, num_hidden_layers=depth)), "auto")
    assert (base.layers, base.cut) == (layers, cut)
    gpt2 = GPT2Config(n_embd=16, n_layer=depth, n_head=2, vocab_size=50)
    assert Backbone(AutoModelForCausalLM.from_config(gpt2), "auto").layers == "all"


GEMMA = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ m.content | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_3 = (
    "{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>"
    "{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@pytest.mark.parametrize(("template", "end"), [(GEMMA, "<end_of_turn>"), (LLAMA_3, "<|eot_id|>")])
def test_a_reply_ends_as_the_chat_template_ends_it(template: str, end: str) -> None:
    lm, codec = load_model(ModelConfig())
    tokenizer = codec.tokenizer
    plain_end = codec.eos_id
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", end]})
    lm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    tokenizer.chat_template = template
    codec = make_codec(tokenizer, lm, None)
    turn_end = tokenizer.convert_tokens_to_ids(end)
    assert codec.turn_end == turn_end
    assert {plain_end, turn_end} <= codec.eos_ids
    assert turn_end in lm.generation_config.eos_token_id
    dialogue, text = Prompt.from_messages([Message("user", "Who?")]), Prompt("Who?")
    assert codec.encode_response(" Me.", to=dialogue)[-1] == turn_end
    assert codec.encode_response(" Me.", to=text)[-1] == plain_end
    assert codec.encode_response(" Me.")[-1] == plain_end
    assert codec.encode_response(" Me.", to=dialogue, end=False)[-1] not in codec.eos_ids
    untemplated = make_codec(tokenizer, lm, False)
    assert untemplated.encode_response(" Me.", to=dialogue)[-1] == plain_end
    pairs = [Preference(dialogue, " Me.", " You."), Preference(text, " Me.", " You.")]
    encoded = EncodedPairs(Backbone(lm), codec, pairs)
    ends = [ids[-1] for ids in encoded.sequences.response_ids]
    assert [ends[i] for i in (*encoded.chosen, *encoded.rejected)] == [turn_end, plain_end] * 2


def test_a_template_that_ends_replies_with_text_leaves_the_tokenizers_own_end() -> None:
    lm, codec = load_model(ModelConfig())
    codec.tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    again = make_codec(codec.tokenizer, lm, None)
    assert again.turn_end is None
    assert again.eos_ids == codec.eos_ids
    codec.tokenizer.chat_template = "{{ raise_exception('no assistants here') }}"
    with pytest.raises(ModelError, match="no assistants here"):
        make_codec(codec.tokenizer, lm, None)
