"""Log-probabilities of response tokens, without ever holding (B, T, V) for the whole batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from burnish.models.batches import Batch
from burnish.models.shared_base import Top
from burnish.objectives.kl import exact_kl

CHUNK_ELEMENTS = 1 << 24  # logits held at once: 64 MiB in float32
SUPPRESSED = -1e9  # finite, so that 0 * SUPPRESSED stays 0 in entropies


@dataclass
class Policy:
    """A language model as a policy: a body, the (shared, frozen or tied) output layer, a sampling temperature."""

    top: Top
    head: nn.Module
    pad_id: int
    temperature: float = 1.0

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(N, D) -> (N, V) float32 logits of the distribution that is sampled: temperature applied, pad excluded."""
        logits = self.head(hidden).float() / self.temperature
        return logits.index_fill(-1, torch.tensor([self.pad_id]), SUPPRESSED)

    @property
    def head_size(self) -> int:
        """V"""
        return int(self.top.base.lm.get_output_embeddings().weight.shape[0])

    def response_hidden(self, batch: Batch) -> torch.Tensor:
        """(N, D) hidden states that predict the batch's N response tokens, row by row."""
        hidden = self.top.hidden(batch)
        return hidden[:, batch.prompt_width - 1 : -1][batch.response_mask]


def make_policy(top: Top, pad_id: int, temperature: float = 1.0) -> Policy:
    """The policy of a top. When the whole model is trained and its embeddings are tied, the output layer is
    the trained copy's embedding; everywhere else it is the base's and stays frozen."""
    lm = top.base.lm
    output = lm.get_output_embeddings()
    embedding = lm.get_input_embeddings().weight
    own = top.body.get_input_embeddings().weight if not top.base.cut and top.mode == "all" else embedding
    if own is not embedding and output.weight is embedding:
        head: nn.Module = TiedOutput(own)
    else:
        head = output
    return Policy(top, head, pad_id, temperature)


class TiedOutput(nn.Module):
    """An output layer that reads the trained copy's embedding matrix (V, D)."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.source = (weight,)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(hidden, self.source[0])


def token_logprobs(policy: Policy, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies (nats) of the response tokens, both (B, T), 0 off the mask."""
    hidden = policy.response_hidden(batch)
    targets = batch.response_ids[batch.response_mask]
    chunk = max(1, CHUNK_ELEMENTS // policy.head_size)
    pieces = []
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        if torch.is_grad_enabled() and len(hidden) > chunk:
            pieces.append(checkpoint(_gather, policy, h, t, use_reentrant=False))
        else:
            pieces.append(_gather(policy, h, t))
    flat_logprobs = torch.cat([p[0] for p in pieces])
    flat_entropy = torch.cat([p[1] for p in pieces])
    mask = batch.response_mask
    zeros = torch.zeros(mask.shape)
    return zeros.masked_scatter(mask, flat_logprobs), zeros.masked_scatter(mask, flat_entropy.detach())


def _gather(policy: Policy, hidden: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    logits = policy.logits(hidden)
    log_normalizer = logits.logsumexp(-1)
    logprobs = logits.gather(-1, targets[:, None])[:, 0] - log_normalizer
    with torch.no_grad():
        entropy = log_normalizer - ((logits - log_normalizer[:, None]).exp() * logits).sum(-1)
    return logprobs, entropy


@torch.no_grad()
def response_kl(policy: Policy, reference: Policy, batch: Batch) -> torch.Tensor:
    """(B,) KL(policy || reference) in nats per response, exact over the vocabulary at every sampled prefix
    and summed over tokens: an unbiased, low-variance estimate of the sequence KL."""
    hidden, ref_hidden = policy.response_hidden(batch), reference.response_hidden(batch)
    chunk = max(1, CHUNK_ELEMENTS // policy.head_size)
    pieces = [
        exact_kl(policy.logits(h), reference.logits(r))
        for h, r in zip(hidden.split(chunk), ref_hidden.split(chunk), strict=True)
    ]
    mask = batch.response_mask
    return torch.zeros(mask.shape).masked_scatter(mask, torch.cat(pieces)).sum(1)
