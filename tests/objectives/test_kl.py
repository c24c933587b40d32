"""KL estimators: which distribution the samples come from, which way the arguments go."""

import math

import pytest
import torch
from hypothesis import given, strategies as st

from burnish.objectives import exact_kl, kl_k1, kl_k3, sequence_sum

NAN = float("nan")
logits = st.lists(st.floats(-6, 6), min_size=5, max_size=5).map(
    lambda x: torch.tensor(x, dtype=torch.float64)
)


def slow_kl(p_logits: torch.Tensor, q_logits: torch.Tensor) -> float:
    """sum p log(p / q), from probabilities."""
    p = [math.exp(x) for x in p_logits.tolist()]
    q = [math.exp(x) for x in q_logits.tolist()]
    return sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True))


def test_estimators_golden() -> None:
    # pi = 1/2, ref = 1/4: d = ln 2 = 0.693147; 1/2 - 1 + ln 2 = 0.193147
    logprobs, ref_logprobs = torch.tensor([[math.log(0.5)]]), torch.tensor([[math.log(0.25)]])
    assert kl_k1(logprobs, ref_logprobs).item() == pytest.approx(0.693147, abs=1e-6)
    assert kl_k3(logprobs, ref_logprobs).item() == pytest.approx(0.193147, abs=1e-6)
    # The other way round: -ln 2, and 2 - 1 - ln 2
    assert kl_k1(ref_logprobs, logprobs).item() == pytest.approx(-0.693147, abs=1e-6)
    assert kl_k3(ref_logprobs, logprobs).item() == pytest.approx(0.306853, abs=1e-6)


@given(logits, logits)
def test_k1_and_k3_are_unbiased_for_kl_of_policy_to_reference(p: torch.Tensor, q: torch.Tensor) -> None:
    """The expectation over the policy's own samples, exactly; swapped arguments fail."""
    log_p, log_q = p.log_softmax(-1), q.log_softmax(-1)
    want = slow_kl(p, q)
    assert float((log_p.exp() * kl_k1(log_p, log_q)).sum()) == pytest.approx(want, abs=1e-8)
    assert float((log_p.exp() * kl_k3(log_p, log_q)).sum()) == pytest.approx(want, abs=1e-8)
    assert float(exact_kl(p, q)) == pytest.approx(want, abs=1e-8)


@given(st.floats(-10, 0), st.floats(-10, 0))
def test_k3_is_never_negative(a: float, b: float) -> None:
    x, y = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    assert kl_k3(x, y).item() >= -1e-12


def test_estimators_are_zero_at_equality_and_agree_nearby() -> None:
    x = torch.tensor([[-1.0, -2.0]], dtype=torch.float64)
    for estimator in (kl_k1, kl_k3):
        assert estimator(x, x).tolist() == [[0.0, 0.0]]
    # exp(-d) - 1 + d = d^2 / 2 - d^3 / 6 + ...
    assert kl_k3(x + 1e-3, x)[0].tolist() == pytest.approx([5e-7, 5e-7], rel=1e-3)


def test_k1_has_no_gradient_and_so_is_no_loss() -> None:
    """Over the policy's samples, held fixed: E[grad k1] = 0 (Tang and Munos), whatever the KL."""
    p = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([-0.5, 0.2, 0.1], dtype=torch.float64).log_softmax(-1)
    weights = p.detach().softmax(-1)
    (true,) = torch.autograd.grad(exact_kl(p, ref), p)
    assert float(true.abs().max()) > 0.1
    (by_k1,) = torch.autograd.grad((weights * kl_k1(p.log_softmax(-1), ref)).sum(), p)
    assert torch.allclose(by_k1, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize("estimator", [kl_k1, kl_k3, exact_kl])
def test_kl_gradcheck(estimator) -> None:
    rng = torch.Generator().manual_seed(0)
    args = tuple(torch.randn(3, 4, generator=rng, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(estimator, args)


def test_sequence_sum_golden_and_mask() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.tensor([[1.0, 2.0, NAN], [4.0, NAN, 1e9]], requires_grad=True)
    sums = sequence_sum(x, mask)
    assert sums.tolist() == [3.0, 4.0]  # a sum over tokens, not a mean
    sums.sum().backward()
    assert torch.equal(x.grad, mask.float())


def test_exact_kl_golden_and_shape() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 0.75 ln 1.5 + 0.25 ln 0.5 = 0.130812; the other way 0.143841
    p, q = torch.tensor([math.log(3.0), 0.0]), torch.tensor([7.0, 7.0])
    assert exact_kl(p, q).item() == pytest.approx(0.130812, abs=1e-6)
    assert exact_kl(q, p).item() == pytest.approx(0.143841, abs=1e-6)
    assert exact_kl(torch.zeros(2, 3, 5), torch.ones(2, 3, 5)).tolist() == [[0.0] * 3] * 2


def test_exact_kl_of_tokens_one_side_cannot_say() -> None:
    both = torch.tensor([0.0, 0.0, -math.inf])
    assert exact_kl(both, both).item() == 0.0
    # p = (1/2, 1/2, 0), q = (1/3, 1/3, 1/3): ln(3/2)
    assert exact_kl(both, torch.zeros(3)).item() == pytest.approx(math.log(1.5))
    assert exact_kl(torch.zeros(3), both).item() == math.inf
    p = both.clone().requires_grad_()
    exact_kl(p, torch.tensor([0.0, 1.0, 2.0])).backward()
    assert bool(torch.isfinite(p.grad).all())


def test_shapes_are_checked() -> None:
    with pytest.raises(AssertionError):
        kl_k1(torch.zeros(2, 3), torch.zeros(2, 1))
    with pytest.raises(AssertionError):
        exact_kl(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(AssertionError):
        sequence_sum(torch.zeros(2, 3), torch.ones(2, 1, dtype=torch.bool))
