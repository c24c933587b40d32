"""Padded batches; padding goes by length, never by token value or the tokenizer's side."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

SHORT = 8  # times as many rows as `size` may be in one forward pass if they are short
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

    `text_index` (M,) are the positions of all M tokens in the flattened (B, P + T), and
    `response_index` (N,) those of the N response tokens in the flattened (B, T). A mask as an index
    would make the host wait for the device. `rows` (B,) are the rows' numbers in what the batch was
    taken from.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    position_ids: torch.Tensor
    response_mask: torch.Tensor
    text_index: torch.Tensor
    response_index: torch.Tensor
    rows: torch.Tensor
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

    def of_responses(self, x: torch.Tensor) -> torch.Tensor:
        """Return the entries (N, ...) of x (B, T, ...) at response tokens, row by row."""
        return x.flatten(0, 1).index_select(0, self.response_index)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Return (B, T) with the values (N,) at response tokens, and 0 elsewhere."""
        shape = self.response_mask.shape
        return values.new_zeros(shape.numel()).index_copy(0, self.response_index, values).view(shape)

    def with_features(self, features: torch.Tensor | None, layers_done: int = 0) -> Batch:
        """Return this batch with other activations."""
        return replace(self, features=features, layers_done=layers_done)


def pad_batch(
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    pad_id: int,
    device: torch.device = CPU,
    rows: Sequence[int] | None = None,
) -> Batch:
    """Pad non-empty prompts and possibly empty responses into a batch on a device.

    `rows` are the numbers of the rows, by default 0, 1, ...
    """
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
    numbers = torch.tensor(range(len(ids)) if rows is None else rows, dtype=torch.long, device=CPU)
    indices = [mask.flatten().nonzero()[:, 0], mask[:, width:].flatten().nonzero()[:, 0], numbers]
    # Two copies to the device a batch.
    text, responses, numbers = torch.cat(indices).to(device).split([len(x) for x in indices])
    ids, mask, positions = torch.stack([ids, mask, (mask.cumsum(1) - 1).clamp(min=0)]).to(device)
    return Batch(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        response_mask=mask[:, width:].bool(),
        text_index=text,
        response_index=responses,
        rows=numbers,
        prompt_width=width,
    )


def micro_batches(
    prompt_lengths: Sequence[int],
    response_lengths: Sequence[int],
    size: int,
    rows: Sequence[int],
    price: int,
) -> Iterator[list[int]]:
    """Yield groups that cover `rows` once, at the lowest cost.

    A group has at most as many tokens, padding included, as `size` rows with the longest prompt and
    the longest response, and at most `SHORT` times as many rows. Groups are cut from the order of
    response length. The cost is the tokens of all groups plus `price`, in tokens, for each group
    (dynamic programming).
    """
    order = sorted(rows, key=lambda i: (response_lengths[i], prompt_lengths[i], i))
    most = size * sum(max((of[i] for i in order), default=0) for of in (prompt_lengths, response_lengths))
    best = [0.0] * (len(order) + 1)  # cost of the first n rows
    start = [0] * (len(order) + 1)  # where the last group of the first n rows begins
    for n in range(1, len(order) + 1):
        best[n], prompt, response = float("inf"), 0, 0
        for first in range(n - 1, max(-1, n - 1 - SHORT * size), -1):
            prompt = max(prompt, prompt_lengths[order[first]])
            response = max(response, response_lengths[order[first]])
            tokens = (n - first) * (prompt + response)
            if n - first > 1 and (tokens > most or tokens + price > best[n]):
                break  # a longer group costs more still
            cost = best[first] + tokens + price
            if cost < best[n]:
                best[n], start[n] = cost, first
    groups = []
    end = len(order)
    while end:
        groups.append(order[start[end] : end])
        end = start[end]
    yield from reversed(groups)
