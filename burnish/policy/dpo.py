"""DPO (Rafailov et al. 2023) and IPO; reference log-probabilities are computed once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from burnish.config.dpo import DPOConfig
from burnish.distributed import collectives
from burnish.models.backbone import TrainableLayers
from burnish.models.batches import CPU, Batch
from burnish.models.logprobs import Policy, make_policy, token_logprobs
from burnish.models.optim import (
    accumulate,
    add_to,
    load_optimizer,
    n_updates,
    on_host,
    save_optimizer,
    set_rates,
    take_step,
    warm_up_then_down,
)
from burnish.models.pairs import EncodedPairs
from burnish.objectives import DPO_LOSSES
from burnish.randomness import generator
from burnish.records import StepStats


@dataclass
class DPO:
    """DPO training run: `updates()` yields one StepStats per update; `step` survives a restart."""

    policy: Policy
    reference: Policy
    pairs: EncodedPairs
    config: DPOConfig
    learning_rate: float
    seed: int
    smoothing: float = 0.0  # label smoothing
    step: int = 0
    reference_sums: torch.Tensor | None = None  # (M,) summed log-probabilities of every answer; computed once

    def __post_init__(self) -> None:
        self.memory = self.policy.top.base.memory
        lengths = self.pairs.sequences.response_lengths
        self.lengths = torch.tensor(lengths, device=self.policy.top.base.device)
        self.parameters = self.policy.top.trained_parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, weight_decay=0.0)

    @property
    def steps(self) -> int:
        """Number of updates in the run."""
        return n_updates(len(self.pairs), self.config.batch_size, self.config.epochs)

    def cache_reference(self) -> torch.Tensor:
        """Return the summed log-probability (M,) of every answer under the reference model."""
        sequences = self.pairs.sequences
        rows = range(len(sequences))

        def read(batch: Batch) -> torch.Tensor:
            return token_logprobs(self.reference, batch).sum(1)

        return sequences.read(read, self.config.micro_batch, rows, "reference")

    def logprob_sums(self, batch: Batch) -> torch.Tensor:
        """Return the log-probability (B,) of each response under the policy."""
        return token_logprobs(self.policy, batch).sum(1)

    def updates(self) -> Iterator[StepStats]:
        """Train until the end of the last epoch and yield the statistics of each update."""
        if self.reference_sums is None:
            self.reference_sums = self.cache_reference()
        while self.step < self.steps:
            values = self.update(self.batch_of_pairs(self.step), self.reference_sums)
            self.step += 1
            yield StepStats(self.step, 0, values)

    def batch_of_pairs(self, step: int) -> list[int]:
        """Return the indices of the pairs in the batch of `step` (from 0)."""
        epoch, index = divmod(step, n_updates(len(self.pairs), self.config.batch_size))
        order = torch.randperm(len(self.pairs), generator=generator(self.seed, "dpo", epoch), device=CPU)
        return order.split(self.config.batch_size)[index].tolist()

    def update(self, index: list[int], reference: torch.Tensor) -> dict[str, float]:
        """Take one optimizer step over the pairs in `index`; skip and count a non-finite step."""
        warmup = round(self.config.warmup_share * self.steps)
        rate = self.learning_rate * warm_up_then_down(self.step, self.steps, warmup)
        set_rates(self.optimizer, rate)
        own = collectives.mine(index)
        total = accumulate(
            self.memory,
            "training dpo",
            self.config.micro_batch,
            self.parameters,
            lambda size: self.gradient(own, reference, size, len(index)),
        )
        norms = take_step(self.optimizer, [self.parameters], self.config.max_grad_norm, [total["loss"]])
        values = {} if norms is None else {**total, "grad_norm": norms[0]}
        return {**values, "learning_rate": rate, "skipped": float(norms is None)}

    def gradient(
        self, index: list[int], reference: torch.Tensor, micro_batch: int, n: int
    ) -> dict[str, float]:
        """Compute the loss gradient of the pairs in `index` as their share of the mean over `n`.

        Each forward pass has at most `micro_batch` sequences, but at least two. Return the loss and
        its figures.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, torch.Tensor] = {}
        for part in self.pairs.parted(index, micro_batch):
            losses, margins, chosen_logratio = self.losses(part, reference)
            (losses.sum() / n).backward()
            figures = {
                "loss": losses,
                "accuracy": (margins > 0).float(),
                "margin": margins,
                "chosen_logratio": chosen_logratio,
            }
            add_to(sums, {name: values.sum() / n for name, values in figures.items()})
        return dict.fromkeys(("loss", "accuracy", "margin", "chosen_logratio"), 0.0) | on_host(sums)

    def losses(
        self, part: list[int], reference: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the loss, margin and chosen log-ratio, each (n,), of the n pairs in `part`.

        `reference` (M,) are the summed log-probabilities of all answers under the reference.
        """
        chosen, rejected = self.pairs.each(self.logprob_sums, part)
        rows = torch.tensor(self.pairs.rows_of(part), device=CPU).to(reference.device)
        ref_chosen, ref_rejected = reference[rows].chunk(2)
        lengths = self.lengths[rows].chunk(2)
        logprobs = (chosen, rejected, ref_chosen, ref_rejected)
        if self.config.per_token:
            logprobs = (
                chosen / lengths[0],
                rejected / lengths[1],
                ref_chosen / lengths[0],
                ref_rejected / lengths[1],
            )
        beta, sure = self.config.strength, None
        if self.config.soft_labels:
            sure = torch.tensor(
                [self.pairs.pairs[i].confidence for i in part], device=chosen.device, dtype=chosen.dtype
            )
        loss = DPO_LOSSES[self.config.loss]
        losses, margins = loss(*logprobs, beta=beta, label_smoothing=self.smoothing, confidence=sure)
        if self.config.nll:
            losses = losses - self.config.nll * chosen / lengths[0]
        return losses, margins, chosen.detach() - ref_chosen

    def trial_loss(self, learned: list[int], unseen: list[int], rate: float) -> float:
        """Return the mean loss (nats a pair) on `unseen` after a fresh policy's pass over `learned`."""
        if self.reference_sums is None:
            self.reference_sums = self.cache_reference()
        base = self.policy.top.base
        fresh = make_policy(TrainableLayers(base), self.policy.pad_id, self.policy.temperature)
        trial = DPO(
            policy=fresh,
            reference=self.reference,
            pairs=self.pairs.only(learned),
            config=self.config.model_copy(update={"epochs": 1}),
            learning_rate=rate,
            seed=self.seed,
            smoothing=self.smoothing,
            reference_sums=self.reference_sums,
        )
        for _ in trial.updates():
            pass
        trial.pairs = self.pairs
        with torch.no_grad():
            parts = [
                trial.losses(part, self.reference_sums)[0].sum()
                for part in self.pairs.parted(unseen, self.config.micro_batch)
            ]
        return float(torch.stack(parts).sum()) / len(unseen)

    def save(self, folder: Path) -> None:
        """Save the trained weights and the optimizer state as safetensors."""
        save_file(self.policy.top.trained_state(), folder / "policy.safetensors")
        save_optimizer(self.optimizer, folder / "optimizer.safetensors")

    def load(self, folder: Path, step: int) -> None:
        """Load the weights and optimizer state written by `save`, and set `step`."""
        self.policy.top.load_trained_state(load_file(folder / "policy.safetensors"))
        load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        self.step = step
