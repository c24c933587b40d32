"""One optimiser step, and how large it is, for every loop that trains."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn


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
