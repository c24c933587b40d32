"""Published reward models: their scores are those of a plain transformers call, whatever they are batched with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from burnish.config.ppo import FunctionReward, PPOConfig
from burnish.errors import ConfigError, TrainingError
from burnish.records import Message, Prompt
from burnish.reward.functions import SummedRewards, called, load_term
from burnish.reward.published import PublishedReward
from tests.reward.test_functions import ensemble, rollout

WORDS = ["<s>", "</s>", "<pad>", "<unk>", "user", "assistant", ":", *"abcdefgh", "p0", "p1", "hi", "no"]
TEMPLATE = (
    "<s>{% for m in messages %}{{ m['role'] }} : {{ m['content'] }} </s>{% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)
ASKED = [
    Prompt("a b"),
    Prompt.from_messages([Message("user", "a"), Message("assistant", "b c d"), Message("user", "e")]),
    Prompt("c"),
    Prompt("a b"),
]
SAID = ["d e f g h", "f", "no hi a b c d e f", "g"]


def saved(
    folder: Path,
    *,
    pad: str | None = "<pad>",
    template: str | None = TEMPLATE,
    labels: int = 1,
    kind: str = "llama",
) -> Path:
    """A tiny random classifier with a tokenizer of its own."""
    torch.manual_seed(0)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token=pad
    )
    tokenizer.chat_template = template
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64, "num_labels": labels}
    pad_id = None if pad is None else WORDS.index(pad)
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(**sizes, pad_token_id=pad_id))
    elif kind == "causal":
        model = LlamaForCausalLM(LlamaConfig(**sizes, pad_token_id=pad_id))
    else:
        model = LlamaForSequenceClassification(LlamaConfig(**sizes, pad_token_id=pad_id))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def reward(folder: Path, batch_size: int = 4) -> PublishedReward:
    return PublishedReward(str(folder), torch.device("cpu"), "float32", batch_size)


@pytest.mark.parametrize(
    ("kind", "pad"), [*(("llama", p) for p in ("<pad>", "</s>", None)), ("bert", "<pad>"), ("bert", "</s>")]
)
@pytest.mark.parametrize("template", [TEMPLATE, None])
def test_scores_are_those_of_a_plain_call(
    tmp_path: Path, kind: str, pad: str | None, template: str | None
) -> None:
    found = reward(saved(tmp_path, pad=pad, template=template, kind=kind))
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path, dtype=torch.float32).eval()
    wanted = []
    for prompt, response in zip(ASKED, SAID, strict=True):
        if template is None:
            text = (
                prompt.text + response if not prompt.messages else f"{prompt.text}\n\nAssistant: {response}"
            )
            ids = found.tokenizer(text, return_tensors="pt").input_ids
        else:
            turns = [{"role": m.role, "content": m.content} for m in prompt.messages]
            turns = turns or [{"role": "user", "content": prompt.text}]
            turns.append({"role": "assistant", "content": response})
            text = found.tokenizer.apply_chat_template(turns, tokenize=False)
            ids = found.tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
            assert (ids == WORDS.index("<s>")).sum() == 1, "one BOS"
        with torch.no_grad():
            wanted.append(float(plain(input_ids=ids).logits[0, 0]))
    assert len(set(wanted)) == 4
    for size in (1, 2, 4):
        assert reward(tmp_path, size).scores(ASKED, SAID) == pytest.approx(wanted, abs=1e-5)
    found.tokenizer.padding_side = "left"
    assert found.scores(ASKED, SAID) == pytest.approx(wanted, abs=1e-5)


def test_it_is_a_term_of_the_reward(tmp_path: Path) -> None:
    term = FunctionReward(model=str(saved(tmp_path / "tiny-rm.v1")), weight=2.0)
    assert term.term == "tiny_rm_v1"
    loaded = load_term(term)
    texts = rollout(["a b", "c"])
    own = called("x", loaded, texts)
    found = SummedRewards(ensemble, 1.0, [(term, loaded)])(texts)
    assert found.scores.tolist() == pytest.approx([1.0 + 2 * own[0], -2.0 + 2 * own[1]])  # type: ignore[operator]
    assert found.terms["tiny_rm_v1"].tolist() == pytest.approx(own)


def test_what_is_no_reward_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'no-such-model', which cannot be loaded"):
        load_term(FunctionReward(model="no-such-model"))
    two = saved(tmp_path / "two", labels=2)
    with pytest.raises(ConfigError, match="has 2 labels; a reward model has one"):
        reward(two)
    causal = saved(tmp_path / "causal", kind="causal")
    with pytest.raises(
        ConfigError, match=r"lack 'score\.weight': it is a language model without a reward head"
    ):
        reward(causal)


def test_a_text_beyond_the_context_is_an_error(tmp_path: Path) -> None:
    found = reward(saved(tmp_path))
    with pytest.raises(TrainingError, match=r"has 7\d tokens .* which reads 64"):
        found.scores([Prompt("a")], ["b " * 70])


def test_a_term_is_one_thing() -> None:
    for given in ({}, {"model": "m", "url": "http://x"}, {"function": "a:b", "model": "m"}):
        with pytest.raises(ValidationError, match="give one of the three"):
            FunctionReward(**given)
    with pytest.raises(ValidationError, match="two terms would be called 'rm'"):
        PPOConfig(rewards=[{"model": "a/rm"}, {"model": "b/rm"}])
