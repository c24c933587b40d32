"""Batched sampling with a KV cache; rows that have finished leave the batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import DynamicCache

from burnish.errors import Diverged
from burnish.models.batches import micro_batches, pad_batch
from burnish.models.load import Codec
from burnish.models.logprobs import Policy
from burnish.randomness import generator
from burnish.records import Prompt, Rollout

COMPACT_SHARE = 0.7  # the batch is compacted when this share of its rows, or less, is still going


class _Stepper:
    """One decoding batch: bottom and top of a policy, each with its own cache."""

    def __init__(self, policy: Policy, mask: torch.Tensor) -> None:
        self.policy = policy
        self.bottom = policy.top.base.bottom
        self.mask = mask
        self.caches = [DynamicCache(), DynamicCache()]

    def step(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Feed (B, S) new tokens, return logits (B, V) after the last of them."""
        where = {"attention_mask": self.mask, "position_ids": positions, "use_cache": True}
        inputs = {"input_ids": ids}
        if self.bottom is not None:
            below = self.bottom(**inputs, **where, past_key_values=self.caches[0])
            inputs = {"inputs_embeds": below.last_hidden_state}
        out = self.policy.top(**inputs, **where, past_key_values=self.caches[1])
        return self.policy.logits(out.last_hidden_state[:, -1])

    def keep(self, rows: torch.Tensor) -> None:
        self.mask = self.mask[rows]
        for cache in self.caches[0 if self.bottom is not None else 1 :]:
            cache.batch_select_indices(rows)

    def grow(self) -> None:
        self.mask = torch.cat([self.mask, torch.ones(len(self.mask), 1, dtype=self.mask.dtype)], 1)


@torch.no_grad()
def sample_ids(
    policy: Policy, codec: Codec, prompt_ids: Sequence[Sequence[int]], max_tokens: int, rng: torch.Generator
) -> tuple[list[list[int]], list[list[float]], list[bool]]:
    """Sample one response per prompt. Returns ids (EOS included), their log-probabilities under the sampling
    distribution, and whether each ended by itself within `max_tokens`."""
    n = len(prompt_ids)
    batch = pad_batch(prompt_ids, [[] for _ in range(n)], codec.pad_id)
    stepper = _Stepper(policy, batch.attention_mask)
    logits = stepper.step(batch.input_ids, batch.position_ids)
    positions = batch.position_ids[:, -1]
    alive = torch.arange(n)
    ids: list[list[int]] = [[] for _ in range(n)]
    logprobs: list[list[float]] = [[] for _ in range(n)]
    ended = [False] * n
    going = torch.ones(n, dtype=torch.bool)  # of the rows in `alive`
    ends = torch.tensor(sorted(codec.eos_ids))
    for step in range(max_tokens):
        log_p = logits.log_softmax(-1)  # (b, V)
        if not torch.isfinite(log_p).all():
            raise Diverged(
                "the policy's probabilities are not finite: its weights have diverged; lower the learning rate"
            )
        token = torch.multinomial(log_p.exp(), 1, generator=rng)[:, 0]
        picked = log_p.gather(1, token[:, None])[:, 0]
        stops = torch.isin(token, ends)
        for row, t, lp, on, stop in zip(
            alive.tolist(), token.tolist(), picked.tolist(), going.tolist(), stops.tolist(), strict=True
        ):
            if on:
                ids[row].append(t)
                logprobs[row].append(lp)
                ended[row] = stop
        going = going & ~stops
        left = int(going.sum())
        if left == 0 or step == max_tokens - 1:
            break
        if left <= COMPACT_SHARE * len(alive):
            rows = going.nonzero()[:, 0]
            stepper.keep(rows)
            alive, token, positions, going = alive[rows], token[rows], positions[rows], going[rows]
        positions = positions + 1
        stepper.grow()
        logits = stepper.step(token[:, None], positions[:, None])
    return ids, logprobs, ended


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
    """Sample one response per prompt in batches of `batch_size`; randomness comes from (seed, where, batch)."""
    encoded = [codec.encode_prompt(p) for p in prompts]
    ids: list[list[int]] = []
    logprobs: list[list[float]] = []
    ended: list[bool] = []
    for index, rows in enumerate(micro_batches(len(prompts), batch_size)):
        rng = generator(seed, *where, index)
        out = sample_ids(policy, codec, [encoded[i] for i in rows.tolist()], max_tokens, rng)
        ids += out[0]
        logprobs += out[1]
        ended += out[2]
    width = max(len(row) for row in ids)
    mask = torch.zeros(len(ids), width, dtype=torch.bool)
    values = torch.zeros(len(ids), width)
    for row, lps in enumerate(logprobs):
        mask[row, : len(lps)] = True
        values[row, : len(lps)] = torch.tensor(lps)
    texts = [codec.decode(row) for row in ids]
    return Rollout(list(prompts), encoded, ids, texts, ended, values, mask)
