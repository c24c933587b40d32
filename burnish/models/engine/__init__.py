"""The CPU engine: Llama-like decoders (Llama, Mistral, Qwen 2 and 3, SmolLM, Gemma) by their own modules, computing
little but what is read.

Everything above sees four things of it: `features` (below a cut, prompts shared), `run_frozen` (layers that are not
trained), `hidden_at` (what is read, differentiable) and `FastDecoder` (sampling). `Base.fast` says whether it vouches
for a model; whatever it does not (another device, another architecture) takes the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch

from burnish.models.batches import Positions
from burnish.models.engine.decoding import FastDecoder
from burnish.models.engine.llama import inner, is_llama_like, lay_out, norm, run_layers, shared_prompts

__all__ = [
    "FastDecoder",
    "features",
    "hidden_at",
    "inner",
    "is_llama_like",
    "lay_out",
    "norm",
    "run_frozen",
]


@torch.no_grad()
def features(
    body: Any,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    cuts: Collection[int],
) -> dict[int, list[torch.Tensor]]:
    """(length, D) what leaves the lowest layers of `body` for every row's tokens, for every number of them in `cuts`; a
    prompt that several rows share is computed once."""
    embed = body.embed_tokens
    device = embed.weight.device
    index = {p: i for i, p in enumerate({tuple(p): None for p in prompt_ids})}
    source = [index[tuple(p)] for p in prompt_ids]
    layers = shared_prompts(
        body,
        max(cuts),
        embed(padded_right(list(index), device)),
        torch.tensor([len(p) for p in index], device=device),
        embed(padded_right(response_ids, device)),
        torch.tensor(source, device=device),
    )
    return {
        below: [
            torch.cat([prompts[i, : len(p)], responses[row, : len(r)]])
            for row, (i, p, r) in enumerate(zip(source, prompt_ids, response_ids, strict=True))
        ]
        for below, (prompts, responses) in enumerate(layers, 1)
        if below in cuts
    }


@torch.no_grad()
def run_frozen(
    body: Any, n: int, x: torch.Tensor, attention_mask: torch.Tensor, position_ids: torch.Tensor
) -> torch.Tensor:
    """(B, L, D) what leaves the lowest `n` layers of `body` for what enters them."""
    body = inner(body)
    return run_layers(body, body.layers[:n], x, attention_mask, position_ids, slice(None))


def hidden_at(
    body: Any,
    x: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    at: Positions,
    first: int = 0,
) -> torch.Tensor:
    """Run the layers of `body` from `first` on embeddings or activations x (B, L, D); (B, Q, D) normed hidden states
    at `at`."""
    body = inner(body)
    return norm(body.norm)(run_layers(body, body.layers[first:], x, attention_mask, position_ids, at))


def padded_right(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """(B, L) token ids, zeros behind them."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=device)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row, device=device)
    return ids
