"""Optimizer steps: learning-rate schedules, gradient clipping, and optimizer state in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from burnish.distributed import collectives
from burnish.errors import TrainingError
from burnish.models.backbone import Backbone
from burnish.models.batches import CPU
from burnish.models.memory import Memory


def n_updates(rows: int, batch_size: int, epochs: int = 1) -> int:
    """Updates that so many passes over so many rows take; the last batch of a pass may be smaller."""
    return math.ceil(rows / batch_size) * epochs


def warm_up_then_down(step: int, steps: int, warmup: int) -> float:
    """Share of the learning rate at `step` (from 0) of `steps`: up over `warmup` steps, then linearly to 0."""
    return min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))


def set_rates(optimizer: torch.optim.Optimizer, *rates: float) -> None:
    """The learning rates of the optimiser's parameter groups, in their order."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def accumulate(
    memory: Memory,
    what: str,
    micro_batch: int,
    parameters: Sequence[nn.Parameter],
    gradient: Callable[[int], dict[str, float]],
) -> dict[str, float]:
    """Accumulate the gradient of a batch and return the figures of `gradient`, summed over the processes of a run.

    `gradient(size)` clears the gradients of `parameters`, computes those of this process's rows with forward passes of
    at most `size` rows, and returns figures that add up over rows. It is called again with a smaller size when memory
    runs out; `what` names the work in the event of the run."""
    return collectives.add(parameters, lambda: memory.fit(what, micro_batch, gradient))


def take_step(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[nn.Parameter]],
    max_grad_norm: float,
    figures: Sequence[float],
) -> list[float] | None:
    """Clip the gradient norm of each group and step. The norms before clipping; None, with no step taken, when one of
    them or of the loop's own `figures` is not finite."""
    norms = [nn.utils.clip_grad_norm_(list(group), max_grad_norm).item() for group in groups]
    if not all(math.isfinite(value) for value in (*norms, *figures)):
        return None
    optimizer.step()
    return norms


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


def ladder(base: Backbone) -> list[float]:
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
    losses = collectives.deal(rates, lambda own: [trial(rate) for rate in own])
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


def save_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Write every parameter's slots (moments, step counts) as `<parameter index>.<slot>`."""
    state = optimizer.state_dict()["state"]
    save_file(
        {f"{i}.{name}": t.contiguous() for i, slots in state.items() for name, t in slots.items()}, file
    )


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Restore the slots; rates and other settings stay the optimiser's own."""
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
