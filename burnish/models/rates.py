"""Learning rates that need no table: a ladder that shrinks with a model's width, and short trials of its rungs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from burnish import spmd
from burnish.errors import TrainingError
from burnish.models.batches import CPU
from burnish.models.shared_base import Base

REACH = 1.2  # the highest rung, times the width
RUNG = 4.0
RUNGS = 4
USUAL = 1  # the rung that is taken where there is nothing to try it on
OWN = 2  # the rung for learning from one's own answers, which no held-out likelihood can tell
ADAPTERS = 4.0  # their second factor starts at zero: the same step moves the product less
SHORTEST, LONGEST = 6, 24  # updates of a trial
SHARE = 0.025  # of the job's own updates, for each rate
HELD_OUT = 96  # prompts that trials are judged by, at most


@dataclass(frozen=True)
class Trial:
    """A rate and the mean loss, in nats a pair or a token, that it came to on rows it had not seen; infinite where it
    diverged."""

    rate: float
    loss: float

    def as_json(self) -> dict[str, float | None]:
        return {"rate": self.rate, "loss": self.loss if math.isfinite(self.loss) else None}


def ladder(base: Base) -> list[float]:
    """Rates worth trying for whatever is trained of a base, the highest first. With Adam, what a step does to a layer's
    output grows with the layer's width, so the best rate falls as one over it (Yang et al. 2022, table 3); from 1e-2
    for models of a million weights to 5e-6 for those of billions."""
    top = REACH / base.hidden_size * (ADAPTERS if base.layers.startswith("lora") else 1.0)
    return [top / RUNG**rung for rung in range(RUNGS)]


def trial_steps(steps: int) -> int:
    """How many updates each rate is tried for, before a job of `steps`."""
    return min(LONGEST, max(SHORTEST, round(SHARE * steps)), steps)


def trial_rows(groups: Sequence[str], wanted: int, rng: torch.Generator) -> tuple[list[int], list[int]]:
    """About `wanted` rows to learn from, and rows to judge by, of other groups (prompts): none where there are too few
    groups to part."""
    rows: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    names = list(rows)
    shuffled = [rows[names[i]] for i in torch.randperm(len(names), generator=rng, device=CPU).tolist()]
    n_held = min(HELD_OUT, len(names) // 4)
    held, rest = shuffled[:n_held], shuffled[n_held:]
    n_fitted = math.ceil(wanted * len(rest) / max(1, sum(map(len, rest))))
    return [row for group in rest[:n_fitted] for row in group], [row for group in held for row in group]


def try_rates(what: str, rates: Sequence[float], trial: Callable[[float], float]) -> list[Trial]:
    """Every rate with the held-out loss that `trial` says it came to, the best first; of several processes each tries
    some of them. Raises TrainingError when all diverged."""
    losses = spmd.deal(rates, lambda own: [trial(rate) for rate in own])
    found = [
        Trial(rate, loss if math.isfinite(loss) else math.inf)
        for rate, loss in zip(rates, losses, strict=True)
    ]
    found.sort(key=lambda trial: trial.loss)
    if math.isinf(found[0].loss):
        raise TrainingError(
            f"{what} diverged at every learning rate that was tried ({', '.join(f'{r:g}' for r in rates)}); set "
            f"{what}.learning_rate, smaller"
        )
    return found


def for_longer(rate: float, tried: int, steps: int) -> float:
    """The rate for a job of `steps` when it was the best in trials of `tried` updates, both down to zero: short trials
    favour rates that are too high for long ones, and what can be travelled in T steps of noise grows as sqrt(T)."""
    return rate * math.sqrt(tried / max(tried, steps))
