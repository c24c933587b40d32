"""Preference pairs of token ids: every answer encoded once, however many pairs it is in."""

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
    """N preference pairs, and the sequences of their M <= 2N different answers. `chosen` and `rejected` (N,) are rows
    of these sequences."""

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
        """The pairs in `index` alone, on the same sequences."""
        part = copy.copy(self)
        for name in ("pairs", "groups", "chosen", "rejected"):
            setattr(part, name, [getattr(self, name)[i] for i in index])
        return part

    def sides(self, read: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What was read of every answer (M, ...), for the chosen and for the rejected (N, ...)."""
        return read[self.chosen], read[self.rejected]

    def each(
        self, read: Callable[[Batch], torch.Tensor], index: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(n,) what `read` says, (B,) a batch, of the chosen and of the rejected answer of the n pairs in `index`, all
        in one batch; differentiable."""
        rows = self._rows(index)
        place = {row: i for i, row in enumerate(rows)}
        values = self.sequences.each(read, len(rows), rows)
        return (
            values[[place[self.chosen[i]] for i in index]],
            values[[place[self.rejected[i]] for i in index]],
        )

    def _rows(self, index: Sequence[int]) -> list[int]:
        return list(dict.fromkeys([*(self.chosen[i] for i in index), *(self.rejected[i] for i in index)]))

    def parted(self, index: Sequence[int], size: int) -> Iterator[list[int]]:
        """The pairs in `index`, in their order, in parts of at most `size` different answers; a pair at least."""
        part: list[int] = []
        for i in index:
            if part and len(self._rows([*part, i])) > size:
                yield part
                part = []
            part.append(i)
        if part:
            yield part
