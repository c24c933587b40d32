"""Supervised fine-tuning on demonstrations: cross-entropy of the response tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from burnish.distributed import collectives
from burnish.models.backbone import Backbone
from burnish.models.batches import CPU, Batch
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.optim import (
    accumulate,
    add_to,
    n_updates,
    on_host,
    set_rates,
    take_step,
    warm_up_then_down,
)
from burnish.models.sequences import Sequences
from burnish.objectives import response_cross_entropy
from burnish.randomness import generator
from burnish.records import Prompt, StepStats


class FineTuning(Protocol):
    """Settings that fine-tuning needs from a configuration."""

    @property
    def epochs(self) -> int:
        """Number of passes over the data."""

    @property
    def batch_size(self) -> int:
        """Number of sequences per update."""

    @property
    def micro_batch(self) -> int:
        """Sequences per forward pass; its tokens are at most those of as many of the longest."""

    @property
    def max_grad_norm(self) -> float:
        """Largest norm of the gradient; larger ones are clipped."""


def demonstrated(base: Backbone, codec: Codec, demonstrations: Sequence[tuple[Prompt, str]]) -> Sequences:
    """Encode demonstrations as sequences of `base`, each with its end-of-sequence token."""
    return Sequences(
        base,
        [codec.encode_prompt(p) for p, _ in demonstrations],
        [codec.encode_response(t, to=p) for p, t in demonstrations],
        codec.pad_id,
    )


def fine_tune(
    policy: Policy,
    sequences: Sequences,
    config: FineTuning,
    *,
    learning_rate: float,
    seed: int,
    only: Sequence[int] | None = None,
) -> Iterator[StepStats]:
    """Train `policy` in place on the sequences and yield one StepStats per update.

    With `only`, make one pass over these rows. Prompts carry no loss; the end-of-sequence token
    does.
    """
    parameters = policy.top.trained_parameters()
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0)
    taken = range(len(sequences)) if only is None else only
    steps = n_updates(len(taken), config.batch_size, config.epochs if only is None else 1)
    per_epoch = n_updates(len(taken), config.batch_size)
    for step in range(steps):
        epoch, index = divmod(step, per_epoch)
        order = torch.randperm(len(taken), generator=generator(seed, "sft", epoch), device=CPU)
        rows = [taken[i] for i in order.split(config.batch_size)[index].tolist()]
        rate = learning_rate * warm_up_then_down(step, steps, warmup=0)
        set_rates(optimizer, rate)

        own, tokens = collectives.mine(rows), sum(len(sequences.response_ids[row]) for row in rows)

        def gradient(size: int, own: list[int] = own, tokens: int = tokens) -> dict[str, float]:
            optimizer.zero_grad(set_to_none=True)
            return {"loss": rows_gradient(policy, sequences, own, size, tokens)}

        memory = policy.top.base.memory
        loss = accumulate(memory, "training", config.micro_batch, parameters, gradient)["loss"]
        norms = take_step(optimizer, [parameters], config.max_grad_norm, [loss])
        values = {} if norms is None else {"loss": loss, "grad_norm": norms[0]}
        yield StepStats(step + 1, 0, {**values, "learning_rate": rate, "skipped": float(norms is None)})


def trial_loss(
    policy: Policy,
    sequences: Sequences,
    learned: Sequence[int],
    unseen: Sequence[int],
    config: FineTuning,
    rate: float,
    seed: int,
) -> float:
    """Return the mean cross-entropy (nats per token) of `unseen` after one pass over `learned`.

    Pass a fresh policy: it is trained in place.
    """
    for _ in fine_tune(policy, sequences, config, learning_rate=rate, seed=seed, only=learned):
        pass

    def read(batch: Batch) -> torch.Tensor:
        return token_logprobs(policy, batch).sum(1)

    with torch.no_grad():
        sums = sequences.each(read, config.micro_batch, unseen)
    return -float(sums.sum()) / sum(len(sequences.response_ids[row]) for row in unseen)


def rows_gradient(
    policy: Policy, sequences: Sequences, rows: Sequence[int], micro_batch: int, tokens: int
) -> float:
    """Add the cross-entropy gradient of `rows` and return the loss in nats per token.

    Both are the rows' share of the mean over `tokens` response tokens. Each forward pass has at
    most `micro_batch` rows.
    """
    sums: dict[str, torch.Tensor] = {}
    for _, batch in sequences.batches(micro_batch, rows):
        loss = response_cross_entropy(token_logprobs(policy, batch), batch.response_mask, normalizer=tokens)
        loss.backward()
        add_to(sums, {"loss": loss})
    return on_host(sums)["loss"] if sums else 0.0
