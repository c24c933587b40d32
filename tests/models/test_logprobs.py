"""The log-probabilities that training reads: values and gradients against plain autograd."""

from __future__ import annotations

import copy
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burnish.models import logprobs
from burnish.models.device import ON_CPU
from burnish.models.logprobs import SUPPRESSED, Policy, _TargetLogprobs
from burnish.objectives import exact_kl

N, D, V, PAD = 23, 7, 31, 4


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("trains_head", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows_held", [1, 5, 100])
def test_value_and_gradient_are_those_of_log_softmax(
    monkeypatch: pytest.MonkeyPatch, temperature: float, trains_head: bool, bias: bool, rows_held: int
) -> None:
    monkeypatch.setattr(logprobs, "traits", lambda device: replace(ON_CPU, logits=rows_held * V))
    rng = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(D, V, bias=bias).double().requires_grad_(trains_head)
    hidden = torch.randn(N, D, generator=rng, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(5, V, (N,), generator=rng)
    weights = torch.randn(N, generator=rng, dtype=torch.float64)
    top: Any = SimpleNamespace()
    policy = Policy(top, head, PAD, temperature)

    def gradients(values: torch.Tensor) -> list[torch.Tensor]:
        wanted = [hidden, *(head.parameters() if trains_head else ())]
        return list(torch.autograd.grad((values * weights).sum(), wanted, retain_graph=True))

    z = head(hidden) / temperature
    z = z.index_fill(1, torch.tensor([PAD]), SUPPRESSED)
    expected = z.log_softmax(1).gather(1, targets[:, None])[:, 0]
    ours, none = _TargetLogprobs.apply(hidden, head.weight, head.bias, targets, policy, None)
    assert torch.allclose(ours.double(), expected, atol=1e-5)
    assert not none.any()
    for a, b in zip(gradients(ours), gradients(expected), strict=True):
        assert torch.allclose(a, b, atol=1e-5)
    # With a reference: both outputs, and the gradient of a loss of both.
    ref_hidden = torch.randn(N, D, generator=rng, dtype=torch.float64)
    reference = Policy(top, copy.deepcopy(head), PAD, temperature)
    log_q = (head(ref_hidden) / temperature).index_fill(1, torch.tensor([PAD]), SUPPRESSED).log_softmax(1)
    exact = exact_kl(z, log_q.detach())
    again, kl = _TargetLogprobs.apply(
        hidden, head.weight, head.bias, targets, policy, (reference, ref_hidden)
    )
    assert torch.equal(again, ours)
    assert torch.allclose(kl.double(), exact, atol=1e-5)
    for a, b in zip(gradients(again + 0.3 * kl), gradients(expected + 0.3 * exact), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_nothing_is_kept_for_a_backward_pass_that_never_comes() -> None:
    head = torch.nn.Linear(D, V).requires_grad_(False)
    top: Any = SimpleNamespace()
    out = _TargetLogprobs.apply(
        torch.zeros(N, D), head.weight, head.bias, torch.full((N,), 5), Policy(top, head, PAD), None
    )[0]
    assert out.grad_fn is None
