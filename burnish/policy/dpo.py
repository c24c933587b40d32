"""Direct preference optimisation (Rafailov et al. 2023) with reference log-probabilities computed once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from burnish.config.dpo import DPOConfig
from burnish.models.batches import CPU, Batch
from burnish.models.load import Codec
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.pairs import EncodedPairs
from burnish.models.steps import set_rates, take_step, warm_up_then_down
from burnish.objectives.losses import dpo_loss
from burnish.policy.optimizer_state import load_optimizer, save_optimizer
from burnish.randomness import generator
from burnish.records import Preference, StepStats


@dataclass
class DPO:
    """A DPO run: `updates()` yields one StepStats an update; `step` counts them and survives a restart."""

    policy: Policy
    reference: Policy
    codec: Codec
    pairs: Sequence[Preference]
    config: DPOConfig
    learning_rate: float
    seed: int
    step: int = 0

    def __post_init__(self) -> None:
        self.encoded = EncodedPairs(self.policy.top.base, self.codec, self.pairs)
        self.memory = self.policy.top.base.memory
        self.parameters = self.policy.top.trained_parameters()
        self.optimizer = torch.optim.AdamW(self.parameters, lr=self.learning_rate, weight_decay=0.0)
        self.reference_sums: torch.Tensor | None = None  # (M,)

    @property
    def steps(self) -> int:
        return math.ceil(len(self.pairs) / self.config.batch_size) * self.config.epochs

    @torch.no_grad()
    def cache_reference(self) -> torch.Tensor:
        """(M,) summed log-probabilities of every answer under the reference."""
        sequences = self.encoded.sequences
        rows = range(len(sequences))

        def read(batch: Batch) -> torch.Tensor:
            return token_logprobs(self.reference, batch).sum(1)

        return self.memory.fit("reference", self.config.micro_batch, lambda n: sequences.each(read, n, rows))

    def logprob_sums(self, batch: Batch) -> torch.Tensor:
        """(B,) log-probability of each response under the policy."""
        return token_logprobs(self.policy, batch).sum(1)

    def updates(self) -> Iterator[StepStats]:
        """Run to the end of the last epoch."""
        if self.reference_sums is None:
            self.reference_sums = self.cache_reference()
        while self.step < self.steps:
            values = self.update(self.batch_of_pairs(self.step), self.reference_sums)
            self.step += 1
            yield StepStats(self.step, 0, values)

    def batch_of_pairs(self, step: int) -> list[int]:
        a_epoch = math.ceil(len(self.pairs) / self.config.batch_size)
        epoch, index = divmod(step, a_epoch)
        order = torch.randperm(len(self.pairs), generator=generator(self.seed, "dpo", epoch), device=CPU)
        return order.split(self.config.batch_size)[index].tolist()

    def update(self, index: list[int], reference: torch.Tensor) -> dict[str, float]:
        """One optimiser step over the named pairs; a non-finite one is skipped and counted."""
        warmup = round(self.config.warmup_share * self.steps)
        rate = self.learning_rate * warm_up_then_down(self.step, self.steps, warmup)
        set_rates(self.optimizer, rate)
        total = self.memory.fit(
            "training dpo", self.config.micro_batch, lambda size: self.gradient(index, reference, size)
        )
        norms = take_step(self.optimizer, [self.parameters], self.config.max_grad_norm, [total["loss"]])
        values = {} if norms is None else {**total, "grad_norm": norms[0]}
        return {**values, "learning_rate": rate, "skipped": float(norms is None)}

    def gradient(self, index: list[int], reference: torch.Tensor, micro_batch: int) -> dict[str, float]:
        """The gradient of the mean loss of the named pairs, from forward passes of at most `micro_batch` sequences (two
        at least); the loss and its figures."""
        self.optimizer.zero_grad(set_to_none=True)
        total = {"loss": 0.0, "accuracy": 0.0, "margin": 0.0, "chosen_logratio": 0.0}
        sides = self.encoded.sides(reference)
        for part in self.encoded.parted(index, micro_batch):
            chosen, rejected = self.encoded.each(self.logprob_sums, part)
            ref_chosen, ref_rejected = (side[part] for side in sides)
            losses, margins = dpo_loss(
                chosen,
                rejected,
                ref_chosen,
                ref_rejected,
                beta=self.config.beta,
                label_smoothing=self.config.label_smoothing,
            )
            (losses.sum() / len(index)).backward()
            total["loss"] += float(losses.detach().sum()) / len(index)
            total["accuracy"] += float((margins > 0).float().sum()) / len(index)
            total["margin"] += float(margins.sum()) / len(index)
            total["chosen_logratio"] += float((chosen.detach() - ref_chosen).sum()) / len(index)
        return total

    def save(self, folder: Path) -> None:
        save_file(self.policy.top.trained_state(), folder / "policy.safetensors")
        save_optimizer(self.optimizer, folder / "optimizer.safetensors")

    def load(self, folder: Path, step: int) -> None:
        self.policy.top.load_trained_state(load_file(folder / "policy.safetensors"))
        load_optimizer(self.optimizer, folder / "optimizer.safetensors")
        self.step = step
