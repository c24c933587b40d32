"""Ragged prompts and responses, encoded once, with activations below the cut kept for every head that reads them."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import torch

from burnish.models.batches import Batch, micro_batches, pad_batch
from burnish.models.engine import inner
from burnish.models.load import Codec
from burnish.models.shared_base import Base, Top
from burnish.records import Preference, Rollout

PROMPTS_AT_ONCE = 32  # with all their responses, where activations are computed


class Sequences:
    """N prompt-response pairs of token ids on a base. Batches come out padded by length, with the base's
    activations attached when it is cut (N x tokens x D x 4 bytes, where `Base.memory` has room for them); rows whose
    activations are already there are given them in `features`."""

    def __init__(
        self,
        base: Base,
        prompt_ids: Sequence[Sequence[int]],
        response_ids: Sequence[Sequence[int]],
        pad_id: int,
        *,
        features: Sequence[torch.Tensor | None] | None = None,
    ) -> None:
        self.base = base
        self.prompt_ids = prompt_ids
        self.response_ids = response_ids
        self.pad_id = pad_id
        self.features: list[torch.Tensor] | None = None
        self.layers_done = 0
        if base.cut:
            known = list(features or [None] * len(prompt_ids))
            self.features = base.memory.fit(
                "activations", PROMPTS_AT_ONCE, lambda n: self._features(known, n)
            )

    @classmethod
    def of(cls, base: Base, rollout: Rollout, pad_id: int) -> Sequences:
        """The sequences of a rollout, with the activations that sampling kept; where it could keep none they are
        computed once, and kept with the rollout from then on."""
        found = cls(base, rollout.prompt_ids, rollout.response_ids, pad_id, features=rollout.features)
        rollout.features = found.features
        return found

    @classmethod
    def of_pairs(cls, base: Base, codec: Codec, pairs: Sequence[Preference]) -> Sequences:
        """N preference pairs as 2N sequences: row i is the chosen, row N + i the rejected response."""
        prompts = [codec.encode_prompt(p.prompt) for p in pairs]
        chosen = [codec.encode_response(p.chosen, end=p.chosen_ended, to=p.prompt) for p in pairs]
        rejected = [codec.encode_response(p.rejected, end=p.rejected_ended, to=p.prompt) for p in pairs]
        return cls(base, prompts * 2, chosen + rejected, codec.pad_id)

    def lifted(self, top: Top, batch_size: int) -> Sequences:
        """The same sequences with the frozen layers of `top` run on their activations once, for this top alone; as
        they are when it has none, or when its model must be run whole."""
        if not (self.base.fast and 0 < top.frozen_layers < len(inner(top.body).layers)):
            return self
        features: list[torch.Tensor | None] = [None] * len(self)
        for rows, batch in self.batches(batch_size):
            for row, hidden, mask in zip(
                rows, top.run_frozen(batch), batch.attention_mask.bool(), strict=True
            ):
                features[row] = self.base.memory.keep(hidden[mask])
        lifted = copy.copy(self)
        lifted.features = [f for f in features if f is not None]
        lifted.layers_done = top.frozen_layers
        return lifted

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def _features(self, kept: list[torch.Tensor | None], batch_size: int) -> list[torch.Tensor]:
        """Rows with the same prompt are computed together: its tokens once."""
        together = defaultdict[tuple[int, ...], list[int]](list)
        for row, features in enumerate(kept):
            if features is None:
                together[tuple(self.prompt_ids[row])].append(row)
        groups = list(together.values())
        after = [sum(len(self.response_ids[row]) for row in group) for group in groups]
        for chosen in micro_batches([*map(len, together)], after, batch_size, range(len(groups))):
            rows = [row for i in chosen for row in groups[i]]
            prompts, responses = ([ids[row] for row in rows] for ids in (self.prompt_ids, self.response_ids))
            for row, features in zip(
                rows, self.base.row_features(prompts, responses, self.pad_id), strict=True
            ):
                kept[row] = self.base.memory.keep(features)
        return [k for k in kept if k is not None]

    def _pad(self, rows: Sequence[int]) -> Batch:
        return pad_batch(
            [self.prompt_ids[i] for i in rows],
            [self.response_ids[i] for i in rows],
            self.pad_id,
            self.base.device,
        )

    def batch(self, rows: Sequence[int]) -> Batch:
        """The named rows as one padded batch, features attached."""
        batch = self._pad(rows)
        if self.features is None:
            return batch
        width = self.features[rows[0]].shape[-1]
        device = self.base.device
        features = torch.zeros(*batch.attention_mask.shape, width, device=device)
        features[batch.attention_mask.bool()] = torch.cat([self.features[i].to(device) for i in rows])
        return batch.with_features(features, self.layers_done)

    def batches(self, size: int, rows: Sequence[int] | None = None) -> Iterator[tuple[list[int], Batch]]:
        """Batches of at most `size` neighbours in length that cover `rows` (or all) once, with their row numbers."""
        for chosen in self._groups(size, range(len(self)) if rows is None else rows):
            yield chosen, self.batch(chosen)

    def each(self, read: Callable[[Batch], torch.Tensor], size: int, rows: Sequence[int]) -> torch.Tensor:
        """(len(rows),) what `read` says of each row, (B,) a batch, in the order of `rows`; differentiable."""
        pieces, places = [], defaultdict[int, list[int]](list)
        position = 0
        for chosen, batch in self.batches(size, rows):
            pieces.append(read(batch))
            for row in chosen:
                places[row].append(position)
                position += 1
        return torch.cat(pieces)[[places[row].pop() for row in rows]]

    def _groups(self, size: int, rows: Sequence[int]) -> Iterator[list[int]]:
        return micro_batches(
            [len(p) for p in self.prompt_ids], [len(r) for r in self.response_ids], size, rows
        )
