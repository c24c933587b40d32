"""Training of reward models with the Bradley-Terry loss, and trials of a learning rate."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import torch

from burnish.config.reward import RewardConfig
from burnish.errors import TrainingError
from burnish.models.backbone import Backbone
from burnish.models.batches import CPU
from burnish.models.heads import Pooling, ScalarHead, new_reward_head
from burnish.models.optim import add_to, on_host, set_rates, take_step, warm_up_then_down
from burnish.models.pairs import EncodedPairs
from burnish.objectives import bradley_terry_loss, odin_loss
from burnish.randomness import generator
from burnish.records import StepStats

LOOKS = 8  # evaluations on unseen pairs during one training


def pair_order(groups: Sequence[str], config: RewardConfig, seed: int, member: str) -> list[list[int]]:
    """Return the pairs that a member sees, grouped by prompt, in training order.

    Each member has its own bootstrap resample, reshuffled every epoch. Prompts are drawn with all their
    pairs (`groups` names each pair's prompt), because these are not independent evidence. One forward
    pass also serves all of them (Ouyang et al. 2022, 3.5), so copies of a prompt stand together.
    """
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


def new_models(
    base: Backbone,
    names: Sequence[str],
    config: RewardConfig,
    seed: int,
    pooling: Pooling,
    first: str | None = None,
) -> dict[str, ScalarHead]:
    """Create reward models by name; a shared head is that of `first`, or of the first name."""
    return {
        name: new_reward_head(
            base,
            seed,
            name,
            layers=base.layers,
            dropout=config.dropout,
            pooling=pooling,
            head_of=(first or names[0]) if config.shared_head else None,
            length_head=config.length == "odin",
        )
        for name in names
    }


def train_reward_model(
    model: ScalarHead,
    pairs: EncodedPairs,
    config: RewardConfig,
    *,
    learning_rate: float,
    seed: int,
    member: str,
) -> Iterator[StepStats]:
    """Train in place, yielding one StepStats per update: loss, batch accuracy, gradient norm.

    Uses Bradley-Terry with label smoothing and centring (Eisenstein et al. 2023, Eq. 2), AdamW with
    weight decay, warm-up then linear decay, and gradient norm clipping. Early stopping restores the
    weights with the lowest loss on pairs that are kept apart.
    """
    best = None
    if config.early_stopping:
        pairs, unseen = kept_apart(pairs, config.early_stopping, seed, member)
        best = Best(model, unseen, config)
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

        # These terms are defined on a whole batch, so it is divided only when memory runs out.
        of_batch = model.length_head is not None or config.bsr_coef
        rows = max(2 * len(copies), config.micro_batch) if of_batch else config.micro_batch
        figures = model.top.base.memory.fit(f"training {member}", rows, accumulate)
        norms = take_step(optimizer, [model.trained()], config.max_grad_norm, [figures["loss"]])
        values = {} if norms is None else {**figures, "grad_norm": norms[0]}
        if best is not None and (step + 1 == steps or (step + 1) * LOOKS // steps > step * LOOKS // steps):
            values["unseen_loss"] = best.look()
        yield StepStats(step + 1, 0, {**values, "learning_rate": rate, "skipped": float(norms is None)})
    if best is not None:
        model.load(best.state)
    model.eval()


class Best:
    """Weights with the lowest loss on the unseen pairs."""

    def __init__(self, model: ScalarHead, unseen: EncodedPairs, config: RewardConfig) -> None:
        self.model, self.unseen, self.config = model, unseen, config
        self.loss, self.state = math.inf, model.state()

    def look(self) -> float:
        """Return the loss now, in nats a pair; keep the weights if it is the lowest."""
        self.model.eval()
        loss = unseen_loss(self.model, self.unseen, range(len(self.unseen)), self.config.micro_batch)
        self.model.train()
        if loss < self.loss:
            self.loss, self.state = loss, self.model.state()
        return loss


def kept_apart(
    pairs: EncodedPairs, share: float, seed: int, member: str
) -> tuple[EncodedPairs, EncodedPairs]:
    """Split off the pairs of a share of the prompts; TrainingError if either part is empty."""
    prompts = list(dict.fromkeys(pairs.groups))
    order = torch.randperm(len(prompts), generator=generator(seed, "early", member), device=CPU).tolist()
    held = {prompts[i] for i in order[: round(share * len(prompts))]}
    parts = [[i for i, g in enumerate(pairs.groups) if (g in held) == apart] for apart in (False, True)]
    if not all(parts):
        raise TrainingError(
            f"reward.early_stopping={share} of {len(prompts)} prompts leaves no pairs to train on, or none to "
            "evaluate; label more pairs or set it to 0"
        )
    return pairs.only(parts[0]), pairs.only(parts[1])


@torch.no_grad()
def unseen_loss(model: ScalarHead, pairs: EncodedPairs, index: Sequence[int], micro_batch: int) -> float:
    """Return the mean Bradley-Terry loss of the pairs in `index`, in nats a pair."""
    parts = [
        bradley_terry_loss(*pairs.each(model.score, part)).sum() for part in pairs.parted(index, micro_batch)
    ]
    return float(torch.stack(parts).sum()) / len(index)


def pairs_gradient(
    model: ScalarHead,
    pairs: EncodedPairs,
    copies: Mapping[int, int],
    config: RewardConfig,
    micro_batch: int,
) -> dict[str, float]:
    """Add the gradient of the mean loss of the pairs in `copies`; return the loss and its figures.

    `copies` counts each pair. A forward pass has at most `micro_batch` sequences (at least two).
    """
    total = sum(copies.values())
    device = model.top.base.device
    sums: dict[str, torch.Tensor] = {}
    for numbers in pairs.parted(list(copies), micro_batch):
        graded = [pairs.pairs[i].strength for i in numbers]
        share, sure, strong = torch.tensor(
            [
                [copies[i] / total for i in numbers],
                [pairs.pairs[i].confidence for i in numbers],
                [1.0 if strength is None else strength for strength in graded],
            ],
            device=CPU,
        ).to(device)
        apart: torch.Tensor | float = 0.0
        if model.length_head is None:
            chosen, rejected = pairs.each(model.score, numbers)
        else:
            sides = torch.cat(pairs.each(model.both, numbers))  # (2n, 2)
            lengths = pairs.sequences.response_lengths
            tokens = torch.tensor([lengths[row] for row in pairs.rows_of(numbers)], device=CPU).to(device)
            heads = model.head.weight, model.length_head.weight
            apart = odin_loss(sides[:, 0], sides[:, 1], tokens, *heads)
            chosen, rejected = sides.sum(1).chunk(2)
        losses = bradley_terry_loss(
            chosen,
            rejected,
            label_smoothing=config.label_smoothing,
            margin=config.margin * (2 * sure - 1) * strong,
            center_coef=config.center_coef,
            confidence=sure if config.soft_labels else None,
        )
        loss = (share * losses).sum() + share.sum() * apart
        if config.bsr_coef:
            loss = loss + config.bsr_coef * share.sum() * torch.cat([chosen, rejected]).mean().square()
        loss.backward()
        right, ahead = (share * (chosen > rejected)).sum(), (share * (chosen - rejected)).sum()
        add_to(sums, {"loss": loss, "accuracy": right, "margin": ahead})
    return on_host(sums)


def trial_loss(
    pairs: EncodedPairs,
    learned: Sequence[int],
    unseen: Sequence[int],
    config: RewardConfig,
    pooling: Pooling,
    rate: float,
    seed: int,
) -> float:
    """Return the mean loss on `unseen` pairs, in nats a pair, after one pass over `learned` pairs."""
    base = pairs.sequences.base
    short = config.model_copy(update={"epochs": 1, "bootstrap": False, "early_stopping": 0.0})
    model = new_reward_head(base, seed, "sweep", layers=base.layers, dropout=config.dropout, pooling=pooling)
    for _ in train_reward_model(
        model, pairs.only(learned), short, learning_rate=rate, seed=seed, member="sweep"
    ):
        pass
    return unseen_loss(model, pairs, unseen, config.micro_batch)
