"""The gradient signal: how far the policy gradients of two halves of a batch agree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from burnish.models.batches import CPU
from burnish.records import Rollout

KEPT = 1 << 22  # elements of the gradient that are compared, those of the last parameters
WANTED = 0.5  # share of signal in the squared length of a batch's gradient


def signal_of_one(signal: float, batches: float) -> float:
    """Return the signal of one batch, given the signal c of an update of `batches` batches.

    A half's squared gradient has the share c of signal, and its noise falls as one over its size (the
    gradient noise scale of McCandlish et al. 2018): c / (1 - c) is proportional to `batches`.
    """
    return signal / (batches - (batches - 1) * signal)


def wanted_batches(signal: float, most: int) -> int:
    """Return the number of batches, from 1 to `most`, whose gradient would be half signal.

    `signal` is the cosine c of the gradients of two halves of one batch. The gradient of n batches then
    has the share 2 n c / (2 n c + 1 - c) of signal, which is `WANTED` at n = (1 - c) / 2 c for a half.
    """
    if not signal > 0:
        return most
    wanted = WANTED / (1 - WANTED) * (1 - signal) / (2 * signal)
    return min(most, max(1, math.ceil(wanted - 1e-9)))


def precise(p: torch.Tensor) -> torch.dtype:
    """Return the dtype in which a parameter's gradient is compared: float32, or its own if wider."""
    return torch.promote_types(p.dtype, torch.float32)


@dataclass
class Halves:
    """Rows of a minibatch in two halves without a common prompt, and a part of the first's gradient.

    `kept` is a tensor whose `grad` holds the gradient of the first half, so that it is summed over
    processes with the gradients of the parameters.
    """

    first: list[int]
    second: list[int]
    parameters: Sequence[nn.Parameter]
    kept: nn.Parameter

    @classmethod
    def of(cls, rollout: Rollout, rows: Sequence[int], parameters: Sequence[nn.Parameter]) -> Halves | None:
        """Split `rows` by prompt, every second prompt to each half; None for fewer than two prompts."""
        order = {
            name: i for i, name in enumerate(dict.fromkeys(rollout.prompts[row].id for row in sorted(rows)))
        }
        sides: tuple[list[int], list[int]] = ([], [])
        for row in rows:
            sides[order[rollout.prompts[row].id] % 2].append(row)
        if len(order) < 2:
            return None
        compared, size = [], 0
        for p in reversed(parameters):
            if p.device == parameters[-1].device and size < KEPT:
                compared.append(p)
                size += min(p.numel(), KEPT - size)
        like = torch.zeros(size, device=compared[0].device, dtype=precise(compared[0]))
        kept = nn.Parameter(like, requires_grad=False)
        return cls(*sides, compared, kept)

    @property
    def ordered(self) -> list[int]:
        """All rows, the first half's first."""
        return [*self.first, *self.second]

    def parts(self, rows: Sequence[int]) -> list[list[int]]:
        """Return those of `rows` in the first half and those in the second."""
        first = set(self.first)
        return [[r for r in rows if r in first], [r for r in rows if r not in first]]

    def gradient(self) -> torch.Tensor:
        """Return the compared part of the gradient that the parameters hold now, a copy."""
        pieces, left = [], KEPT
        for p in self.parameters:
            flat = torch.zeros_like(p) if p.grad is None else p.grad
            pieces.append(flat.reshape(-1)[:left].to(self.kept.dtype))
            left -= len(pieces[-1])
        return torch.cat(pieces)

    def keep(self) -> None:
        """Keep the gradient that the parameters hold now as that of the first half."""
        self.kept.grad = self.gradient()

    def signal(self) -> dict[str, float]:
        """Return the cosine of both halves' gradients; nothing if one of them is 0 or not finite."""
        assert self.kept.grad is not None
        first = self.kept.grad
        second = self.gradient() - first
        figures = torch.stack([first @ second, first @ first, second @ second]).to(CPU).double()
        product, a, b = figures.tolist()
        length = math.sqrt(a) * math.sqrt(b)
        if not 0 < length < math.inf:
            return {}
        return {"gradient_signal": min(1.0, max(-1.0, product / length))}
