"""Preference pairs of token ids, with every answer encoded once."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch

from burnish.models.backbone import Backbone
from burnish.models.batches import Batch
from burnish.models.load import Codec
from burnish.models.sequences import Sequences
from burnish.records import Preference


class EncodedPairs:
    """N preference pairs, and the sequences of their M <= 2N different answers.

    `chosen` and `rejected` (N,) are row numbers of these sequences.
    """

    def __init__(self, base: Backbone, codec: Codec, pairs: Sequence[Preference]) -> None:
        self.pairs = list(pairs)
        self.groups = [p.prompt.group for p in self.pairs]
        rows: dict[tuple[str, str, bool], int] = {}
        prompts, responses = [], []

        def row(pair: Preference, text: str, ended: bool) -> int:
            key = (pair.prompt.id, text, ended)
            if key not in rows:
                rows[key] = len(rows)
                prompts.append(codec.encode_prompt(pair.prompt))
                responses.append(codec.encode_response(text, end=ended, to=pair.prompt))
            return rows[key]

        self.chosen = [row(p, p.chosen, p.chosen_ended) for p in self.pairs]
        self.rejected = [row(p, p.rejected, p.rejected_ended) for p in self.pairs]
        self.sequences = Sequences(base, prompts, responses, codec.pad_id)

    def __len__(self) -> int:
        return len(self.pairs)

    def only(self, index: Sequence[int]) -> EncodedPairs:
        """Return the pairs in `index` only, on the same sequences."""
        part = copy.copy(self)
        for name in ("pairs", "groups", "chosen", "rejected"):
            setattr(part, name, [getattr(self, name)[i] for i in index])
        return part

    def sides(self, read: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Split values (M, ...) of all answers into those of the chosen and the rejected (N, ...)."""
        return read[self.chosen], read[self.rejected]

    def each(
        self, read: Callable[[Batch], torch.Tensor], index: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return `read` (n,) of the chosen and of the rejected answers of the n pairs in `index`.

        `read` returns (B,) for a batch. Every answer is read once; the results are differentiable.
        """
        rows = self.rows_of(index)
        chosen, rejected = self.sequences.each(read, len(set(rows)), rows).chunk(2)
        return chosen, rejected

    def rows_of(self, index: Sequence[int]) -> list[int]:
        """Return the rows (2n) of the chosen answers of the n pairs, then those of the rejected ones."""
        return [*(self.chosen[i] for i in index), *(self.rejected[i] for i in index)]

    def parted(self, index: Sequence[int], size: int) -> Iterator[list[int]]:
        """Yield parts of `index`, in order: at most `size` different answers, at least one pair."""
        part: list[int] = []
        for i in index:
            if part and len(set(self.rows_of([*part, i]))) > size:
                yield part
                part = []
            part.append(i)
        if part:
            yield part
