"""Decoding token by token on the engine: prompts enter slots of a static KV cache, every step feeds one token per slot.

Fused projections, no masks built per step, and the activations at the cuts are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import linear, scaled_dot_product_attention

from burnish.models.batches import SUPPRESSED
from burnish.models.engine.llama import inner, norm, rope_tables, rotate

if TYPE_CHECKING:
    from burnish.models.shared_base import Top

Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class _Layer:
    """Weights of one layer, projections of the same input fused."""

    norms: tuple[Callable[[torch.Tensor], torch.Tensor], Callable[[torch.Tensor], torch.Tensor]]
    qkv: torch.Tensor
    qkv_bias: torch.Tensor | None
    qk_norms: tuple[nn.Module, nn.Module] | None
    out: torch.Tensor
    out_bias: torch.Tensor | None
    gate_up: torch.Tensor
    gate_up_bias: torch.Tensor | None
    activation: nn.Module
    down: torch.Tensor
    down_bias: torch.Tensor | None


class FastDecoder:
    """S slots of a static cache: keys (S, H, d, M) and values (S, H, M, d) per layer, left-aligned, so that a slot
    whose sequence has ended takes the next prompt at once."""

    refills = True

    def __init__(self, top: Top, slots: int, width: int) -> None:
        base, device = top.base, top.base.device
        body = inner(top.body)
        attention = base.lm.base_model.layers[0].self_attn
        self.embed = base.lm.base_model.embed_tokens if base.cut else body.embed_tokens
        below: Any = base.bottom.layers if base.bottom is not None else ()
        self.layers = [_layer(module) for module in (*below, *body.layers)]
        self.norm = norm(body.norm)
        self.head_dim = attention.head_dim
        self.groups = attention.num_key_value_groups
        self.scaling = attention.scaling
        kv = self.layers[0].qkv.shape[0] // self.head_dim // (self.groups + 2)
        self.heads = (kv * self.groups, kv)
        dtypes = [layer.qkv.dtype for layer in self.layers]
        self.keys = [torch.zeros(slots, kv, self.head_dim, width, dtype=d, device=device) for d in dtypes]
        self.values = [torch.zeros(slots, kv, width, self.head_dim, dtype=d, device=device) for d in dtypes]
        self.features = {cut: torch.zeros(slots, width, base.hidden_size, device=device) for cut in base.cuts}
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self.in_use = torch.zeros(slots, dtype=torch.bool, device=device)
        cos, sin = rope_tables(base.lm.base_model, torch.arange(width, device=device)[None])
        self.cos, self.sin = cos[0], sin[0]

    def admit(self, slots: torch.Tensor, prompt_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Prefill these slots; (len(slots), D) last hidden states. A prompt given several times is computed once."""
        unique = {tuple(p): None for p in prompt_ids}
        index = {p: i for i, p in enumerate(unique)}
        device = self.lengths.device
        source = torch.tensor([index[tuple(p)] for p in prompt_ids], device=device)
        lengths = torch.tensor([len(p) for p in unique], device=device)
        width = int(lengths.max())
        ids = torch.zeros(len(unique), width, dtype=torch.long, device=device)
        for row, prompt in enumerate(unique):
            ids[row, : len(prompt)] = torch.tensor(prompt, device=device)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            # Padding stands right of the text, where a causal model never looks.
            out = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.scaling, enable_gqa=self.groups > 1
            )
            self.keys[layer][slots, :, :, :width] = k.transpose(2, 3)[source]
            self.values[layer][slots, :, :width] = v[source]
            return out.transpose(1, 2).flatten(2)

        def keep(kept: torch.Tensor, x: torch.Tensor) -> None:
            kept[slots, :width] = x[source]

        hidden = self._forward(self.embed(ids), self.cos[:width], self.sin[:width], attend, keep)
        self.lengths[slots], self.in_use[slots] = lengths[source], True
        return self.norm(hidden[torch.arange(len(unique), device=device), lengths - 1])[source]

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed one token (S,) per slot; (S, D) hidden states after it."""
        rows, where = torch.arange(len(ids), device=ids.device), self.lengths
        seen = int(where.max()) + 1
        # (S, 1, 1, seen); finite, so that a free slot gives no nan.
        unseen = torch.where(torch.arange(seen, device=where.device) <= where[:, None], 0.0, SUPPRESSED)[
            :, None, None
        ]
        n_kv = self.heads[1]

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            self.keys[layer][rows, :, :, where] = k[:, 0]
            self.values[layer][rows, :, where] = v[:, 0]
            q = q.reshape(len(ids), n_kv, self.groups, self.head_dim) * self.scaling
            weights = (q @ self.keys[layer][..., :seen] + unseen.to(q.dtype)).softmax(-1)
            return (weights @ self.values[layer][:, :, :seen]).view(len(ids), 1, -1)

        def keep(kept: torch.Tensor, x: torch.Tensor) -> None:
            kept[rows, where] = x[:, 0]

        hidden = self._forward(
            self.embed(ids[:, None]), self.cos[where][:, None], self.sin[where][:, None], attend, keep
        )
        # A free slot is fed with the rest, and must not grow: nothing would stop it at the width of the cache.
        self.lengths = where + self.in_use
        return self.norm(hidden[:, 0])

    def keep(self, slots: torch.Tensor) -> None:
        """Drop every slot but these."""
        self.keys = [k[slots] for k in self.keys]
        self.values = [v[slots] for v in self.values]
        self.lengths, self.in_use = self.lengths[slots], self.in_use[slots]
        self.features = {cut: kept[slots] for cut, kept in self.features.items()}

    def take_features(self, slot: int) -> dict[int, torch.Tensor]:
        """(length, D) activations at the base's cuts of every token fed to this slot, which is then free."""
        n, self.lengths[slot], self.in_use[slot] = int(self.lengths[slot]), 0, False
        return {cut: kept[slot, :n].clone() for cut, kept in self.features.items()}

    def _forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attend: Attend,
        keep: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        """(B, t, D) embeddings to (B, t, D) hidden states before the final norm. cos, sin (t, d) or (B, t, d)."""
        n_q, n_kv = self.heads
        for index, layer in enumerate(self.layers):
            if index in self.features:
                keep(self.features[index], x)
            qkv = linear(layer.norms[0](x).to(layer.qkv.dtype), layer.qkv, layer.qkv_bias)
            qkv = qkv.unflatten(-1, (n_q + 2 * n_kv, self.head_dim))
            qk, v = qkv[:, :, : n_q + n_kv], qkv[:, :, n_q + n_kv :]
            if layer.qk_norms is not None:
                q_norm, k_norm = layer.qk_norms
                qk = torch.cat([q_norm(qk[:, :, :n_q]), k_norm(qk[:, :, n_q:])], 2).to(v.dtype)
            qk = rotate(qk, cos, sin)
            mixed = attend(index, qk[:, :, :n_q], qk[:, :, n_q:], v)
            x = linear(mixed, layer.out, layer.out_bias) + x
            h = layer.norms[1](x).to(layer.gate_up.dtype)
            gate, up = linear(h, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = linear(layer.activation(gate) * up, layer.down, layer.down_bias) + x
        return x


def _layer(module: Any) -> _Layer:
    attention, mlp = module.self_attn, module.mlp
    qkv, qkv_bias = fused(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = fused(mlp.gate_proj, mlp.up_proj)
    out, out_bias = fused(attention.o_proj)
    down, down_bias = fused(mlp.down_proj)
    norms = (attention.q_norm, attention.k_norm) if hasattr(attention, "q_norm") else None
    return _Layer(
        norms=(norm(module.input_layernorm), norm(module.post_attention_layernorm)),
        qkv=qkv,
        qkv_bias=qkv_bias,
        qk_norms=norms,
        out=out,
        out_bias=out_bias,
        gate_up=gate_up,
        gate_up_bias=gate_up_bias,
        activation=mlp.act_fn,
        down=down,
        down_bias=down_bias,
    )


def fused(*linears: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The weights of linear layers over each other, adapters merged in: a view where `lay_out` has put them so,
    a copy otherwise."""
    weights = [_merged(module) for module in linears]
    biases = [module.bias for module in linears]
    bias = None if any(b is None for b in biases) else torch.cat([b.detach() for b in biases])
    first, rows = weights[0], sum(len(w) for w in weights)
    offset = first.storage_offset()
    for weight in weights:
        same = weight.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        if not (same and weight.is_contiguous() and weight.storage_offset() == offset):
            return torch.cat(weights), bias
        offset += weight.numel()
    return first.as_strided((rows, first.shape[1]), (first.shape[1], 1)), bias


def _merged(module: Any) -> torch.Tensor:
    weight: torch.Tensor = module.weight.detach()
    for name in getattr(module, "active_adapters", ()):
        weight = weight + module.get_delta_weight(name).detach()
    return weight
