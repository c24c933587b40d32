"""Decoders that refill finished slots, and rollouts with log-probabilities of their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from burnish.distributed import collectives
from burnish.errors import Diverged
from burnish.models.backbone import TrainableLayers
from burnish.models.batches import CPU, pad_batch, precise
from burnish.models.engine import FastDecoder
from burnish.models.load import Codec
from burnish.models.logprobs import Policy
from burnish.randomness import generator
from burnish.records import Prompt, Rollout


def decoder(top: TrainableLayers, slots: int, width: int, pad_id: int) -> FastDecoder | PlainDecoder:
    """Return a decoder of `slots` sequences of `width` tokens; the engine's wherever it is exact."""
    return FastDecoder(top, slots, width) if top.base.fast else PlainDecoder(top, pad_id)


class PlainDecoder:
    """A decoder of two forward passes, bottom and top, with growing caches; takes prompts once."""

    refills = False

    def __init__(self, top: TrainableLayers, pad_id: int) -> None:
        self.top = top
        self.bottom = top.base.bottom
        self.pad_id = pad_id
        self.caches = [DynamicCache(), DynamicCache()]

    def admit(self, slots: torch.Tensor, prompt_ids: Sequence[Sequence[int]]) -> torch.Tensor:
        """Prefill the prompts and return their last hidden states (S, D)."""
        batch = pad_batch(prompt_ids, [[]] * len(prompt_ids), self.pad_id, self.top.base.device)
        self.mask, self.positions = batch.attention_mask, batch.position_ids[:, -1]
        return self._forward(batch.input_ids, batch.position_ids)

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Feed one token (S,) per slot and return the hidden states (S, D) after it."""
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
        """Keep only these slots."""
        self.mask, self.positions = self.mask[slots], self.positions[slots]
        for cache in self.caches[0 if self.bottom is not None else 1 :]:
            cache.batch_select_indices(slots)

    def take_features(self, slot: int) -> dict[int, torch.Tensor]:
        """Return no activations, as this decoder keeps none."""
        return {}


REFILL_SHARE = 0.25  # share of slots that must be free before waiting prompts are admitted

COMPACT_SHARE = (
    0.75  # without waiting prompts, the batch shrinks when at most this share of its slots is in use
)


@dataclass
class _Book:
    """Buffers of sampled tokens; row n is scratch space for free slots."""

    tokens: torch.Tensor  # (n + 1, T)
    logprobs: torch.Tensor
    entropy: torch.Tensor
    lengths: torch.Tensor  # (n + 1,)
    ended: torch.Tensor
    features: list[dict[int, torch.Tensor]]  # by cut


def sample_rollout(
    policy: Policy,
    codec: Codec,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int,
    batch_size: int,
    seed: int,
    where: Sequence[str | int],
) -> Rollout:
    """Sample one response per prompt, at most `batch_size` at a time.

    The number is smaller where memory runs out. Each response draws from its own row of random
    numbers, which derive from (seed, where). The samples do not depend on `batch_size`, nor on how
    many processes share the rows. A process has activations of its own rows only.
    """
    encoded = [codec.encode_prompt(p) for p in prompts]
    uniforms = torch.rand(
        len(prompts), max_tokens, generator=generator(seed, *where), dtype=torch.float64, device=CPU
    )
    memory = policy.top.base.memory
    features: list[dict[int, torch.Tensor]] = [{} for _ in prompts]

    def sample(own: list[int]) -> tuple[torch.Tensor, ...]:
        asked = [encoded[i] for i in own]
        book = memory.fit(
            "sampling", batch_size, lambda n: sample_ids(policy, codec, asked, uniforms[own], n)
        )
        for i, kept in zip(own, book.features, strict=True):
            features[i] = kept
        return tuple(x[:-1] for x in (book.tokens, book.logprobs, book.entropy, book.lengths, book.ended))

    tokens, logprobs, entropy, lengths, ended = collectives.gather(len(prompts), sample)
    base = policy.top.base
    cuts = base.cuts if base.fast else ()  # the fast decoder kept all of them
    mask = torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]
    ids = [row[:n].tolist() for row, n in zip(tokens, lengths.tolist(), strict=True)]
    return Rollout(
        prompts=list(prompts),
        prompt_ids=encoded,
        response_ids=ids,
        texts=[codec.decode(row) for row in ids],
        ended=ended.tolist(),
        sample_logprobs=logprobs[:, : mask.shape[1]] * mask,
        sample_entropy=entropy[:, : mask.shape[1]] * mask,
        response_mask=mask,
        features={cut: [kept.get(cut) for kept in features] for cut in cuts},
    )


@torch.no_grad()
def sample_ids(
    policy: Policy,
    codec: Codec,
    prompt_ids: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    batch_size: int,
) -> _Book:
    """Sample one response per prompt; `uniforms` (n, T) in [0, 1) decide every token."""
    (n, max_tokens), device = uniforms.shape, policy.top.base.device
    book = _Book(
        tokens=torch.zeros(n + 1, max_tokens, dtype=torch.long, device=device),
        logprobs=torch.zeros(n + 1, max_tokens, device=device),
        entropy=torch.zeros(n + 1, max_tokens, device=device),
        lengths=torch.zeros(n + 1, dtype=torch.long, device=device),
        ended=torch.zeros(n + 1, dtype=torch.bool, device=device),
        features=[{} for _ in range(n)],
    )
    # In single precision from here on, like the probabilities they are compared with.
    padded = torch.cat([uniforms, uniforms.new_zeros(1, max_tokens)]).to(device, torch.float32)
    # Prompts of similar length are prefilled together.
    waiting = sorted(range(n), key=lambda i: -len(prompt_ids[i]))
    width = max(len(p) for p in prompt_ids) + max_tokens
    while waiting:
        slots = min(batch_size, len(waiting))
        machine = decoder(policy.top, slots, width, codec.pad_id)
        _drain(machine, policy, codec, prompt_ids, padded, book, waiting, slots)
    return book


def _drain(
    machine: FastDecoder | PlainDecoder,
    policy: Policy,
    codec: Codec,
    prompt_ids: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    book: _Book,
    waiting: list[int],
    slots: int,
) -> None:
    """Run `machine` until its slots are empty, and remove the sampled rows from `waiting`.

    A decoder that can refill takes all rows of `waiting`.
    """
    n, max_tokens = len(uniforms) - 1, uniforms.shape[1]
    device, memory = policy.top.base.device, policy.top.base.memory
    ends = torch.tensor(sorted(codec.eos_ids), device=device)
    held, waiting[:] = waiting[:slots], waiting[slots:]  # row of each slot's response, n for a free slot
    rows = torch.tensor(held, device=device)
    hidden = machine.admit(torch.arange(slots, device=device), [prompt_ids[i] for i in held])
    while True:
        at = book.lengths[rows].clamp(max=max_tokens - 1)
        tokens, logprobs, entropy = draw(policy, hidden, uniforms[rows, at])
        book.tokens[rows, at], book.logprobs[rows, at], book.entropy[rows, at] = tokens, logprobs, entropy
        book.lengths[rows] += 1
        book.ended[rows] = torch.isin(tokens, ends)
        over = book.ended[rows] | (book.lengths[rows] >= max_tokens)
        # The only place in a step that waits for another device.
        flags = torch.stack([over, torch.isfinite(logprobs)]).tolist()
        if not all(flags[1]):
            raise Diverged(
                "the policy's probabilities are not finite: its weights have diverged; lower the learning rate"
            )
        done = [slot for slot, row in enumerate(held) if row < n and flags[0][slot]]
        finished = len(done) == sum(row < n for row in held)
        if finished and not (machine.refills and (waiting or policy.top.base.cuts)):
            return
        # The last token of a response is fed too: its activations are read by the reward models.
        hidden = machine.step(tokens)
        for slot in done:
            kept = machine.take_features(slot)
            book.features[held[slot]] = {cut: memory.keep(rows) for cut, rows in kept.items()}
            held[slot] = n
        free = [slot for slot, row in enumerate(held) if row == n]
        used = [slot for slot, row in enumerate(held) if row < n]
        if machine.refills and waiting:
            if len(free) >= max(1.0, REFILL_SHARE * len(held)):
                group, waiting[:] = waiting[: len(free)], waiting[len(free) :]
                entered = torch.tensor(free[: len(group)], device=device)
                hidden[entered] = machine.admit(entered, [prompt_ids[i] for i in group])
                for slot, row in zip(free, group, strict=False):
                    held[slot] = row
        elif not used:
            return
        elif len(used) <= COMPACT_SHARE * len(held):
            left = torch.tensor(used, device=device)
            machine.keep(left)
            held, hidden = [held[slot] for slot in used], hidden[left]
        rows = torch.tensor(held, device=device)


def draw(
    policy: Policy, hidden: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample tokens (S,) by inversion of the distribution function at `uniforms` (S,).

    Return them with their log-probabilities and the entropies (nats) of the distributions. Both are
    not finite where the logits are not.
    """
    logits = policy.logits(hidden)
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp_()
    cumulative = weights.cumsum(-1)
    total = cumulative[:, -1:]
    log_normalizer = top + total.log()
    # Strictly below the total, so that the sum exceeds it at a token of nonzero probability.
    target = torch.minimum(
        uniforms[:, None].to(total.dtype) * total, torch.nextafter(total, total.new_zeros(()))
    )
    tokens = torch.searchsorted(cumulative, target, right=True).clamp_(max=logits.shape[-1] - 1)
    logprobs = logits.gather(1, tokens) - log_normalizer
    entropy = log_normalizer - (weights * logits).sum(-1, keepdim=True) / total
    return tokens[:, 0], logprobs[:, 0], entropy[:, 0]
