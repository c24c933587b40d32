"""Decoders that refill finished slots, and rollouts with log-probabilities of their tokens."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from transformers import DynamicCache

from burnish.distributed import collectives
from burnish.errors import Diverged
from burnish.models.backbone import TrainableLayers
from burnish.models.batches import CPU, pad_batch, precise
from burnish.models.device import traits
from burnish.models.engine import FastDecoder, padded_right
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
    compact_share = 0.75  # a slot less costs a copy of all others

    def __init__(self, top: TrainableLayers, pad_id: int) -> None:
        self.top = top
        self.bottom = top.base.bottom
        self.pad_id = pad_id
        self.caches = [DynamicCache(), DynamicCache()]

    def admit(self, slots: Sequence[int], prompt_ids: Sequence[Sequence[int]]) -> torch.Tensor:
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

    def keep(self, slots: Sequence[int]) -> None:
        """Keep only these slots."""
        index = torch.tensor(slots, device=CPU).to(self.mask.device)
        self.mask, self.positions = self.mask[index], self.positions[index]
        for cache in self.caches[0 if self.bottom is not None else 1 :]:
            cache.batch_select_indices(index)

    def take_features(self, slot: int, length: int) -> dict[int, torch.Tensor]:
        """Return no activations, as this decoder keeps none."""
        return {}

    def release(self, slots: Sequence[int]) -> None:
        """Do nothing: the slots of finished responses are fed until `keep` drops them."""


REFILL_SHARE = 0.25  # share of slots that must be free before waiting prompts are admitted


@dataclass
class Samples:
    """Sampled responses: `ids` with EOS included, and whether each `ended`.

    `logprobs` and `entropy` are (n, T) in nats, 0 after the end. `features` are activations by cut.
    """

    ids: list[list[int]]
    ended: list[bool]
    logprobs: torch.Tensor
    entropy: torch.Tensor
    features: list[dict[int, torch.Tensor]]


@dataclass
class _Progress:
    """Tokens sampled so far, on the host, and what was drawn with them, on the device.

    `places` gives the position of each token of a row in the concatenated `drawn`.
    """

    ids: list[list[int]]
    ended: list[bool]
    features: list[dict[int, torch.Tensor]]
    places: list[list[int]]
    drawn: list[torch.Tensor]  # log-probabilities and entropies, each (2, tokens * slots)
    total: int = 0

    def samples(self, max_tokens: int) -> Samples:
        """Return the responses; the values are put into rows by one gather."""
        device = self.drawn[0].device
        index = torch.full((len(self.ids), max_tokens), self.total, dtype=torch.long, device=CPU)
        for row, places in zip(index, self.places, strict=True):
            row[: len(places)] = torch.tensor(places, device=CPU)
        none = self.drawn[0].new_zeros(2, 1)  # of a token after the end
        logprobs, entropy = torch.cat([*self.drawn, none], 1)[:, index.to(device)]
        return Samples(self.ids, self.ended, logprobs, entropy, self.features)


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
        found = memory.fit(
            "sampling", batch_size, lambda n: sample_ids(policy, codec, asked, uniforms[own], n)
        )
        for i, kept in zip(own, found.features, strict=True):
            features[i] = kept
        lengths = torch.tensor([len(row) for row in found.ids], device=CPU)
        tokens = padded_right([[*row, *[0] * (max_tokens - len(row))] for row in found.ids], CPU)
        return tokens, lengths, torch.tensor(found.ended, device=CPU), found.logprobs, found.entropy

    tokens, lengths, ended, logprobs, entropy = collectives.gather(len(prompts), sample)
    base = policy.top.base
    cuts = base.cuts if base.fast else ()  # the fast decoder kept all of them
    longest = int(lengths.max())
    mask = torch.arange(longest, device=CPU) < lengths[:, None]
    ids = [row[:n].tolist() for row, n in zip(tokens, lengths.tolist(), strict=True)]
    return Rollout(
        prompts=list(prompts),
        prompt_ids=encoded,
        response_ids=ids,
        texts=[codec.decode(row) for row in ids],
        ended=ended.tolist(),
        sample_logprobs=logprobs[:, :longest],
        sample_entropy=entropy[:, :longest],
        response_mask=mask.to(logprobs.device),
        features={cut: [kept.get(cut) for kept in features] for cut in cuts},
    )


@torch.no_grad()
def sample_ids(
    policy: Policy,
    codec: Codec,
    prompt_ids: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    batch_size: int,
) -> Samples:
    """Sample one response per prompt; `uniforms` (n, T) in [0, 1) decide every token."""
    n, max_tokens = uniforms.shape
    policy = policy.for_sampling()
    progress = _Progress(
        [[] for _ in range(n)], [False] * n, [{} for _ in range(n)], [[] for _ in range(n)], []
    )
    # Prompts of similar length are prefilled together.
    waiting = sorted(range(n), key=lambda i: -len(prompt_ids[i]))
    # A response that ends between two looks is fed up to the second.
    width = max(map(len, prompt_ids)) + max_tokens + traits(policy.top.base.device).look - 1
    while waiting:
        slots = min(batch_size, len(waiting))
        machine = decoder(policy.top, slots, width, codec.pad_id)
        _drain(machine, policy, codec, prompt_ids, uniforms, progress, waiting, slots)
    return progress.samples(max_tokens)


def _drain(
    machine: FastDecoder | PlainDecoder,
    policy: Policy,
    codec: Codec,
    prompt_ids: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    progress: _Progress,
    waiting: list[int],
    slots: int,
) -> None:
    """Run `machine` until its slots are empty, and remove the sampled rows from `waiting`.

    A decoder that can refill takes all rows of `waiting`. The host reads the sampled tokens at
    intervals (`Traits.look`), and decides only then which slots are free.
    """
    max_tokens, memory = uniforms.shape[1], policy.top.base.memory
    held: list[int | None] = [*waiting[:slots]]  # row of each slot's response
    del waiting[:slots]
    hidden = machine.admit(range(slots), [prompt_ids[i] for i in held if i is not None])
    while True:
        found, hidden = _block(machine, policy, hidden, held, uniforms, progress)
        done = []
        for slot, row in enumerate(held):
            if row is not None and _take(found[slot], progress, row, max_tokens, codec.eos_ids):
                length = len(prompt_ids[row]) + len(progress.ids[row])
                kept = machine.take_features(slot, length)
                progress.features[row] = {cut: memory.keep(x) for cut, x in kept.items()}
                held[slot] = None
                done.append(slot)
        if done:
            machine.release(done)
        free = [slot for slot, row in enumerate(held) if row is None]
        if machine.refills and waiting:
            if len(free) >= max(1.0, REFILL_SHARE * len(held)):
                group, waiting[:] = waiting[: len(free)], waiting[len(free) :]
                entered = free[: len(group)]
                index = torch.tensor(entered, device=CPU).to(hidden.device)
                hidden[index] = machine.admit(entered, [prompt_ids[i] for i in group])
                for slot, row in zip(entered, group, strict=True):
                    held[slot] = row
        elif len(free) == len(held):
            return
        elif free and len(held) - len(free) <= machine.compact_share * len(held):
            used = _compacted(held)
            machine.keep(used)
            held = [held[slot] for slot in used]
            hidden = hidden[torch.tensor(used, device=CPU).to(hidden.device)]


def _compacted(held: Sequence[int | None]) -> list[int]:
    """Return the slots in use; each stays in its place, or fills a free place below the others."""
    used = [slot for slot, row in enumerate(held) if row is not None]
    above = used[::-1]
    return [slot if held[slot] is not None else above.pop(0) for slot in range(len(used))]


def _block(
    machine: FastDecoder | PlainDecoder,
    policy: Policy,
    hidden: torch.Tensor,
    held: Sequence[int | None],
    uniforms: torch.Tensor,
    progress: _Progress,
) -> tuple[list[list[int]], torch.Tensor]:
    """Sample up to the next look; return the tokens of every slot, and the hidden states (S, D) after them.

    The last token of a response is fed too: its activations are read by the reward models. Raise
    Diverged if a log-probability is not finite.
    """
    max_tokens, device = uniforms.shape[1], hidden.device
    lengths = [max_tokens if row is None else len(progress.ids[row]) for row in held]
    steps = min(traits(device).look, max_tokens - min(lengths))
    rows = torch.tensor([0 if row is None else row for row in held], device=CPU)
    at = torch.tensor(lengths, device=CPU)[:, None] + torch.arange(steps, device=CPU)
    # In single precision, like the probabilities they are compared with.
    drawn_at = uniforms[rows[:, None], at.clamp(max=max_tokens - 1)].T.float().contiguous().to(device)
    drawn = []
    for step in range(steps):
        drawn.append(draw(policy, hidden, drawn_at[step]))
        hidden = machine.step(drawn[-1][0])
    tokens, logprobs, entropy = (torch.stack(values) for values in zip(*drawn, strict=True))
    # The only wait for the device.
    *found, finite = torch.cat([tokens, torch.isfinite(logprobs).all(0, keepdim=True)]).tolist()
    if not all(finite):
        raise Diverged(
            "the policy's probabilities are not finite: its weights have diverged; lower the learning rate"
        )
    for slot, row in enumerate(held):
        if row is not None:
            places = (progress.total + step * len(held) + slot for step in range(steps))
            progress.places[row] += places
    progress.drawn.append(torch.stack([logprobs.flatten(), entropy.flatten()]))
    progress.total += steps * len(held)
    return [list(column) for column in zip(*found, strict=True)], hidden


def _take(
    tokens: Sequence[int], progress: _Progress, row: int, max_tokens: int, eos_ids: Collection[int]
) -> bool:
    """Add tokens to a row up to its end; return whether the response is complete."""
    ids = progress.ids[row]
    for token in tokens:
        ids.append(token)
        progress.ended[row] = token in eos_ids
        if progress.ended[row] or len(ids) == max_tokens:
            del progress.places[row][len(ids) :]
            return True
    return False


def draw(
    policy: Policy, hidden: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sample tokens (S,) by inversion of the distribution function at `uniforms` (S,).

    Return them with their log-probabilities and the entropies (nats) of the distributions. Both are
    not finite where the logits are not. The function is inverted in two steps, over blocks of the
    vocabulary and within one block, so that only the sums of blocks are accumulated.
    """
    logits = policy.logits(hidden)
    p = logits.softmax(-1)
    size = math.isqrt(p.shape[1])
    whole = p.shape[1] // size * size
    sums = torch.cat([p[:, :whole].unflatten(1, (-1, size)).sum(-1), p[:, whole:].sum(-1, keepdim=True)], 1)
    total = sums.sum(-1, keepdim=True)  # 1 but for rounding, which would be a bias of every token
    block, rest = _invert(sums, uniforms[:, None].to(p.dtype) * total)
    columns = block * size + torch.arange(size, device=p.device)
    inside = p.gather(1, columns.clamp(max=p.shape[1] - 1)) * (columns < p.shape[1])
    tokens = (block * size + _invert(inside, rest)[0]).clamp_(max=p.shape[1] - 1)
    logprobs = (p.gather(1, tokens) / total).log()
    entropy = logits.gather(1, tokens) - logprobs - (p * logits).sum(-1, keepdim=True) / total
    return tokens[:, 0], logprobs[:, 0], entropy[:, 0]


def _invert(weights: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the columns (S, 1) at which the running sums of `weights` (S, n) exceed `target` (S, 1).

    Return also what of the target is left at them. A column of weight 0 is never returned.
    """
    running = weights.cumsum(-1)
    total = running[:, -1:]
    # Strictly below the total, so that a column exceeds it.
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    found = torch.searchsorted(running, target, right=True).clamp_(max=weights.shape[1] - 1)
    return found, (target - running.gather(1, found) + weights.gather(1, found)).clamp_(min=0)
