"""Encoded prompts and responses, with activations below the cut kept for all heads."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence

import torch

from burnish.distributed import collectives
from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import CPU, Batch, micro_batches, pad_batch
from burnish.models.engine import inner
from burnish.records import Rollout

PROMPTS_AT_ONCE = 32  # with all their responses, when activations are computed


class Sequences:
    """N prompt-response pairs of token ids on a base.

    Batches are padded by length. If the base is cut, they carry its activations (N x tokens x D x 4
    bytes, if `Backbone.memory` has space for them). These are computed unless `features` gives
    them. Each of several processes has activations only of the rows that it works on.
    """

    def __init__(
        self,
        base: Backbone,
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
        self.layers_done = 0
        self._rollout: Rollout | None = None
        self._elsewhere: dict[int, Sequences] = {}  # by cut
        self._features: list[torch.Tensor | None] = [*(features or [None] * len(prompt_ids))]

    @classmethod
    def of(cls, base: Backbone, rollout: Rollout, pad_id: int) -> Sequences:
        """Return the sequences of a rollout of `base`, or of the whole it is part of.

        They carry the activations that sampling kept. If it kept none at this cut, those of all
        parts are computed once and stored in the rollout.
        """
        ids = (rollout.prompt_ids, rollout.response_ids)
        if base.cut and base.cut not in rollout.features:
            missing = (base.whole.cuts | {base.cut}) - rollout.features.keys()
            own = collectives.mine(range(len(rollout)))
            found = collectives.locally(
                lambda: (
                    activations(base.whole, _rows(own, ids[0]), _rows(own, ids[1]), pad_id, missing)
                    if own
                    else {}
                )
            )
            for cut in missing:
                kept = dict(zip(own, found.get(cut, ()), strict=True))
                rollout.features[cut] = [kept.get(row) for row in range(len(rollout))]
        sequences = cls(base, *ids, pad_id, features=rollout.features.get(base.cut))
        sequences._rollout = rollout
        return sequences

    def at(self, base: Backbone) -> Sequences:
        """Return the same sequences on another part of the same whole base, always the same object.

        Sequences of a rollout share its activations.
        """
        if base.cut == self.base.cut:
            return self
        if base.cut not in self._elsewhere:
            if self._rollout is not None:
                self._elsewhere[base.cut] = Sequences.of(base, self._rollout, self.pad_id)
            else:
                self._elsewhere[base.cut] = Sequences(base, self.prompt_ids, self.response_ids, self.pad_id)
        return self._elsewhere[base.cut]

    @property
    def features(self) -> list[torch.Tensor] | None:
        """Activations (length, D) at the cut for every row; None without a cut."""
        return self.kept(range(len(self))) if self.base.cut else None

    def kept(self, rows: Sequence[int]) -> list[torch.Tensor]:
        """Return activations (length, D) below the cut of the named rows.

        They are computed on first request, with those of all other rows that this process works on.
        Without a cut the list is empty.
        """
        if self.base.cut and any(self._features[row] is None for row in rows):
            wanted = (
                {*rows, *collectives.mine(range(len(self)))} if collectives.size() > 1 else range(len(self))
            )
            missing = [row for row in sorted(wanted) if self._features[row] is None]
            ids = _rows(missing, self.prompt_ids), _rows(missing, self.response_ids)
            found = activations(self.base, *ids, self.pad_id, {self.base.cut})[self.base.cut]
            for row, features in zip(missing, found, strict=True):
                self._features[row] = features
        return [f for row in rows if (f := self._features[row]) is not None]

    def with_frozen_layers_run(self, top: TrainableLayers, batch_size: int) -> Sequences:
        """Return the same sequences with the frozen layers of `top` run once, for this top alone.

        Return them unchanged if the top has no frozen layers, or if its model must be run whole.
        """
        if not (self.base.fast and 0 < top.frozen_layers < len(inner(top.body).layers)):
            return self
        features: list[torch.Tensor | None] = [None] * len(self)
        for rows, batch in self.batches(batch_size, collectives.mine(range(len(self)))):
            for row, hidden in zip(rows, top.run_frozen(batch), strict=True):
                start = batch.prompt_width - len(self.prompt_ids[row])
                stop = batch.prompt_width + len(self.response_ids[row])
                features[row] = self.base.memory.keep(hidden[start:stop].clone())
        with_frozen_layers_run = copy.copy(self)
        with_frozen_layers_run._features = features
        with_frozen_layers_run.layers_done = top.frozen_layers
        return with_frozen_layers_run

    @property
    def response_lengths(self) -> list[int]:
        """Number of tokens of every response, its end included."""
        return [len(ids) for ids in self.response_ids]

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def _pad(self, rows: Sequence[int]) -> Batch:
        return pad_batch(
            [self.prompt_ids[i] for i in rows],
            [self.response_ids[i] for i in rows],
            self.pad_id,
            self.base.device,
            rows,
        )

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return the named rows as one padded batch, with features attached."""
        return self.onto(self._pad(rows), rows)

    def onto(self, batch: Batch, rows: Sequence[int]) -> Batch:
        """Return a batch of the named rows with the features of these sequences."""
        own = self.kept(rows)
        if not own:
            return batch.with_features(None)
        shape, device = batch.attention_mask.shape, self.base.device
        features = own[0].new_zeros(shape.numel(), own[0].shape[-1], device=device)
        features.index_copy_(0, batch.text_index, torch.cat([x.to(device) for x in own]))
        return batch.with_features(features.unflatten(0, shape), self.layers_done)

    def batches(self, size: int, rows: Sequence[int] | None = None) -> Iterator[tuple[list[int], Batch]]:
        """Yield row numbers and batches of like length that cover `rows` or all.

        A batch has at most as many tokens as `size` of the longest rows.
        """
        for chosen in self._groups(size, range(len(self)) if rows is None else rows):
            yield chosen, self.batch(chosen)

    def each(self, read: Callable[[Batch], torch.Tensor], size: int, rows: Sequence[int]) -> torch.Tensor:
        """Apply `read` to batches and return the values (len(rows), ...) in the order of `rows`.

        A row that is named twice is read once. The result is differentiable.
        """
        pieces, place = [], dict[int, int]()
        for chosen, batch in self.batches(size, list(dict.fromkeys(rows))):
            pieces.append(read(batch))
            for row in chosen:
                place[row] = len(place)
        values = torch.cat(pieces)
        order = torch.tensor([place[row] for row in rows], device=CPU).to(values.device)
        return values.index_select(0, order)

    def read(
        self, read: Callable[[Batch], torch.Tensor], size: int, rows: Sequence[int], what: str
    ) -> torch.Tensor:
        """Apply `read` to `rows` without a gradient and return its values (len(rows), ...).

        Processes share the rows. If memory runs out, messages name the work as `what`.
        """
        memory = self.base.memory

        def part(own: list[int]) -> tuple[torch.Tensor]:
            chosen = [rows[i] for i in own]
            return (memory.fit(what, size, lambda n: self.each(read, n, chosen)),)

        with torch.no_grad():
            return collectives.gather(len(rows), part)[0]

    def _groups(self, size: int, rows: Sequence[int]) -> Iterator[list[int]]:
        lengths = [len(p) for p in self.prompt_ids], [len(r) for r in self.response_ids]
        return micro_batches(*lengths, size, rows, self.base.pass_price)


def _rows(rows: Sequence[int], ids: Sequence[Sequence[int]]) -> list[Sequence[int]]:
    return [ids[row] for row in rows]


def activations(
    base: Backbone,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    pad_id: int,
    cuts: Collection[int],
) -> dict[int, list[torch.Tensor]]:
    """Return the outputs (length, D) of the lowest layers for every row, by number of layers."""

    def compute(size: int) -> dict[int, list[torch.Tensor]]:
        found = dict[int, dict[int, torch.Tensor]]()
        for rows, by_cut in by_prompt(base, prompt_ids, response_ids, pad_id, cuts, size):
            for cut, features in by_cut.items():
                kept = found.setdefault(cut, {})
                kept |= {row: base.memory.keep(x) for row, x in zip(rows, features, strict=True)}
        return {cut: [rows[i] for i in range(len(prompt_ids))] for cut, rows in found.items()}

    return base.memory.fit("activations", PROMPTS_AT_ONCE, compute)


def by_prompt(
    base: Backbone,
    prompt_ids: Sequence[Sequence[int]],
    response_ids: Sequence[Sequence[int]],
    pad_id: int,
    cuts: Collection[int],
    size: int,
) -> Iterator[tuple[list[int], dict[int, list[torch.Tensor]]]]:
    """Yield row numbers and their activations (length, D) by cut, `size` prompts at a time.

    A prompt comes with all its responses, so its tokens are computed once.
    """
    together = defaultdict[tuple[int, ...], list[int]](list)
    for row, prompt in enumerate(prompt_ids):
        together[tuple(prompt)].append(row)
    groups = list(together.values())
    after = [sum(len(response_ids[row]) for row in group) for group in groups]
    for chosen in micro_batches([*map(len, together)], after, size, range(len(groups)), base.pass_price):
        rows = [row for i in chosen for row in groups[i]]
        prompts, responses = ([ids[row] for row in rows] for ids in (prompt_ids, response_ids))
        yield rows, base.row_features(prompts, responses, pad_id, cuts)
