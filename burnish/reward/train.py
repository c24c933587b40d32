"""Train one reward model on preference pairs (Bradley-Terry)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

from burnish.config.reward import RewardConfig
from burnish.models.batches import CPU
from burnish.models.heads import ScalarHead
from burnish.models.pairs import EncodedPairs
from burnish.models.steps import set_rates, take_step, warm_up_then_down
from burnish.objectives.losses import bradley_terry_loss
from burnish.randomness import generator
from burnish.records import StepStats


def pair_order(groups: Sequence[str], config: RewardConfig, seed: int, member: str) -> list[list[int]]:
    """The pairs a member sees, by prompt, in order: its own bootstrap resample, reshuffled every epoch. Prompts are
    drawn, with all their pairs (`groups` names the prompt of each): pairs of a prompt are no independent evidence, and
    its answers are read once for all of them (Ouyang et al. 2022, 3.5). What was drawn several times stands together,
    so that one forward pass serves all its copies."""
    pairs: dict[str, list[int]] = {}
    for i, group in enumerate(groups):
        pairs.setdefault(group, []).append(i)
    elements, n = list(pairs.values()), len(pairs)
    times = torch.ones(n, dtype=torch.long, device=CPU)
    if config.bootstrap:
        rng = generator(seed, "bootstrap", member)
        times = torch.randint(n, (n,), generator=rng, device=CPU).bincount(minlength=n)
    order = []
    for epoch in range(config.epochs):
        shuffled = torch.randperm(n, generator=generator(seed, "order", member, epoch), device=CPU)
        order.append(shuffled.repeat_interleave(times[shuffled]))
    return [elements[i] for i in torch.cat(order).tolist()]


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
        elements = order[step * config.batch_size : (step + 1) * config.batch_size]
        rate = learning_rate * warm_up_then_down(step, steps, warmup)
        set_rates(optimizer, rate)
        model.noise = generator(seed, "dropout", member, step)
        copies = Counter(i for element in elements for i in element)

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
    for numbers in pairs.parted(list(copies), micro_batch):
        share = torch.tensor([copies[i] / total for i in numbers], device=device)
        chosen, rejected = pairs.each(model.score, numbers)
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
