"""Log-probabilities of response tokens, without ever holding (B, T, V) for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from burnish.models.backbone import TrainableLayers
from burnish.models.batches import SUPPRESSED, Batch, precise
from burnish.models.device import held, linear_of_few, product, traits
from burnish.objectives import exact_kl


@dataclass
class Policy:
    """A language model as a policy: body, output layer (shared, frozen or tied), temperature.

    Products with the output layer round their factors to `dtype` and return float32 sums.
    """

    top: TrainableLayers
    head: Any  # a linear layer: weight (V, D), perhaps a bias
    pad_id: int
    temperature: float = 1.0
    dtype: torch.dtype = torch.float32

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (N, V) of the sampled distribution from hidden states (N, D).

        The temperature is applied and the pad token excluded. The result must not be
        differentiated.
        """
        logits = precise(self.head(hidden)) if self.dtype == torch.float32 else self._rounded(hidden)
        if self.temperature != 1.0:
            logits = logits / self.temperature
        logits[..., self.pad_id] = SUPPRESSED
        return logits

    def _rounded(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the output layer's logits (N, V) with factors in `dtype`."""
        return outputs(hidden, self.head.weight, _bias(self), self.dtype)

    def for_sampling(self) -> Policy:
        """Return the same policy with an output layer for few rows, which needs no cast at every token."""
        return replace(self, head=Output(held(self.head.weight.detach(), self.dtype), _bias(self)))

    @property
    def head_size(self) -> int:
        """Vocabulary size V."""
        return int(self.head.weight.shape[0])

    def response_hidden(self, batch: Batch) -> torch.Tensor:
        """Return hidden states (N, D) that predict the batch's N response tokens, row by row."""
        return batch.of_responses(self.top.hidden_at(batch, batch.before_response))


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
        head = Output(own) if top.base.tied else top.own_output()
    return Policy(top, head, pad_id, temperature, top.base.dtype)


class Output(nn.Module):
    """An output layer that reads another module's matrix (V, D), such as a trained embedding."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        super().__init__()
        self.source = (weight, bias)  # a tuple keeps them out of parameters()

    @property
    def weight(self) -> torch.Tensor:
        """The matrix (V, D)."""
        return self.source[0]

    @property
    def bias(self) -> torch.Tensor | None:
        """The bias (V,), or None."""
        return self.source[1]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits (..., V) of hidden states (..., D)."""
        return linear_of_few(hidden, self.weight, self.bias)


def outputs(
    hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return logits (N, V) of hidden states (N, D) and a layer (V, D), with factors in `dtype`."""
    logits = product(hidden, weight.t(), dtype)
    return logits if bias is None else logits.add_(bias)


def token_logprobs(policy: Policy, batch: Batch) -> torch.Tensor:
    """Return log-probabilities (B, T) of the response tokens in nats, 0 off the mask."""
    hidden = policy.response_hidden(batch)
    targets = batch.of_responses(batch.response_ids)
    flat, _ = _TargetLogprobs.apply(hidden, policy.head.weight, _bias(policy), targets, policy, None)
    return batch.spread(flat)


def token_logprobs_and_kl(
    policy: Policy, reference: Policy, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the log-probabilities (B, T) of the response tokens, and KL(policy || reference) (B, T).

    The KL is exact over the vocabulary at every sampled prefix, in nats. Its gradient, with the
    prefixes held fixed, has no sampling noise of the token. Both are 0 off the mask.
    """
    with torch.no_grad():
        ref_hidden = reference.response_hidden(batch)
    targets = batch.of_responses(batch.response_ids)
    flat, kl = _TargetLogprobs.apply(
        policy.response_hidden(batch),
        policy.head.weight,
        _bias(policy),
        targets,
        policy,
        (reference, ref_hidden),
    )
    return batch.spread(flat), batch.spread(kl)


@torch.no_grad()
def likelihood_and_greedy(policy: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return responses' log-probabilities (B,) in nats, and whether greedy decoding gives them (B,)."""
    targets = batch.of_responses(batch.response_ids)
    size, nats, first = _rows(policy), [], []
    hidden = policy.response_hidden(batch)
    for h, target in zip(hidden.split(size), targets.split(size), strict=True):
        log_p = policy.logits(h).log_softmax(-1)
        nats.append(log_p.gather(1, target[:, None])[:, 0])
        first.append(log_p.argmax(-1) == target)
    return batch.spread(torch.cat(nats)).sum(1), batch.spread(~torch.cat(first)).logical_not().all(1)


@torch.no_grad()
def token_entropy(policy: Policy, batch: Batch) -> torch.Tensor:
    """Return the entropy (B, T) in nats of each response token's distribution, 0 off the mask."""
    pieces = []
    for hidden in policy.response_hidden(batch).split(_rows(policy)):
        log_p = policy.logits(hidden).log_softmax(-1)
        pieces.append(-(log_p.exp() * log_p).sum(-1))
    return batch.spread(torch.cat(pieces))


def _rows(policy: Policy) -> int:
    """Return the number of tokens whose logits are in memory at once."""
    return max(1, traits(policy.head.weight.device).logits // policy.head_size)


def _bias(policy: Policy) -> torch.Tensor | None:
    return getattr(policy.head, "bias", None)


class _TargetLogprobs(torch.autograd.Function):
    """Autograd function of log softmax(logits)[target], and of KL, that never holds N x V logits.

    If the output layer is frozen, the gradients with respect to the hidden state, (W[target] -
    softmax @ W) / temperature and the KL's, are computed in the forward pass. The backward pass is
    then a product with a column. If the output layer is trained, the backward pass computes the
    softmax again. Without a reference the KL is 0.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        policy: Policy,
        reference: tuple[Policy, torch.Tensor] | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.trains_head = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        differentiated = ctx.needs_input_grad[0] and not ctx.trains_head
        kinds = 1 if reference is None else 2
        slopes = [torch.empty_like(hidden) for _ in range(kinds)] if differentiated else []
        out = torch.empty(len(hidden), device=hidden.device)
        kl = torch.zeros_like(out)
        size, matrix = _rows(policy), held(weight, policy.dtype)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            z, picked, log_total = _softmax(hidden[rows], matrix, bias, targets[rows], policy)
            out[rows] = picked - log_total
            if differentiated:
                mean = product(z.to(hidden.dtype), matrix, policy.dtype)
                slopes[0][rows] = (matrix[targets[rows]] - mean) / policy.temperature
            if reference is not None:
                kl[rows], by_logits = _kl(z, reference, rows)
                if differentiated:
                    slope = product(by_logits.to(hidden.dtype), matrix, policy.dtype)
                    slopes[1][rows] = slope / policy.temperature
        ctx.policy, ctx.reference = policy, reference
        if differentiated:
            ctx.save_for_backward(*slopes)
        elif ctx.trains_head:
            ctx.save_for_backward(hidden, weight, targets, *([] if bias is None else [bias]))
        return out, kl

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        nothing = (None, None, None)
        if not ctx.trains_head:
            slope, *rest = ctx.saved_tensors
            by_hidden = grads[0][:, None].to(slope.dtype) * slope
            for slope in rest:
                by_hidden += grads[1][:, None].to(slope.dtype) * slope
            return by_hidden, None, None, *nothing
        hidden, weight, targets, *rest = ctx.saved_tensors
        bias = rest[0] if rest else None
        by_hidden, by_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        by_bias = None if bias is None else torch.zeros_like(bias)
        dtype, temperature = ctx.policy.dtype, ctx.policy.temperature
        size, matrix = _rows(ctx.policy), held(weight, dtype)
        for start in range(0, len(hidden), size):
            rows = slice(start, start + size)
            z, _, _ = _softmax(hidden[rows], matrix, bias, targets[rows], ctx.policy)
            of_kl = None if ctx.reference is None else _kl(z, ctx.reference, rows)[1]
            z.neg_()
            z[torch.arange(len(z), device=z.device), targets[rows]] += 1.0
            z.mul_(grads[0][rows, None])
            if of_kl is not None:
                z.addcmul_(of_kl, grads[1][rows, None])
            z = z.div_(temperature).to(hidden.dtype)
            by_hidden[rows] = product(z, matrix, dtype)
            by_weight += product(z.T, hidden[rows], dtype)
            if by_bias is not None:
                by_bias += z.sum(0)
        return by_hidden, by_weight, by_bias, *nothing


def _softmax(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    policy: Policy,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return float32 probabilities (n, V), target logits (n,) and log-normalizers (n,)."""
    z = precise(outputs(hidden, weight, bias, policy.dtype))
    if policy.temperature != 1.0:
        z /= policy.temperature
    z[:, policy.pad_id] = SUPPRESSED
    picked = z.gather(1, targets[:, None])[:, 0]
    top = z.amax(1, keepdim=True)
    total = z.sub_(top).exp_().sum(1, keepdim=True)
    z /= total
    return z, picked, (top + total.log())[:, 0]


def _kl(
    probabilities: torch.Tensor, reference: tuple[Policy, torch.Tensor], rows: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return KL(p || q) (n,) and its gradient (n, V) with respect to the logits of p, p (log p/q - KL).

    q is the reference's distribution, from its hidden states (N, D) at `rows`. A probability that has
    underflowed to 0 counts 0.
    """
    policy, hidden = reference
    log_ratio = probabilities.log().sub_(policy.logits(hidden[rows]).log_softmax(-1))
    log_ratio.masked_fill_(probabilities == 0, 0.0)
    kl = (probabilities * log_ratio).sum(-1)
    return kl, log_ratio.sub_(kl[:, None]).mul_(probabilities)


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
    return batch.spread(torch.cat(pieces)).sum(1)
