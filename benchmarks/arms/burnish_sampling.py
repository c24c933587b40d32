"""Sampling against `model.generate` and against decode-shaped products alone, interleaved in one process.
Prints one JSON line: tokens a second of each, medians of --rounds."""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import linear

from burnish.config.model import ModelConfig
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.engine import FastDecoder
from burnish.models.generate import sample_ids
from burnish.models.load import load_model
from burnish.models.logprobs import make_policy


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("arena", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--prompts", type=int, default=32, help="how many responses, in batches for generate")
    parser.add_argument("--length", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(2)
    lm, codec = load_model(ModelConfig(path=str(args.arena / "model")))
    base = Backbone(lm, "all")
    policy = make_policy(TrainableLayers(base, trainable=False), codec.pad_id)
    texts = [json.loads(line)["prompt"] for line in (args.arena / "prompts.jsonl").open()][: args.prompts]
    prompts = [codec.tokenizer(t)["input_ids"] for t in texts]

    def ours() -> int:
        uniforms = torch.rand(len(prompts), args.length, dtype=torch.float64)
        return sum(map(len, sample_ids(policy, codec, prompts, uniforms, args.batch).ids))

    def generate() -> int:
        total = 0
        for start in range(0, len(prompts), args.batch):
            ids = torch.tensor(prompts[start : start + args.batch])
            out = lm.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=args.length,
                do_sample=True,
                top_k=0,
                top_p=1.0,
            )[:, ids.shape[1] :]
            total += int((out != codec.pad_id).sum())
        return total

    def products() -> int:
        layers = FastDecoder(policy.top, 1, 8).layers
        inputs = {
            d: torch.randn(args.batch, d)
            for layer in layers
            for d in (layer.qkv.shape[1], layer.down.shape[1])
        }
        with torch.no_grad():
            for _ in range(args.length):
                for layer in layers:
                    for weight in (layer.qkv, layer.out, layer.gate_up, layer.down):
                        linear(inputs[weight.shape[1]], weight)
                linear(inputs[policy.head.weight.shape[1]], policy.head.weight)
        return args.batch * args.length

    rates: dict[str, list[float]] = {}
    arms: list[Callable[[], int]] = [ours, generate, products]
    for turn in range(args.rounds + 1):
        for arm in arms:
            began = time.perf_counter()
            n = arm()
            if turn:  # the first round warms up
                rates.setdefault(arm.__name__, []).append(n / (time.perf_counter() - began))
    print(json.dumps({name: statistics.median(values) for name, values in rates.items()}))


if __name__ == "__main__":
    main()
