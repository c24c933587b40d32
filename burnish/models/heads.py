"""Scalar heads: reward models (a score per response) and value functions (a value per token)."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from burnish.models.backbone import Backbone, TrainableLayers
from burnish.models.batches import CPU, Batch, precise
from burnish.models.device import traits
from burnish.models.sequences import Sequences
from burnish.randomness import derive_seed, generator

Pooling = Literal["mean", "last"]


@dataclass(frozen=True)
class Reading:
    """Where a reward head gets its input: depth, pooling and trained layers.

    The head follows `depth` layers of the base. Its input is the mean over the response's tokens (EOS
    included) or the last of them. `layers` says which layers are trained (None: as in the base).
    """

    depth: int
    pooling: Pooling
    layers: str | None = None


class ScalarHead(nn.Module):
    """A body with a linear head of one output on its pooled hidden states.

    `dropout` acts on the head's input in training, with random numbers from `noise`. The body's own
    dropout stays off, because it would draw from the global generator, in threads.
    """

    def __init__(
        self,
        top: TrainableLayers,
        head: nn.Linear,
        dropout: float = 0.0,
        pooling: Pooling = "last",
        length_head: nn.Linear | None = None,
    ) -> None:
        super().__init__()
        self.length_head = length_head  # learns the effect of length in training; not saved
        self.pooling = pooling
        self.top = top
        self.head = head
        self.dropout = dropout
        self.noise: torch.Generator | None = None

    def train(self, mode: bool = True) -> ScalarHead:
        """Set the head's training mode; the body always stays in eval mode."""
        super().train(mode)
        self.top.eval()
        return self

    def score(self, batch: Batch) -> torch.Tensor:
        """Return raw scores (B,)."""
        return precise(self.head(self._read(batch)).squeeze(-1))

    def both(self, batch: Batch) -> torch.Tensor:
        """Return the raw scores and the outputs of the length head, as (B, 2)."""
        assert self.length_head is not None
        read = self._read(batch)
        return precise(torch.cat([self.head(read), self.length_head(read)], -1))

    def _read(self, batch: Batch) -> torch.Tensor:
        """Return the head's input (B, D), with dropout in training."""
        read = self.pooled(batch)
        if self.training and self.dropout:
            drawn = torch.rand(read.shape, generator=self.noise, device=CPU)
            kept = drawn.to(read.device) >= self.dropout
            read = read * kept / (1 - self.dropout)
        return read

    def pooled(self, batch: Batch) -> torch.Tensor:
        """Return the pooled hidden states (B, D) that the head reads."""
        if self.pooling == "last":
            return self.top.hidden_at(batch, batch.last_index)[:, 0]
        hidden = self.top.hidden_at(batch, batch.response)
        mask = batch.response_mask[..., None]
        return (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)

    def values(self, batch: Batch) -> torch.Tensor:
        """Return the value (B, T) before each response token, 0 off the mask.

        With `mean`, the head reads the mean of all positions from the prompt's last token up to
        there.
        """
        hidden = self.top.hidden_at(batch, batch.before_response)
        if self.pooling == "mean":
            counts = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
            hidden = hidden.cumsum(1) / counts[:, None]
        return precise(self.head(hidden).squeeze(-1)) * batch.response_mask

    def trained(self) -> list[nn.Parameter]:
        """Return the parameters that are trained."""
        return [p for p in self.parameters() if p.requires_grad]

    def state(self) -> dict[str, torch.Tensor]:
        """Return the trained tensors by name, the head's included."""
        return {f"top.{n}": t for n, t in self.top.trained_state().items()} | {
            f"head.{n}": p.detach().clone() for n, p in self.head.named_parameters()
        }

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Load the tensors of `state`."""
        self.top.load_trained_state(
            {n.removeprefix("top."): t for n, t in state.items() if n.startswith("top.")}
        )
        with torch.no_grad():
            for name, parameter in self.head.named_parameters():
                parameter.copy_(state[f"head.{name}"])


def new_reward_head(
    base: Backbone,
    seed: int,
    member: str,
    *,
    layers: str,
    dropout: float,
    pooling: Pooling = "last",
    head_of: str | None = None,
    length_head: bool = False,
) -> ScalarHead:
    """Return a new reward model with a body from the base.

    Its head is drawn from N(0, 1/(d+1)) (Ziegler et al. 2019). `head_of` names another member whose
    head it gets.
    """

    def drawn(what: str) -> nn.Linear:
        head = nn.Linear(base.hidden_size, 1, bias=False, device=CPU)
        with torch.no_grad():
            rng = generator(seed, what, head_of or member)
            head.weight.normal_(0.0, 1.0 / math.sqrt(base.hidden_size + 1), generator=rng)
        return head.to(base.device)

    top = TrainableLayers(base, layers=layers, seed=derive_seed(seed, "adapters", member))
    return ScalarHead(
        top, drawn("head"), dropout, pooling, length_head=drawn("length head") if length_head else None
    )


def averaged(models: Sequence[ScalarHead]) -> ScalarHead:
    """Average the trained weights of models with one start (Rame et al. 2024, WARM)."""
    first = models[0]
    model = ScalarHead(
        TrainableLayers(first.top.base, layers=first.top.base.layers),
        copy.deepcopy(first.head),
        pooling=first.pooling,
    )
    states = [m.state() for m in models]
    model.load({name: torch.stack([s[name] for s in states]).mean(0) for name in states[0]})
    return model.eval()


def read_features(model: ScalarHead, sequences: Sequences) -> torch.Tensor:
    """Return the head's input (N, D) for every sequence."""
    return sequences.read(model.pooled, traits(model.top.base.device).rows, range(len(sequences)), "scores")


def raw_scores(model: ScalarHead, sequences: Sequences) -> torch.Tensor:
    """Return the raw scores (N,) of every sequence, of any part of the model's base."""
    sequences = sequences.at(model.top.base)
    return sequences.read(model.score, traits(model.top.base.device).rows, range(len(sequences)), "scores")
