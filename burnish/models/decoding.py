"""Decoding token by token: prompts enter slots, every step feeds one token per slot.

The engine decodes what it vouches for; `PlainDecoder` runs everything else by the model's own forward pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from burnish.models.batches import pad_batch, precise
from burnish.models.engine import FastDecoder
from burnish.models.shared_base import Top


def decoder(top: Top, slots: int, width: int, pad_id: int) -> FastDecoder | PlainDecoder:
    """A decoder of `slots` sequences of at most `width` tokens; the engine's wherever it is exact."""
    return FastDecoder(top, slots, width) if top.base.fast else PlainDecoder(top, pad_id)


class PlainDecoder:
    """Bottom and top by their own forward passes, each with its own growing cache. Takes its prompts once."""

    refills = False

    def __init__(self, top: Top, pad_id: int) -> None:
        self.top = top
        self.bottom = top.base.bottom
        self.pad_id = pad_id
        self.caches = [DynamicCache(), DynamicCache()]

    def admit(self, slots: torch.Tensor, prompt_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Prefill; (S, D) last hidden states of the prompts."""
        batch = pad_batch(prompt_ids, [[]] * len(prompt_ids), self.pad_id, self.top.base.device)
        self.mask, self.positions = batch.attention_mask, batch.position_ids[:, -1]
        return self._forward(batch.input_ids, batch.position_ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed one token (S,) per slot; (S, D) hidden states after it."""
        self.positions = self.positions + 1
        self.mask = torch.cat(
            [self.mask, torch.ones(len(ids), 1, dtype=self.mask.dtype, device=ids.device)], 1
        )
        return self._forward(ids[:, None], self.positions[:, None])

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        where = {"attention_mask": self.mask, "position_ids": positions, "use_cache": True}
        inputs = {"input_ids": ids}
        with self.top.base.precision():
            if self.bottom is not None:
                below = self.bottom(**inputs, **where, past_key_values=self.caches[0])
                inputs = {"inputs_embeds": below.last_hidden_state}
            out = self.top(**inputs, **where, past_key_values=self.caches[1])
        hidden: torch.Tensor = out.last_hidden_state[:, -1]
        return precise(hidden)

    def keep(self, slots: torch.Tensor) -> None:
        """Drop every slot but these."""
        self.mask, self.positions = self.mask[slots], self.positions[slots]
        for cache in self.caches[0 if self.bottom is not None else 1 :]:
            cache.batch_select_indices(slots)

    def take_features(self, slot: int) -> dict[int, torch.Tensor]:
        """Nothing is kept."""
        return {}
