"""Train the embedded model: `python -m burnish.rehearse.build --out FOLDER`.

It is a Llama of about half a million parameters with a byte-level BPE tokenizer, trained on stories
of the grammar. The same command on the same machine gives the same weights; it takes a few minutes
on two cores. `--architecture` trains another model family, to test code on more than one.
"""

from __future__ import annotations

import argparse
import math
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GenerationConfig,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

from burnish.rehearse.grammar import Story, sample_story

PAD, EOS = "<|pad|>", "<|eos|>"
VOCABULARY = 2048
STORIES_FOR_TOKENIZER = 20_000
CONTEXT = 256
ARCHITECTURES = ("llama", "qwen3", "gemma3", "gpt2")


def train_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE; words include the leading space, so prompt and response concatenate."""
    rng = random.Random(f"tokenizer-{seed}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = (text_of(sample_story(rng)) for _ in range(STORIES_FOR_TOKENIZER))
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=EOS,
        clean_up_tokenization_spaces=False,
        model_max_length=CONTEXT,
        padding_side="right",
    )


def text_of(story: Story) -> str:
    """Return the full text of a story."""
    return f"{story.prompt} {story.continuation}"


def model_config(
    tokenizer: PreTrainedTokenizerFast, architecture: str, hidden: int, layers: int
) -> PreTrainedConfig:
    """Return the configuration of a small llama, qwen3, gemma3 or gpt2 model.

    qwen3: norms on queries and keys, two heads a key; gemma3: norms around every block, scaled
    embeddings, a window in all layers but the last; gpt2: learned positions, its weights transposed.
    """
    names: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    if architecture == "gpt2":
        return GPT2Config(
            **names,
            n_embd=hidden,
            n_layer=layers,
            n_head=4,
            n_positions=CONTEXT,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
        )
    sizes: dict[str, Any] = {
        "hidden_size": hidden,
        "intermediate_size": hidden * 5 // 2,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT,
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    if architecture == "llama":
        return LlamaConfig(**names, **sizes, num_key_value_heads=4, rope_parameters=rope)
    if architecture == "qwen3":
        return Qwen3Config(
            **names, **sizes, num_key_value_heads=2, head_dim=hidden // 4, rope_parameters=rope
        )
    assert architecture == "gemma3", architecture
    windows = ["sliding_attention"] * (layers - 1) + ["full_attention"]
    return Gemma3TextConfig(
        **names,
        **sizes,
        num_key_value_heads=1,
        head_dim=hidden // 4,
        query_pre_attn_scalar=hidden // 4,
        sliding_window=64,
        layer_types=windows,
    )


def batch_of(
    tokenizer: PreTrainedTokenizerFast, rng: random.Random, size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample ids and a mask by length, both (B, S), with prompt and continuation encoded apart."""
    rows = []
    for _ in range(size):
        story = sample_story(rng)
        parts = tokenizer([story.prompt, f" {story.continuation}"], add_special_tokens=False)["input_ids"]
        rows.append([*parts[0], *parts[1], tokenizer.eos_token_id])
    width = max(map(len, rows))
    ids = torch.full((size, width), tokenizer.pad_token_id)
    mask = torch.zeros(size, width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def train(
    *, hidden: int, layers: int, steps: int, size: int, rate: float, seed: int, architecture: str = "llama"
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Train a model on next-token prediction, with AdamW, warm-up and cosine decay."""
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    tokenizer = train_tokenizer(seed)
    model = AutoModelForCausalLM.from_config(model_config(tokenizer, architecture, hidden, layers))
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    rng = random.Random(f"stories-{seed}")
    for step in range(steps):
        scale = min(1.0, (step + 1) / 40) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate * max(scale, 0.02)
        ids, mask = batch_of(tokenizer, rng, size)
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return model.eval(), tokenizer


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Save model and tokenizer, in half precision on disk; loaders ask for float32."""
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=True
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Parse the arguments, train the model and save it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--hidden", type=int, default=96)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    model, tokenizer = train(
        hidden=a.hidden,
        layers=a.layers,
        steps=a.steps,
        size=a.batch,
        rate=a.rate,
        seed=a.seed,
        architecture=a.architecture,
    )
    save(model, tokenizer, a.out)
    print(f"{sum(p.numel() for p in model.parameters())} parameters in {a.out}")


if __name__ == "__main__":
    main()
