"""Optimizer steps: learning-rate schedules, gradient clipping, and optimizer state in checkpoints."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
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
    """Return the number of updates of `epochs` passes over `rows`; the last batch may be smaller."""
    return math.ceil(rows / batch_size) * epochs


def warm_up_then_down(step: int, steps: int, warmup: int) -> float:
    """Return the learning-rate factor at `step` (from 0): linear warm-up, then linear decay to 0."""
    return min((step + 1) / max(1, warmup), (steps - step) / max(1, steps - warmup))


def set_rates(optimizer: torch.optim.Optimizer, *rates: float) -> None:
    """Set the learning rates of the optimizer's parameter groups, in their order."""
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def accumulate(
    memory: Memory,
    what: str,
    micro_batch: int,
    parameters: Sequence[nn.Parameter],
    gradient: Callable[[int], dict[str, float]],
) -> dict[str, float]:
    """Accumulate the gradient of a batch and return the figures of `gradient`.

    The figures are summed over the processes of a run. `gradient(size)` clears the gradients of
    `parameters` and computes those of this process's rows, with forward passes of at most the
    tokens of `size` long rows. It returns figures that add up over rows, and is called again with a smaller size when
    memory runs out. `what` names the work in the event of the run.
    """
    return collectives.add(parameters, lambda: memory.fit(what, micro_batch, gradient))


def add_to(sums: dict[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    """Add scalars by name, without a wait for their device."""
    for name, value in values.items():
        value = value.detach()
        sums[name] = sums[name] + value if name in sums else value


def on_host(values: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """Return scalars as floats, with one wait for their device."""
    if not values:
        return {}
    return dict(zip(values, torch.stack([*values.values()]).tolist(), strict=True))


def take_step(
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Sequence[nn.Parameter]],
    max_grad_norm: float,
    figures: Sequence[float],
) -> list[float] | None:
    """Clip the gradient norm of each group, take a step and return the norms before clipping.

    Return None, without a step, if a norm or a value in `figures` is not finite.
    """
    clipped = {str(i): nn.utils.clip_grad_norm_(list(group), max_grad_norm) for i, group in enumerate(groups)}
    norms = [*on_host(clipped).values()]
    if not all(math.isfinite(value) for value in (*norms, *figures)):
        return None
    optimizer.step()
    return norms


REACH = 1.2  # the highest rate of the ladder, times the hidden size

RUNG = 4.0

RUNGS = 4

USUAL = 1  # index of the rate to use without data for trials

OWN = 2  # index of the rate for training on the model's own answers; no held-out likelihood ranks these

ADAPTERS = 4.0  # LoRA's second factor starts at zero, so the same step moves the product less

SHORTEST, LONGEST = 6, 24  # updates of a trial

SHARE = 0.025  # share of the job's updates that each trial takes

HELD_OUT = 96  # largest number of prompts to judge trials by


@dataclass(frozen=True)
class Trial:
    """A learning rate and the mean loss that it reached on held-out rows.

    The loss is in nats per pair or per token, and infinite where training diverged.
    """

    rate: float
    loss: float

    def as_json(self) -> dict[str, float | None]:
        """Return the trial as a JSON object; an infinite loss becomes null."""
        return {"rate": self.rate, "loss": self.loss if math.isfinite(self.loss) else None}


def ladder(base: Backbone) -> list[float]:
    """Return learning rates to try for a model on `base`, the highest first.

    With Adam, the effect of a step on a layer's output grows with its width. The best rate
    therefore falls as one over the width (Yang et al. 2022, table 3). It falls from 1e-2 for models
    of a million weights to 5e-6 for those of billions.
    """
    top = REACH / base.hidden_size * (ADAPTERS if base.layers.startswith("lora") else 1.0)
    return [top / RUNG**rung for rung in range(RUNGS)]


def trial_steps(steps: int) -> int:
    """Return the number of updates that each rate is tried for before a job of `steps` updates."""
    return min(LONGEST, max(SHORTEST, round(SHARE * steps)), steps)


def trial_rows(groups: Sequence[str], wanted: int, rng: torch.Generator) -> tuple[list[int], list[int]]:
    """Return about `wanted` rows to learn from, and rows of other groups to judge by.

    A group is a prompt. With fewer than four groups there are no rows to judge by.
    """
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
    """Return every rate with its held-out loss from `trial`, the best first.

    The processes of a run share the rates among them. Raise TrainingError when all rates diverged.
    """
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
    """Scale the best rate of trials of `tried` updates to a job of `steps` updates.

    Both decay to zero. Short trials favour rates that are too high for long jobs, and the distance
    travelled in T steps of noise grows as sqrt(T).
    """
    return rate * math.sqrt(tried / max(tried, steps))


def save_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Write every parameter's slots (moments, step counts) as `<parameter index>.<slot>`."""
    state = optimizer.state_dict()["state"]
    save_file(
        {f"{i}.{name}": t.contiguous() for i, slots in state.items() for name, t in slots.items()}, file
    )


def load_optimizer(optimizer: torch.optim.Optimizer, file: Path) -> None:
    """Restore the slots; rates and other settings of the optimizer do not change."""
    slots: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(file).items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = tensor.clone()
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
