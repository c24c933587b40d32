"""A faster decoder for Llama-like models, equal to the plain decoder within rounding."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.functional import rms_norm, scaled_dot_product_attention
from torch.utils.checkpoint import checkpoint

from burnish.models.batches import CPU, SUPPRESSED, Positions, precise, read
from burnish.models.device import captured, linear_of_few, traits

if TYPE_CHECKING:
    from burnish.models.backbone import TrainableLayers

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
    """A decoder with a static cache of S slots, on any device.

    Keys and values are (S, H, M, d) per layer. They are left-aligned, so that a slot takes the next
    prompt as soon as its sequence ends. Products are computed in the precision that the base holds
    its weights in; trained weights are cast and adapters are merged once, when the decoder is made.
    """

    refills = True
    graphs = False  # whether steps are CUDA graphs, one for each bucket; not seen on a GPU yet

    def __init__(self, top: TrainableLayers, slots: int, width: int) -> None:
        base, device = top.base, top.base.device
        body = inner(top.body)
        attention = base.lm.base_model.layers[0].self_attn
        self.embed = base.lm.base_model.embed_tokens if base.cut else body.embed_tokens
        below: Any = base.bottom.layers if base.bottom is not None else ()
        dtype = base.compute_dtype
        self.layers = [_layer(module, dtype) for module in (*below, *body.layers)]
        self.norm = norm(body.norm)
        self.head_dim = attention.head_dim
        self.groups = attention.num_key_value_groups
        self.scaling = attention.scaling
        kv = self.layers[0].qkv.shape[0] // self.head_dim // (self.groups + 2)
        self.heads = (kv * self.groups, kv)
        self.width = width
        self.bucket = traits(device).bucket
        shape = (slots, kv, width, self.head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in self.layers] for _ in range(2)
        )
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        self.features = {
            cut: torch.zeros(slots, width, base.hidden_size, dtype=kept, device=device) for cut in base.cuts
        }
        self.columns = torch.arange(width, device=device)
        self.rows = torch.arange(slots, device=device)
        self.lengths = torch.zeros(slots, dtype=torch.long, device=device)
        self.in_use = torch.zeros_like(self.lengths)  # 1 for a slot with a sequence
        self.filled = [0] * slots  # `lengths`, known without a wait for the device
        self.captured: dict[int, Callable[[torch.Tensor], torch.Tensor]] = {}  # steps by bucket
        cos, sin = rope_tables(base.lm.base_model, self.columns[None])
        self.cos, self.sin = cos[0].to(dtype), sin[0].to(dtype)

    @property
    def compact_share(self) -> float:
        """Share of used slots from which `keep` is worth its cost: a copy of one slot at most.

        A graph holds the addresses of the cache, which must not move.
        """
        return 0.0 if self.graphs else 1.0

    def admit(self, slots: Sequence[int], prompt_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Prefill these slots, each distinct prompt once; return last hidden states (len(slots), D)."""
        index = {p: i for i, p in enumerate({tuple(p): None for p in prompt_ids})}
        device = self.lengths.device
        ids = padded_right(list(index), device)
        width = ids.shape[1]
        source, lengths, into = torch.tensor(
            [[index[tuple(p)] for p in prompt_ids], [len(p) for p in prompt_ids], slots], device=CPU
        ).to(device)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            q, k, v = (x.transpose(1, 2) for x in (q, k, v))
            # Padding is to the right of the text, which causal attention never reads.
            out = scaled_dot_product_attention(
                q, k, v, is_causal=True, scale=self.scaling, enable_gqa=self.groups > 1
            )
            self.keys[layer][into, :, :width] = k[source]
            self.values[layer][into, :, :width] = v[source]
            return out.transpose(1, 2).flatten(2)

        def keep(kept: torch.Tensor, x: torch.Tensor) -> None:
            kept[into, :width] = x[source]

        hidden = self._forward(precise(self.embed(ids)), self.cos[:width], self.sin[:width], attend, keep)
        self.lengths[into], self.in_use[into] = lengths, 1
        for slot, prompt in zip(slots, prompt_ids, strict=True):
            self.filled[slot] = len(prompt)
        return self.norm(hidden[source, lengths - 1])

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed one token (S,) per slot and return the hidden states (S, D) after it."""
        seen = min(-(-(max(self.filled) + 1) // self.bucket) * self.bucket, self.width)
        self.filled = [n + 1 if n else 0 for n in self.filled]
        if not self.graphs:
            return self._step(ids, seen)
        if seen not in self.captured:
            self.captured[seen] = captured(lambda x: self._step(x, seen), ids, self._step_back)
        return self.captured[seen](ids)

    def _step_back(self) -> None:
        """Forget the last step; the next one writes to the same places."""
        self.lengths.sub_(self.in_use)

    def _step(self, ids: torch.Tensor, seen: int) -> torch.Tensor:
        """Do the device's part of a step; no sequence has more than `seen` tokens after it."""
        where, n_kv, slots = self.lengths, self.heads[1], len(ids)
        # (S, 1, 1, seen); finite, so that a free slot gives no nan.
        unseen = torch.where(self.columns[:seen] <= where[:, None], 0.0, SUPPRESSED)[:, None, None]
        unseen = unseen.to(self.cos.dtype)
        token = self.rows * self.width + where  # its place in (S * M, ...)
        place = (self.rows[:, None] * n_kv + torch.arange(n_kv, device=ids.device)) * self.width
        place = (place + where[:, None]).flatten()  # of its keys in (S * H * M, d)

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            keys, values = self.keys[layer], self.values[layer]
            keys.view(-1, self.head_dim).index_copy_(0, place, k.reshape(-1, self.head_dim))
            values.view(-1, self.head_dim).index_copy_(0, place, v.reshape(-1, self.head_dim))
            q = q.reshape(slots, n_kv, self.groups, self.head_dim)
            keys, values = keys[:, :, :seen], values[:, :, :seen]
            if self.columns.device.type == "cpu":
                weights = (q * self.scaling @ keys.transpose(2, 3) + unseen).softmax(-1)
                mixed = weights @ values
            else:
                mixed = scaled_dot_product_attention(q, keys, values, attn_mask=unseen, scale=self.scaling)
            return mixed.reshape(slots, 1, -1)

        def keep(kept: torch.Tensor, x: torch.Tensor) -> None:
            kept.view(-1, kept.shape[-1]).index_copy_(0, token, x[:, 0])

        hidden = self._forward(
            precise(self.embed(ids[:, None])),
            self.cos[where][:, None],
            self.sin[where][:, None],
            attend,
            keep,
        )
        # A free slot is fed too, but must not grow: it would run past the width of the cache.
        self.lengths.add_(self.in_use)
        return self.norm(hidden[:, 0])

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only these slots, in this order; only those that change their place are copied."""
        n, moved = len(slots), [i for i, slot in enumerate(slots) if slot != i]
        into, source = torch.tensor([moved, [slots[i] for i in moved]], dtype=torch.long, device=CPU).to(
            self.lengths.device
        )

        def kept(x: torch.Tensor) -> torch.Tensor:
            if moved:
                x[into] = x[source]
            return x[:n]

        self.keys, self.values = [kept(x) for x in self.keys], [kept(x) for x in self.values]
        self.lengths, self.in_use = kept(self.lengths), kept(self.in_use)
        self.features = {cut: kept(x) for cut, x in self.features.items()}
        self.rows, self.filled = self.rows[:n], [self.filled[slot] for slot in slots]

    def take_features(self, slot: int, length: int) -> dict[int, torch.Tensor]:
        """Return the activations (length, D) of a slot's first tokens, by the base's cuts."""
        return {cut: kept[slot, :length].clone() for cut, kept in self.features.items()}

    def release(self, slots: Sequence[int]) -> None:
        """Free these slots."""
        index = torch.tensor(slots, device=CPU).to(self.lengths.device)
        self.lengths[index], self.in_use[index] = 0, 0
        for slot in slots:
            self.filled[slot] = 0

    def _forward(
        self,
        x: torch.Tensor,
        cos: torch.Tensor,
        sin: torch.Tensor,
        attend: Attend,
        keep: Callable[[torch.Tensor, torch.Tensor], None],
    ) -> torch.Tensor:
        """Return hidden states (B, t, D) before the final norm; `cos`, `sin` (t, d) or (B, t, d)."""
        n_q, n_kv = self.heads
        for index, layer in enumerate(self.layers):
            if index in self.features:
                keep(self.features[index], x)
            qkv = linear_of_few(layer.norms[0](x).to(layer.qkv.dtype), layer.qkv, layer.qkv_bias)
            qkv = qkv.unflatten(-1, (n_q + 2 * n_kv, self.head_dim))
            qk, v = qkv[:, :, : n_q + n_kv], qkv[:, :, n_q + n_kv :]
            if layer.qk_norms is not None:
                q_norm, k_norm = layer.qk_norms
                qk = torch.cat([q_norm(qk[:, :, :n_q]), k_norm(qk[:, :, n_q:])], 2).to(v.dtype)
            qk = rotate(qk, cos, sin)
            mixed = attend(index, qk[:, :, :n_q], qk[:, :, n_q:], v)
            x = linear_of_few(mixed, layer.out, layer.out_bias) + x
            h = layer.norms[1](x).to(layer.gate_up.dtype)
            gate, up = linear_of_few(h, layer.gate_up, layer.gate_up_bias).chunk(2, -1)
            x = linear_of_few(layer.activation(gate) * up, layer.down, layer.down_bias) + x
        return x


def _layer(module: Any, dtype: torch.dtype) -> _Layer:
    attention, mlp = module.self_attn, module.mlp

    def cast(*linears: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
        weight, bias = fused(*linears)
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    qkv, qkv_bias = cast(attention.q_proj, attention.k_proj, attention.v_proj)
    gate_up, gate_up_bias = cast(mlp.gate_proj, mlp.up_proj)
    out, out_bias = cast(attention.o_proj)
    down, down_bias = cast(mlp.down_proj)
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
    """Return the stacked weights of linear layers, adapters merged, and their stacked biases.

    The weights are a view where `lay_out` has made this possible, otherwise a copy.
    """
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


LAYER_PARTS = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}

ATTENTION_PARTS = {"q_proj", "k_proj", "v_proj", "o_proj"}

MLP_PARTS = {"gate_proj", "up_proj", "down_proj", "act_fn"}

PLAIN_RMS_NORMS = {"LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}


def is_llama_like(lm: Any) -> bool:
    """Check whether a causal LM has the modules expected here, not what these compute."""
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
    """Store projections that read the same input next to each other in memory.

    Decoding can then run each group as one product without a copy. The parameters stay the same and
    are trained as before.
    """
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
    """Return a plain RMS norm as one fused operation, and any other norm as it is."""
    if type(module).__name__ in PLAIN_RMS_NORMS:
        plain: Any = module
        return lambda x: rms_norm(x, plain.weight.shape, plain.weight, plain.variance_epsilon)
    return module


def rope_tables(body: Any, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return cos and signed sin (..., d) at integer positions (B, L).

    rotate_half(x) is roll(x) with the first half negated; the sign is in the table.
    """
    cos, sin = body.rotary_emb(torch.zeros(1, device=positions.device), positions)
    half = sin.shape[-1] // 2
    return cos, torch.cat([-sin[..., :half], sin[..., half:]], -1)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Apply rotary embedding to heads (B, L, H, d) with tables (B, L, d) or (L, d)."""
    return torch.addcmul(
        x * cos[..., None, :].to(x.dtype), x.roll(x.shape[-1] // 2, -1), sin[..., None, :].to(x.dtype)
    )


def inner(body: Any) -> Any:
    """Return the transformer body inside an adapter wrapper, or the body itself."""
    return body.get_base_model() if hasattr(body, "peft_config") else body


def causal_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """Return an additive mask (B, L, L) from a mask (B, L) of 1 for text and 0 for padding."""
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
    """Run consecutive layers of `body` on x (B, L, D) and return the output (B, Q, D) at `at`."""
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
    """Run one layer on x (B, L, D) and return its output (B, Q, D) only at `at`."""
    h = attention_input(layer, x)
    q = queries(layer.self_attn, read(h, at), read(cos, at), read(sin, at))
    k, v = keys_and_values(layer.self_attn, h, cos, sin)
    return layer_end(layer, read(x, at), attend(layer.self_attn, q, k, v, read(mask, at)))


def attention_input(layer: Any, x: torch.Tensor) -> torch.Tensor:
    """Normalise x (B, L, D) and cast it to the precision of products; x itself stays in float32."""
    return norm(layer.input_layernorm)(x).to(product_dtype(layer.self_attn.q_proj.weight))


def product_dtype(weight: torch.Tensor) -> torch.dtype:
    """Return the precision that products with a weight are computed in: autocast's, or its own."""
    kind = weight.device.type
    if kind == "meta":  # shapes alone, which autocast does not know
        return weight.dtype
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def queries(attention: Any, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Return rotated queries (B, Q, H, d) of normed hidden states (B, Q, D)."""
    q = attention.q_proj(h).unflatten(-1, (-1, attention.head_dim))
    return rotate(attention.q_norm(q).to(h.dtype) if hasattr(attention, "q_norm") else q, cos, sin)


def keys_and_values(
    attention: Any, h: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return rotated keys, and values, (B, L, H, d) of normed hidden states (B, L, D)."""
    k = attention.k_proj(h).unflatten(-1, (-1, attention.head_dim))
    v = attention.v_proj(h).unflatten(-1, (-1, attention.head_dim))
    return rotate(attention.k_norm(k).to(h.dtype) if hasattr(attention, "k_norm") else k, cos, sin), v


def attend(
    attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return attention outputs (B, Q, H * d) under an additive mask (B, Q, L).

    Queries are (B, Q, H, d); keys and values are (B, L, H, d). Without a mask, attention is causal.
    """
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
    """Run a layer after attention: its output projection and the MLP, each added to x."""
    x = x + layer.self_attn.o_proj(mixed)
    h = norm(layer.post_attention_layernorm)(x).to(product_dtype(layer.self_attn.q_proj.weight))
    return x + layer.mlp(h)


def shared_prompts(
    body: Any,
    depth: int,
    prompts: torch.Tensor,
    lengths: torch.Tensor,
    responses: torch.Tensor,
    source: torch.Tensor,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Run the lowest `depth` layers of `body` on prompts and on responses that continue them.

    Prompts are (U, P, D) and responses (K, T, D), both padded on the right. Response k continues
    prompt source[k], which has lengths[source[k]] tokens. Yield the outputs of each layer, in the
    same shapes.
    """
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
    """Return the outputs (length, D) of the lowest layers for every row, by number of layers.

    `cuts` gives the numbers of layers of `body`. A prompt that several rows share is computed once.
    """
    embed = body.embed_tokens
    device = embed.weight.device
    index = {p: i for i, p in enumerate({tuple(p): None for p in prompt_ids})}
    source = [index[tuple(p)] for p in prompt_ids]
    layers = shared_prompts(
        body,
        max(cuts),
        precise(embed(padded_right(list(index), device))),
        torch.tensor([len(p) for p in index], device=device),
        precise(embed(padded_right(response_ids, device))),
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
    """Run the lowest `n` layers of `body` on x and return their output (B, L, D)."""
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
    """Run layers from `first` on x (B, L, D); return normed hidden states (B, Q, D) at `at`."""
    body = inner(body)
    return norm(body.norm)(run_layers(body, body.layers[first:], x, attention_mask, position_ids, at))


def padded_right(rows: Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Return token ids (B, L), padded with zeros on the right."""
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.long, device=CPU)
    for line, row in zip(ids, rows, strict=True):
        line[: len(row)] = torch.tensor(row, device=CPU)
    return ids.to(device)
