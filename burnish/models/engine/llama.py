"""Layers of Llama-like decoders, run with their own modules but only where something is read.

What stands before a response is needed as keys and values alone in the top layer: queries, output projection and
MLP are computed at the positions that are asked for. Works for every model whose layers are built like Llama's;
`Base.fast` compares the result with the model's own forward pass before it is trusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from burnish.models.batches import SUPPRESSED, Positions, read

LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}
PLAIN_RMS_NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}


def is_llama_like(lm: Any) -> bool:
    """Whether a causal LM is built as this module expects; says nothing about what its parts compute."""
    body = lm.base_model
    if not all(hasattr(body, part) for part in ("layers", "norm", "embed_tokens", "rotary_emb")):
        return False
    if getattr(body.config, "sliding_window", None) and getattr(body.config, "use_sliding_window", True):
        return False
    for layer in body.layers:
        if {n for n, _ in layer.named_children()} != LAYER_PARTS:
            return False
        attention = {n for n, _ in layer.self_attn.named_children()}
        if attention - {"q_norm", "k_norm"} != ATTENTION_PARTS:
            return False
        if {n for n, _ in layer.mlp.named_children()} != MLP_PARTS:
            return False
    return True


def lay_out(body: Any) -> None:
    """Put the projections that read the same input next to each other in memory, so that decoding can run each
    group as one product without a copy. The parameters stay what they are, and are trained as before."""
    for layer in getattr(body, "layers", ()):
        for block, names in (
            ("self_attn", ("q_proj", "k_proj", "v_proj")),
            ("mlp", ("gate_proj", "up_proj")),
        ):
            parts = [getattr(getattr(layer, block, None), name, None) for name in names]
            if not all(isinstance(part, nn.Linear) for part in parts):
                continue
            weights = [part.weight for part in parts if part is not None]
            joined = torch.cat([w.data for w in weights])
            for weight, view in zip(weights, joined.split([len(w) for w in weights]), strict=True):
                weight.data = view


def norm(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """A norm as one fused operation where it is a plain RMS norm, itself otherwise."""
    if type(module).__name__ in PLAIN_RMS_NORMS:
        plain: Any = module
        return lambda x: rms_norm(x, plain.weight.shape, plain.weight, plain.variance_epsilon)
    return module


def rope_tables(body: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and signed sin (..., d) at integer positions (B, L). rotate_half(x) is roll(x) with the first half
    negated; the sign is in the table."""
    cos, sin = body.rotary_emb(torch.zeros(1, device=positions.device), positions)
    half = sin.shape[-1] // 2
    return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of heads (B, L, H, d) with tables (B, L, d) or (L, d)."""
    return torch.addcmul(
        x * cos[..., None, :].to(x.dtype), x.roll(x.shape[-1] // 2, -1), sin[..., None, :].to(x.dtype)
    )


def inner(body: Any) -> Any:
    """The transformer body under an adapter wrapper, or itself."""
    return body.get_base_model() if hasattr(body, "peft_config") else body


def causal_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """(B, L) 1 for text, 0 for padding, to additive (B, L, L)."""
    length = attention_mask.shape[1]
    earlier = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    seen = attention_mask.bool()[:, None, :] & earlier
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, SUPPRESSED)


def run_layers(
    body: Any,
    layers: Sequence[Any],
    x: torch.Tensor,
    attention_mask: torch.Tensor,
    position_ids: torch.Tensor,
    at: Positions,
) -> torch.Tensor:
    """Run consecutive layers of `body` on x (B, L, D); (B, Q, D) what leaves the last of them at `at`."""
    cos, sin = rope_tables(body, position_ids)
    mask = causal_mask(attention_mask)
    for number, layer in enumerate(layers):
        args = (layer, x, cos, sin, mask, at if number == len(layers) - 1 else slice(None))
        if getattr(layer, "gradient_checkpointing", False) and torch.is_grad_enabled():
            x = checkpoint(layer_pass, *args, use_reentrant=False, preserve_rng_state=False)
        else:
            x = layer_pass(*args)
    return x


def layer_pass(
    layer: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, mask: torch.Tensor, at: Positions
) -> torch.Tensor:
    """One layer on x (B, L, D), its output (B, Q, D) at `at` alone."""
    h = attention_input(layer, x)
    q = queries(layer.self_attn, read(h, at), read(cos, at), read(sin, at))
    k, v = keys_and_values(layer.self_attn, h, cos, sin)
    return layer_end(layer, read(x, at), attend(layer.self_attn, q, k, v, read(mask, at)))


def attention_input(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """x (B, L, D) normed, in the precision of the layer's weights; x itself stays in float32."""
    return norm(layer.input_layernorm)(x).to(layer.self_attn.q_proj.weight.dtype)


def queries(attention: Any, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """(B, Q, H, d) rotated queries of normed hidden states (B, Q, D)."""
    q = attention.q_proj(h).unflatten(-1, (-1, attention.head_dim))
    return rotate(attention.q_norm(q).to(h.dtype) if hasattr(attention, "q_norm") else q, cos, sin)


def keys_and_values(
    attention: Any, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, L, H, d) rotated keys, and values, of normed hidden states (B, L, D)."""
    k = attention.k_proj(h).unflatten(-1, (-1, attention.head_dim))
    v = attention.v_proj(h).unflatten(-1, (-1, attention.head_dim))
    return rotate(attention.k_norm(k).to(h.dtype) if hasattr(attention, "k_norm") else k, cos, sin), v


def attend(
    attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """(B, Q, H * d) what queries (B, Q, H, d) take from keys and values (B, L, H, d) under an additive mask (B, Q, L);
    causal without one."""
    mixed = scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=None if mask is None else mask[:, None].to(q.dtype),
        is_causal=mask is None,
        scale=attention.scaling,
        enable_gqa=attention.num_key_value_groups > 1,
    )
    return mixed.transpose(1, 2).flatten(2)


def layer_end(layer: Any, x: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """What follows attention: its output projection and the MLP, each added to x."""
    x = x + layer.self_attn.o_proj(mixed)
    h = norm(layer.post_attention_layernorm)(x).to(layer.self_attn.q_proj.weight.dtype)
    return x + layer.mlp(h)


def shared_prompts(
    body: Any,
    depth: int,
    prompts: torch.Tensor,
    lengths: torch.Tensor,
    responses: torch.Tensor,
    source: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Run the lowest `depth` layers of `body` on prompts (U, P, D) and on responses (K, T, D) that continue them;
    response k continues prompt source[k], which has lengths[source[k]] tokens. Both are padded on the right. Yields
    what leaves each layer, in the same shapes."""
    width, length, device = prompts.shape[1], responses.shape[1], prompts.device
    tables = rope_tables(body, torch.arange(width, device=device)[None])
    after = lengths[source][:, None]  # (K, 1)
    response_tables = rope_tables(body, after + torch.arange(length, device=device))
    seen = torch.cat(
        [
            (torch.arange(width, device=device) < after)[:, None].expand(-1, length, -1),
            torch.ones(length, length, dtype=torch.bool, device=device).tril().expand(len(source), -1, -1),
        ],
        -1,
    )
    mask = torch.zeros(seen.shape, device=device).masked_fill_(~seen, SUPPRESSED)
    for layer in body.layers[:depth]:
        attention = layer.self_attn
        h = attention_input(layer, prompts)
        k, v = keys_and_values(attention, h, *tables)
        mixed = attend(attention, queries(attention, h, *tables), k, v, None)
        prompts = layer_end(layer, prompts, mixed)
        if length:
            h = attention_input(layer, responses)
            own_k, own_v = keys_and_values(attention, h, *response_tables)
            k, v = torch.cat([k[source], own_k], 1), torch.cat([v[source], own_v], 1)
            mixed = attend(attention, queries(attention, h, *response_tables), k, v, mask)
            responses = layer_end(layer, responses, mixed)
        yield prompts, responses
