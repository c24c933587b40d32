"""The same ground for every arm: a model folder, prompts, preference pairs. Runs in any of the environments.

usage: python benchmarks/arms/arena.py FOLDER [--layers 6 --hidden 256 --vocab 8192] [--ends]
With --ends the model is trained for a minute to end its responses after about 21 of 48 tokens; without it ends are
practically never sampled.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

PAD, EOS = 0, 1
PROMPT_TOKENS = 24
END_RATE = 0.033  # responses of min(geometric, 48) tokens, about 24 on average with the prompt's own noise


def tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{i}": i for i in range(2, vocab)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def save_tokenizer(folder: Path, vocab: int) -> None:
    """With the class name that every release of transformers knows."""
    tokenizer(vocab).save_pretrained(folder)
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))


def model(args: argparse.Namespace) -> LlamaForCausalLM:
    torch.manual_seed(0)
    heads = max(1, args.hidden // 32)
    config = LlamaConfig(
        vocab_size=args.vocab,
        hidden_size=args.hidden,
        intermediate_size=int(args.hidden * 8 / 3 / 16) * 16,
        num_hidden_layers=args.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=1024,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def teach_ends(lm: LlamaForCausalLM, vocab: int, steps: int = 80) -> None:
    """Random words in which an end comes at a constant rate."""
    optimizer = torch.optim.AdamW(lm.parameters(), lr=1e-3)
    for _ in range(steps):
        ids = torch.randint(2, vocab, (16, 64))
        ids[torch.rand(ids.shape) < END_RATE] = EOS
        loss = lm(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def words(rng: random.Random, n: int, vocab: int) -> str:
    return " ".join(f"w{rng.randrange(2, vocab)}" for _ in range(n))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--ends", action="store_true")
    parser.add_argument("--pairs", type=int, default=512)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    lm = model(args)
    if args.ends:
        teach_ends(lm, args.vocab)
    lm.save_pretrained(args.folder / "model")
    save_tokenizer(args.folder / "model", args.vocab)
    scorer = LlamaForSequenceClassification(lm.config.__class__(**lm.config.to_dict() | {"num_labels": 1}))
    scorer.model.load_state_dict(lm.model.state_dict())
    scorer.save_pretrained(args.folder / "scorer")
    save_tokenizer(args.folder / "scorer", args.vocab)
    rng = random.Random(0)
    with (args.folder / "prompts.jsonl").open("w") as file:
        for _ in range(512):
            file.write(json.dumps({"prompt": words(rng, PROMPT_TOKENS, args.vocab)}) + "\n")
    with (args.folder / "pairs.jsonl").open("w") as file:
        for _ in range(args.pairs):
            # One rule to learn: the chosen side has more low-numbered words.
            row = {"prompt": words(rng, PROMPT_TOKENS, args.vocab)}
            for side, limit in (("chosen", args.vocab // 2), ("rejected", args.vocab)):
                row[side] = " " + words(rng, rng.randint(11, 47), limit)
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
