"""Estimators of KL(policy || reference) in nats, from samples of the policy (Schulman 2020, k1 and k3)."""

from __future__ import annotations

import torch


def kl_k1(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """log pi - log ref, elementwise: unbiased, noisy, may be negative.

    In the reward (detached) its policy gradient is the exact gradient of KL(policy || reference); as a
    loss its expected gradient is 0 (Tang and Munos 2025), so do not differentiate it.
    """
    assert logprobs.shape == ref_logprobs.shape
    return logprobs - ref_logprobs


def kl_k3(logprobs: torch.Tensor, ref_logprobs: torch.Tensor) -> torch.Tensor:
    """exp(-d) - 1 + d with d = log pi - log ref, elementwise: unbiased, never negative; for monitoring."""
    delta = kl_k1(logprobs, ref_logprobs)
    return torch.expm1(-delta) + delta


def sequence_sum(x: torch.Tensor, response_mask: torch.Tensor) -> torch.Tensor:
    """(B, T) per token -> (B,) per response; what is off the mask is ignored, nan included."""
    assert x.ndim == 2
    assert x.shape == response_mask.shape
    return x.masked_fill(~response_mask, 0.0).sum(1)


def exact_kl(logits: torch.Tensor, ref_logits: torch.Tensor) -> torch.Tensor:
    """KL(softmax(logits) || softmax(ref_logits)) over the last axis: logits (..., V) -> nats (...).

    A token the policy cannot say (logit -inf) counts 0, whatever the reference says of it; one that only the
    reference cannot say makes the KL infinite.
    """
    assert logits.shape == ref_logits.shape
    log_p, log_q = logits.log_softmax(-1), ref_logits.log_softmax(-1)
    log_ratio = (log_p - log_q).masked_fill(log_p.isneginf(), 0.0)  # 0 log 0 = 0
    return (log_p.exp() * log_ratio).sum(-1)
