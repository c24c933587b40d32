"""Padded batches; padding goes by length, never by token value or the tokenizer's side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

GROUP_PRICE = 64  # cost of one more forward pass, in tokens
CPU = torch.device("cpu")  # device that assembles token ids and draws every random number
SUPPRESSED = -1e9  # finite, so that 0 * SUPPRESSED stays 0, and a fully masked row gives no nan

Positions = slice | torch.Tensor
"""Columns to read: the same slice in every row, or one column per row (B,)."""


T = TypeVar("T", torch.Tensor, nn.Module)


def precise(x: T) -> T:
    """Cast to single precision; keep double precision."""
    first = x if isinstance(x, torch.Tensor) else next(x.parameters())
    return x if first.dtype.itemsize > 4 else x.float()


def read(x: torch.Tensor, at: Positions) -> torch.Tensor:
    """Return the columns of x (B, L, ...) at the positions, as (B, Q, ...)."""
    return x[:, at] if isinstance(at, slice) else x[torch.arange(len(x), device=x.device), at][:, None]


@dataclass(frozen=True)
class Batch:
    """Prompts padded on the left, responses on the right: every response starts at column P.

    `input_ids`, `attention_mask` and `position_ids` are (B, P + T). `response_mask` (B, T) is True
    on response tokens, EOS included. `features` (B, P + T, D) are activations below the cut of a
    shared base, or None. `layers_done` layers above the cut have already been run on them.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    response_mask: torch.Tensor
    prompt_width: int
    features: torch.Tensor | None = None
    layers_done: int = 0

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @property
    def response_ids(self) -> torch.Tensor:
        """Token ids (B, T) of the responses."""
        return self.input_ids[:, self.prompt_width :]

    @property
    def before_response(self) -> slice:
        """Columns that predict the response tokens."""
        return slice(self.prompt_width - 1, self.input_ids.shape[1] - 1)

    @property
    def response(self) -> slice:
        """Columns of the response tokens."""
        return slice(self.prompt_width, None)

    @property
    def last_index(self) -> torch.Tensor:
        """Column (B,) of each row's last real token."""
        return self.prompt_width - 1 + self.response_mask.sum(1)

    def with_features(self, features: torch.Tensor | None, layers_done: int = 0) -> Batch:
        """Return this batch with other activations."""
        return replace(self, features=features, layers_done=layers_done)


def pad_batch(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device = CPU,
) -> Batch:
    """Pad non-empty prompts and possibly empty responses into a batch on a device."""
    assert len(prompt_ids) == len(response_ids) > 0
    assert all(len(p) > 0 for p in prompt_ids), "a prompt needs at least one token"
    width = max(len(p) for p in prompt_ids)
    length = max(len(r) for r in response_ids)
    ids = torch.full((len(prompt_ids), width + length), pad_id, dtype=torch.long, device=CPU)
    mask = torch.zeros(len(prompt_ids), width + length, dtype=torch.long, device=CPU)
    for row, (prompt, response) in enumerate(zip(prompt_ids, response_ids, strict=True)):
        start, stop = width - len(prompt), width + len(response)
        ids[row, start:stop] = torch.tensor([*prompt, *response], dtype=torch.long, device=CPU)
        mask[row, start:stop] = 1
    ids, mask = ids.to(device), mask.to(device)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        response_mask=mask[:, width:].bool(),
        prompt_width=width,
    )


def micro_batches(
    prompt_lengths: Sequence[int], response_lengths: Sequence[int], size: int, rows: Sequence[int]
) -> Iterator[list[int]]:
    """Yield groups of at most `size` rows that cover `rows` once, at the lowest cost.

    Groups are cut from the order of response length. The cost is the tokens of all groups, padding
    included, plus a fixed price per group (dynamic programming).
    """
    order = sorted(rows, key=lambda i: (response_lengths[i], prompt_lengths[i], i))
    best = [0.0] * (len(order) + 1)  # cost of the first n rows
    start = [0] * (len(order) + 1)  # where the last group of the first n rows begins
    for n in range(1, len(order) + 1):
        best[n], prompt, response = float("inf"), 0, 0
        for first in range(n - 1, max(-1, n - 1 - size), -1):
            prompt = max(prompt, prompt_lengths[order[first]])
            response = max(response, response_lengths[order[first]])
            cost = best[first] + (n - first) * (prompt + response) + GROUP_PRICE
            if cost < best[n]:
                best[n], start[n] = cost, first
    groups = []
    end = len(order)
    while end:
        groups.append(order[start[end] : end])
        end = start[end]
    yield from reversed(groups)
