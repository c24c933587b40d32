"""Log-probabilities of response tokens, without ever holding (B, T, V) for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from burnish.models.backbone import TrainableLayers
from burnish.models.batches import SUPPRESSED, Batch, precise
from burnish.objectives import exact_kl

CHUNK_ELEMENTS = 1 << 21  # logits held at once on a CPU: 8 MiB in float32, which fits in its caches
CHUNK_ELSEWHERE = 1 << 26  # 256 MiB


@dataclass
class Policy:
    """A language model as a policy: body, output layer (shared, frozen or tied), temperature."""

    top: TrainableLayers
    head: Any  # a linear layer: weight (V, D), perhaps a bias
    pad_id: int
    temperature: float = 1.0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N, V) of the sampled distribution from hidden states (N, D).

        The temperature is applied and the pad token excluded. The result must not be
        differentiated.
        """
        logits = precise(self.head(hidden))
        if self.temperature != 1.0:
            logits = logits / self.temperature
        logits[..., self.pad_id] = SUPPRESSED
        return logits

    @property
    def head_size(self) -> int:
        """Vocabulary size V."""
        return int(self.head.weight.shape[0])

    def response_hidden(self, batch: Batch) -> torch.Tensor:
        """Return hidden states (N, D) that predict the batch's N response tokens, row by row."""
        return self.top.hidden_at(batch, batch.before_response)[batch.response_mask]


def make_policy(top: TrainableLayers, pad_id: int, temperature: float = 1.0) -> Policy:
    """Return the policy of a top.

    If the whole model is trained, so is its output layer. This is the trained copy's embedding
    where the two are tied, and otherwise a copy of its own. In all other cases the output layer is
    the base's and stays frozen.
    """
    lm = top.base.lm
    output = lm.get_output_embeddings()
    embedding = lm.get_input_embeddings().weight
    own = top.body.get_input_embeddings().weight if not top.base.cut and top.mode == "all" else embedding
    head: nn.Module = output
    if own is not embedding:
        head = TiedOutput(own) if top.base.tied else top.own_output()
    return Policy(top, head, pad_id, temperature)


class TiedOutput(nn.Module):
    """An output layer that reads the trained copy's embedding matrix (V, D)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.source = (weight,)

    @property
    def weight(self) -> torch.Tensor:
        """Embedding matrix (V, D) of the trained copy."""
        return self.source[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (..., V) of hidden states (..., D)."""
        return linear(hidden, self.weight)


def token_logprobs(policy: Policy, batch: Batch) -> torch.Tensor:
    """Return log-probabilities (B, T) of the response tokens in nats, 0 off the mask."""
    hidden = policy.response_hidden(batch)
    targets = batch.response_ids[batch.response_mask]
    flat = _TargetLogprobs.apply(hidden, policy.head.weight, _bias(policy), targets, policy)
    return torch.zeros(batch.response_mask.shape, device=batch.response_mask.device).masked_scatter(
        batch.response_mask, flat
    )


@torch.no_grad()
def likelihood_and_greedy(policy: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return responses' log-probabilities (B,) in nats, and whether greedy decoding gives them (B,)."""
    mask, targets = batch.response_mask, batch.response_ids[batch.response_mask]
    size, nats, first = _rows(policy), [], []
    hidden = policy.response_hidden(batch)
    for h, target in zip(hidden.split(size), targets.split(size), strict=True):
        log_p = policy.logits(h).log_softmax(-1)
        nats.append(log_p.gather(1, target[:, None])[:, 0])
        first.append(log_p.argmax(-1) == target)
    spread = torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, torch.cat(nats))
    same = torch.ones(mask.shape, dtype=torch.bool, device=mask.device).masked_scatter(mask, torch.cat(first))
    return spread.sum(1), same.all(1)


@torch.no_grad()
def token_entropy(policy: Policy, batch: Batch) -> torch.Tensor:
    """Return the entropy (B, T) in nats of each response token's distribution, 0 off the mask."""
    pieces = []
    for hidden in policy.response_hidden(batch).split(_rows(policy)):
        log_p = policy.logits(hidden).log_softmax(-1)
        pieces.append(-(log_p.exp() * log_p).sum(-1))
    return torch.zeros(batch.response_mask.shape, device=batch.response_mask.device).masked_scatter(
        batch.response_mask, torch.cat(pieces)
    )


def _rows(policy: Policy) -> int:
    """Return the number of tokens whose logits are in memory at once."""
    on_cpu = policy.head.weight.device.type == "cpu"
    return max(1, (CHUNK_ELEMENTS if on_cpu else CHUNK_ELSEWHERE) // policy.head_size)


def _bias(policy: Policy) -> torch.Tensor | None:
    return getattr(policy.head, "bias", None)


class _TargetLogprobs(torch.autograd.Function):
    """Autograd function of log softmax(logits)[target] that never holds N x V logits.

    If the output layer is frozen, the gradient with respect to the hidden state, (W[target] -
    softmax @ W) / temperature, is computed with the softmax. The backward pass is then one product
    with a column. If the output layer is trained, the backward pass computes the softmax again.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        policy: Policy,
    ) -> torch.Tensor:
        ctx.trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        slope = torch.empty_like(hidden) if ctx.needs_input_grad[0] and not ctx.trains_head else None
        out = torch.empty(len(hidden), device=hidden.device)
        size = _rows(policy)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            z, picked, log_total = _softmax(hidden[rows], weight, bias, targets[rows], policy)
            out[rows] = picked - log_total
            if slope is not None:
                mean = torch.mm(z.to(weight.dtype), weight)
                slope[rows] = (weight[targets[rows]] - mean) / policy.temperature
        ctx.policy = policy
        if slope is not None:
            ctx.save_for_backward(slope)
        elif ctx.trains_head:
            ctx.save_for_backward(hidden, weight, targets, *([] if bias is None else [bias]))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        if not ctx.trains_head:
            (slope,) = ctx.saved_tensors
            return grad[:, None].to(slope.dtype) * slope, None, None, None, None
        hidden, weight, targets, *rest = ctx.saved_tensors
        bias = rest[0] if rest else None
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        by_bias = None if bias is None else torch.zeros_like(bias)
        size = _rows(ctx.policy)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            z, _, _ = _softmax(hidden[rows], weight, bias, targets[rows], ctx.policy)
            z.neg_()
            z[torch.arange(len(z), device=z.device), targets[rows]] += 1.0
            z.mul_(grad[rows, None] / ctx.policy.temperature)
            by_hidden[rows] = z.to(weight.dtype) @ weight
            by_weight.addmm_(z.to(weight.dtype).T, hidden[rows])
            if by_bias is not None:
                by_bias += z.sum(0)
        return by_hidden, by_weight, by_bias, None, None


def _softmax(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    policy: Policy,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return float32 probabilities (n, V), target logits (n,) and log-normalizers (n,)."""
    z = precise(linear(hidden, weight, bias))
    if policy.temperature != 1.0:
        z /= policy.temperature
    z[:, policy.pad_id] = SUPPRESSED
    picked = z.gather(1, targets[:, None])[:, 0]
    top = z.amax(1, keepdim=True)
    total = z.sub_(top).exp_().sum(1, keepdim=True)
    z /= total
    return z, picked, (top + total.log())[:, 0]


@torch.no_grad()
def response_kl(policy: Policy, reference: Policy, batch: Batch) -> torch.Tensor:
    """Return KL(policy || reference) (B,) in nats per response.

    It is exact over the vocabulary at every sampled prefix and summed over tokens: an unbiased,
    low-variance estimate of the sequence KL.
    """
    hidden, ref_hidden = policy.response_hidden(batch), reference.response_hidden(batch)
    chunk = _rows(policy)
    pieces = [
        exact_kl(policy.logits(h), reference.logits(r))
        for h, r in zip(hidden.split(chunk), ref_hidden.split(chunk), strict=True)
    ]
    mask = batch.response_mask
    return torch.zeros(mask.shape, device=mask.device).masked_scatter(mask, torch.cat(pieces)).sum(1)
