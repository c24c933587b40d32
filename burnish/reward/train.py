"""Train one reward model on preference pairs (Bradley-Terry)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

from burnish.config.reward import RewardConfig
from burnish.models.batches import CPU
from burnish.models.heads import ScalarHead
from burnish.models.load import Codec
from burnish.models.sequences import Sequences
from burnish.models.shared_base import Base
from burnish.models.steps import set_rates, take_step, warm_up_then_down
from burnish.objectives.losses import bradley_terry_loss
from burnish.randomness import generator
from burnish.records import Preference, StepStats


class EncodedPairs:
    """N preference pairs as 2N sequences: row i is the chosen, row N + i the rejected response."""

    def __init__(self, base: Base, codec: Codec, pairs: Sequence[Preference]) -> None:
        self.pairs = list(pairs)
        self.groups = [p.prompt.group for p in self.pairs]
        self.sequences = Sequences.of_pairs(base, codec, pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def rows(self, index: Sequence[int]) -> list[int]:
        """Sequence rows of the pairs in `index`: all chosen, then all rejected."""
        return [*index, *(i + len(self) for i in index)]


def pair_order(groups: Sequence[str], config: RewardConfig, seed: int, member: str) -> list[int]:
    """The pairs a member sees, in order: its own bootstrap resample, reshuffled every epoch. Prompts are drawn, with
    all their pairs (`groups` names the prompt of each): pairs of a prompt are no independent evidence. What was drawn
    several times stands together, so that one forward pass serves all its copies."""
    n = len(groups)
    times = torch.ones(n, dtype=torch.long, device=CPU)
    if config.bootstrap:
        numbers = {group: i for i, group in enumerate(dict.fromkeys(groups))}
        rng = generator(seed, "bootstrap", member)
        draws = torch.randint(len(numbers), (len(numbers),), generator=rng, device=CPU)
        times = draws.bincount(minlength=len(numbers))[[numbers[group] for group in groups]]
    order = []
    for epoch in range(config.epochs):
        shuffled = torch.randperm(n, generator=generator(seed, "order", member, epoch), device=CPU)
        order.append(shuffled.repeat_interleave(times[shuffled]))
    return torch.cat(order).tolist()


def train_reward_model(
    model: ScalarHead,
    pairs: EncodedPairs,
    config: RewardConfig,
    *,
    learning_rate: float,
    seed: int,
    member: str,
) -> Iterator[StepStats]:
    """Train in place, yielding one StepStats an update: loss, accuracy on the batch, gradient norm.

    Bradley-Terry with label smoothing and centring (Eisenstein et al. 2023, Eq. 2), AdamW with weight decay,
    warm-up then linear decay, gradient norm clipped.
    """
    order = pair_order(pairs.groups, config, seed, member)
    steps = math.ceil(len(order) / config.batch_size)
    warmup = round(config.warmup_share * steps)
    optimizer = torch.optim.AdamW(
        model.trained(), lr=learning_rate, weight_decay=config.weight_decay, eps=1e-8
    )
    model.train()
    for step in range(steps):
        index = order[step * config.batch_size : (step + 1) * config.batch_size]
        rate = learning_rate * warm_up_then_down(step, steps, warmup)
        set_rates(optimizer, rate)
        model.noise = generator(seed, "dropout", member, step)
        copies = Counter(index)

        def accumulate(size: int, copies: Counter[int] = copies) -> dict[str, float]:
            optimizer.zero_grad(set_to_none=True)
            return pairs_gradient(model, pairs, copies, config, size)

        figures = model.top.base.memory.fit(f"training {member}", config.micro_batch, accumulate)
        norms = take_step(optimizer, [model.trained()], config.max_grad_norm, [figures["loss"]])
        values = {} if norms is None else {**figures, "grad_norm": norms[0]}
        yield StepStats(step + 1, 0, {**values, "learning_rate": rate, "skipped": float(norms is None)})
    model.eval()


def pairs_gradient(
    model: ScalarHead,
    pairs: EncodedPairs,
    copies: Mapping[int, int],
    config: RewardConfig,
    micro_batch: int,
) -> dict[str, float]:
    """Add the gradient of the mean loss of the pairs numbered in `copies`, each counted so many times, from forward
    passes of at most `micro_batch` sequences (two at least); the loss and its figures."""
    total = sum(copies.values())
    device = model.top.base.device
    sums = dict.fromkeys(("loss", "accuracy", "margin"), 0.0)
    for part in torch.tensor(list(copies), device=CPU).split(max(1, micro_batch // 2)):
        numbers = part.tolist()
        share = torch.tensor([copies[i] / total for i in numbers], device=device)
        rows = pairs.rows(numbers)
        chosen, rejected = pairs.sequences.each(model.score, len(rows), rows).chunk(2)
        losses = bradley_terry_loss(
            chosen,
            rejected,
            label_smoothing=config.label_smoothing,
            center_coef=config.center_coef,
            confidence=torch.tensor([pairs.pairs[i].confidence for i in numbers], device=device),
        )
        loss = (share * losses).sum()
        loss.backward()
        sums["loss"] += loss.item()
        sums["accuracy"] += (share * (chosen > rejected)).sum().item()
        sums["margin"] += (share * (chosen - rejected)).sum().item()
    return sums
