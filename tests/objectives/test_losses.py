"""Losses against hand-worked numbers, slow loops, and the laws they owe."""

import math
from typing import get_args

import pytest
import torch
from hypothesis import given, settings, strategies as st

from burnish.config.dpo import DPOConfig
from burnish.objectives import (
    DPO_LOSSES,
    approx_kl,
    bradley_terry_loss,
    clipped_policy_loss,
    clipped_value_loss,
    dpo_loss,
    explained_variance,
    ipo_loss,
    loss_normalizer,
    masked_mean,
    response_cross_entropy,
)

NAN = float("nan")
scores = st.floats(-20, 20)


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ragged(seed: int, rows: int = 4, width: int = 5) -> tuple[torch.Generator, torch.Tensor]:
    """A generator and a right-padded mask with rows of length 1 to `width`."""
    rng = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, width + 1, (rows,), generator=rng)
    return rng, torch.arange(width)[None] < lengths[:, None]


def noise(rng: torch.Generator, mask: torch.Tensor, scale: float = 0.5) -> torch.Tensor:
    return scale * torch.randn(mask.shape, generator=rng, dtype=torch.float64)


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x)) if x > 0 else x - math.log1p(math.exp(x))


# masked mean


def test_masked_mean_ignores_what_is_off_the_mask() -> None:
    mask = torch.tensor([[True, False], [True, True]])
    x = torch.tensor([[1.0, NAN], [2.0, 6.0]], requires_grad=True)
    mean = masked_mean(x, mask)
    assert mean.item() == 3.0  # (1 + 2 + 6) / 3
    mean.backward()
    assert torch.allclose(x.grad, torch.tensor([[1 / 3, 0.0], [1 / 3, 1 / 3]]))


def test_a_mean_of_nothing_raises() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        masked_mean(torch.ones(2, 3), torch.zeros(2, 3, dtype=torch.bool))


# Bradley-Terry


def test_bradley_terry_golden() -> None:
    # r_w - r_l = ln 3, sigmoid = 3/4: -ln(3/4) = 0.287682072
    loss = bradley_terry_loss(t(math.log(3), 0.0), t(0.0, math.log(3)))
    assert loss.shape == (2,)
    assert loss.tolist() == pytest.approx([0.287682072, 1.386294361])  # and -ln(1/4)


def test_bradley_terry_margin_is_taken_off_the_difference() -> None:
    # 2 - 0 - (2 - ln 3) = ln 3
    assert bradley_terry_loss(t(2.0), t(0.0), margin=2 - math.log(3)).item() == pytest.approx(0.287682072)


def test_bradley_terry_smoothing_golden() -> None:
    # 0.9 * 0.287682072 + 0.1 * 1.386294361 = 0.397543301
    loss = bradley_terry_loss(t(math.log(3)), t(0.0), label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.397543301)


def test_bradley_terry_confidence_and_smoothing_golden() -> None:
    # q = 0.8 * 0.9 + 0.2 * 0.1 = 0.74: 0.74 * 0.287682072 + 0.26 * 1.386294361 = 0.573321267
    loss = bradley_terry_loss(t(math.log(3)), t(0.0), label_smoothing=0.1, confidence=t(0.8))
    assert loss.item() == pytest.approx(0.573321267)


def test_bradley_terry_centring_golden() -> None:
    # (1.5 + 0.5)^2 * 0.01 = 0.04, beside -ln sigmoid(1) = 0.313261688
    loss = bradley_terry_loss(t(1.5), t(0.5), center_coef=0.01)
    assert loss.item() == pytest.approx(0.353261688)


def test_bradley_terry_pushes_chosen_up_and_rejected_down() -> None:
    chosen, rejected = t(0.3, -1.0).requires_grad_(), t(0.1, 2.0).requires_grad_()
    bradley_terry_loss(chosen, rejected).sum().backward()
    assert bool((chosen.grad < 0).all())
    assert bool((rejected.grad > 0).all())


def test_smoothed_bradley_terry_is_least_where_the_smoothed_label_says() -> None:
    best = math.log(0.9 / 0.1)  # sigmoid(best) = 1 - 0.1
    chosen = t(best).requires_grad_()
    bradley_terry_loss(chosen, t(0.0), label_smoothing=0.1).sum().backward()
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_half_confidence_wants_equal_scores() -> None:
    chosen = t(0.0).requires_grad_()
    bradley_terry_loss(chosen, t(0.0), confidence=t(0.5)).sum().backward()
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-12)


def test_bradley_terry_stays_finite_far_out() -> None:
    loss = bradley_terry_loss(t(-1e4, 1e4), t(1e4, -1e4))
    assert loss.tolist() == pytest.approx([2e4, 0.0])


@given(scores, scores, st.floats(0, 0.49), st.floats(-3, 3))
def test_bradley_terry_is_antisymmetric(a: float, b: float, smoothing: float, margin: float) -> None:
    """L(w, l) - L(l, w) = -(1 - 2e) d without a margin; swapping scores, label and margin changes nothing."""
    forth = bradley_terry_loss(t(a), t(b), label_smoothing=smoothing).item()
    back = bradley_terry_loss(t(b), t(a), label_smoothing=smoothing).item()
    assert forth - back == pytest.approx(-(1 - 2 * smoothing) * (a - b), abs=1e-9)
    mirrored = bradley_terry_loss(t(b), t(a), label_smoothing=smoothing, margin=-margin, confidence=t(0.0))
    direct = bradley_terry_loss(t(a), t(b), label_smoothing=smoothing, margin=margin)
    assert mirrored.item() == pytest.approx(direct.item(), abs=1e-9)


@given(scores, scores, st.floats(-5, 5))
def test_bradley_terry_knows_no_common_offset_unless_centred(a: float, b: float, offset: float) -> None:
    plain = bradley_terry_loss(t(a), t(b)).item()
    assert bradley_terry_loss(t(a + offset), t(b + offset)).item() == pytest.approx(plain, abs=1e-9)


def test_bradley_terry_gradcheck() -> None:
    args = (t(0.3, -1.2).requires_grad_(), t(0.5, 0.1).requires_grad_())
    assert torch.autograd.gradcheck(
        lambda a, b: bradley_terry_loss(
            a, b, label_smoothing=0.1, margin=0.3, center_coef=0.05, confidence=t(0.9, 0.6)
        ),
        args,
    )


def test_shapes_are_checked_on_entry() -> None:
    with pytest.raises(AssertionError):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3, 1))
    with pytest.raises(AssertionError):
        bradley_terry_loss(torch.zeros(3), torch.zeros(3), confidence=torch.zeros(1))
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(AssertionError):
        clipped_policy_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2, 1), mask, cliprange=0.2)
    with pytest.raises(AssertionError):
        clipped_value_loss(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(2), mask, cliprange_value=0.2)
    with pytest.raises(AssertionError):
        response_cross_entropy(torch.zeros(2), mask)
    with pytest.raises(AssertionError):
        dpo_loss(torch.zeros(2), torch.zeros(2), torch.zeros(1), torch.zeros(2), beta=0.1)


# Clipped policy loss


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped"),
    [
        (1.5, 2.0, -2.4, 1.0),  # max(-3.0, -1.2 * 2): gain capped above
        (0.5, 2.0, -1.0, 0.0),  # max(-1.0, -0.8 * 2): the pessimistic branch is not clipped
        (1.5, -2.0, 3.0, 0.0),  # max(3.0, 1.2 * 2)
        (0.5, -2.0, 1.6, 1.0),  # max(1.0, 0.8 * 2): gain capped below
        (1.1, 2.0, -2.2, 0.0),  # inside the range
    ],
)
def test_clipped_policy_loss_golden(ratio: float, advantage: float, loss: float, clipped: float) -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    got, share = clipped_policy_loss(
        t(math.log(ratio) - 1.0)[None], t(-1.0)[None], t(advantage)[None], mask, cliprange=0.2
    )
    assert got.item() == pytest.approx(loss)
    assert share.item() == clipped


def slow_policy_loss(
    new: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, mask: torch.Tensor, cliprange: float
) -> tuple[float, float]:
    total, clips, n = 0.0, 0, 0
    for b in range(mask.shape[0]):
        for i in range(mask.shape[1]):
            if mask[b, i]:
                ratio = math.exp(float(new[b, i]) - float(old[b, i]))
                gain = float(advantages[b, i])
                bounded = min(1 + cliprange, max(1 - cliprange, ratio))
                objective = min(ratio * gain, bounded * gain)  # Schulman et al. 2017, Eq. 7, to be maximised
                total, n = total - objective, n + 1
                clips += objective < ratio * gain
    return total / n, clips / n


@pytest.mark.parametrize("seed", range(5))
def test_clipped_policy_loss_equals_a_slow_loop(seed: int) -> None:
    rng, mask = ragged(seed)
    new, old, advantages = (noise(rng, mask) for _ in range(3))
    loss, share = clipped_policy_loss(new, old, advantages, mask, cliprange=0.2)
    want, want_share = slow_policy_loss(new, old, advantages, mask, 0.2)
    assert loss.item() == pytest.approx(want)
    assert share.item() == pytest.approx(want_share)


def test_at_ratio_one_the_gradient_is_the_policy_gradient() -> None:
    rng, mask = ragged(0)
    old, advantages = noise(rng, mask), noise(rng, mask)
    new = old.clone().requires_grad_()
    loss, share = clipped_policy_loss(new, old, advantages, mask, cliprange=0.2)
    loss.backward()
    n = int(mask.sum())
    assert loss.item() == pytest.approx(-float(advantages[mask].sum()) / n)
    assert torch.allclose(new.grad, -advantages * mask / n)
    assert share.item() == 0.0


def test_a_clipped_token_has_no_gradient() -> None:
    mask = torch.ones(1, 2, dtype=torch.bool)
    new = t(1.0, -1.0)[None].requires_grad_()  # ratios e and 1/e, both past the range in the good direction
    clipped_policy_loss(new, t(0.0, 0.0)[None], t(1.0, -1.0)[None], mask, cliprange=0.2)[0].backward()
    assert new.grad.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("garbage", [NAN, float("inf"), 1e6])
def test_policy_and_value_losses_ignore_what_is_off_the_mask(garbage: float) -> None:
    rng, mask = ragged(3)
    assert not bool(mask.all())
    clean = [noise(rng, mask) for _ in range(3)]
    dirty = [x.masked_fill(~mask, garbage).requires_grad_() for x in clean]
    loss, share = clipped_policy_loss(*dirty, mask, cliprange=0.2)
    want, want_share = clipped_policy_loss(*clean, mask, cliprange=0.2)
    value = clipped_value_loss(*dirty, mask, cliprange_value=0.2)
    assert loss.item() == want.item()
    assert share.item() == want_share.item()
    assert value.item() == clipped_value_loss(*clean, mask, cliprange_value=0.2).item()
    (loss + value).backward()
    for x in dirty:
        assert bool((x.grad[~mask] == 0).all())
        assert bool((x.grad[mask] != 0).any())


def test_policy_loss_gradcheck() -> None:
    rng, mask = ragged(7)
    old, advantages = noise(rng, mask), noise(rng, mask)
    new = noise(rng, mask).requires_grad_()
    # Off the kinks of max and clip, where no derivative exists.
    log_ratio = (new - old).detach()
    assert float((log_ratio.exp() - 0.8).abs().min()) > 1e-3
    assert float((log_ratio.exp() - 1.2).abs().min()) > 1e-3
    assert torch.autograd.gradcheck(
        lambda x: clipped_policy_loss(x, old, advantages, mask, cliprange=0.2)[0], (new,)
    )


# Clipped value loss


@pytest.mark.parametrize(
    ("value", "old", "target", "loss"),
    [
        (1.0, 0.0, 2.0, 1.62),  # clipped to 0.2: 0.5 max(1, 1.8^2) = 0.5 * 3.24
        (1.0, 0.0, 0.0, 0.5),  # 0.5 max(1, 0.2^2): the larger of the two, never the smaller
        (-1.0, 0.0, -2.0, 1.62),  # the same below
        (0.1, 0.0, 1.1, 0.5),  # inside the range: 0.5 * 1^2
    ],
)
def test_clipped_value_loss_golden(value: float, old: float, target: float, loss: float) -> None:
    mask = torch.ones(1, 1, dtype=torch.bool)
    got = clipped_value_loss(t(value)[None], t(old)[None], t(target)[None], mask, cliprange_value=0.2)
    assert got.item() == pytest.approx(loss)


def test_clipped_value_loss_pulls_towards_the_returns() -> None:
    rng, mask = ragged(1)
    old, returns = noise(rng, mask), noise(rng, mask, 3.0)
    values = old.clone().requires_grad_()
    clipped_value_loss(values, old, returns, mask, cliprange_value=0.2).backward()
    assert torch.allclose(values.grad, (old - returns) * mask / int(mask.sum()))


def test_clipped_value_loss_gradcheck() -> None:
    rng, mask = ragged(11)
    old, returns = noise(rng, mask), noise(rng, mask)
    values = noise(rng, mask).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda v: clipped_value_loss(v, old, returns, mask, cliprange_value=0.2), (values,)
    )


# Accumulation


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6))
def test_micro_batches_add_up_to_the_minibatch(seed: int, micro_batch: int) -> None:
    rng, mask = ragged(seed, rows=6)
    new, old, other = (noise(rng, mask) for _ in range(3))
    tokens = mask.sum()

    def total(rows: slice, normalizer: torch.Tensor | None) -> torch.Tensor:
        x, y, z, m = new[rows], old[rows], other[rows], mask[rows]
        policy, _ = clipped_policy_loss(x, y, z, m, cliprange=0.2, normalizer=normalizer)
        value = clipped_value_loss(x, y, z, m, cliprange_value=0.2, normalizer=normalizer)
        return torch.stack([policy, value, response_cross_entropy(x, m, normalizer=normalizer)])

    parts = sum(total(slice(i, i + micro_batch), tokens) for i in range(0, 6, micro_batch))
    assert torch.allclose(parts, total(slice(None), None), rtol=1e-12)


# DPO


def test_dpo_golden() -> None:
    # h = (-10 + 12) - (-9 + 8) = 3, beta h = 0.3: -ln sigmoid(0.3) = 0.554355244
    loss, margin = dpo_loss(t(-10.0), t(-9.0), t(-12.0), t(-8.0), beta=0.1)
    assert margin.item() == pytest.approx(0.3)
    assert loss.item() == pytest.approx(0.554355244)


def test_dpo_smoothing_golden() -> None:
    # 0.9 * 0.554355244 + 0.1 * (0.554355244 + 0.3) = 0.554355244 + 0.03
    loss, _ = dpo_loss(t(-10.0), t(-9.0), t(-12.0), t(-8.0), beta=0.1, label_smoothing=0.1)
    assert loss.item() == pytest.approx(0.584355244)


def test_dpo_gradient_is_the_papers() -> None:
    # Section 4: -beta sigmoid(r_l - r_w) for the chosen; sigmoid(-0.3) = 0.425557483
    chosen, rejected = t(-10.0).requires_grad_(), t(-9.0).requires_grad_()
    loss, margin = dpo_loss(chosen, rejected, t(-12.0), t(-8.0), beta=0.1)
    loss.sum().backward()
    assert chosen.grad.item() == pytest.approx(-0.0425557483)
    assert rejected.grad.item() == pytest.approx(0.0425557483)
    assert not margin.requires_grad


def test_smoothed_dpo_stops_where_the_label_is_as_sure_as_it_should_be() -> None:
    chosen = t(math.log(9) / 0.1).requires_grad_()  # sigmoid(beta h) = 0.9 = 1 - e
    dpo_loss(chosen, t(0.0), t(0.0), t(0.0), beta=0.1, label_smoothing=0.1)[0].sum().backward()
    assert chosen.grad.item() == pytest.approx(0.0, abs=1e-12)
    plain = t(math.log(9) / 0.1).requires_grad_()
    dpo_loss(plain, t(0.0), t(0.0), t(0.0), beta=0.1)[0].sum().backward()
    assert plain.grad.item() == pytest.approx(-0.01)  # -beta (1 - 0.9)


@given(scores, scores, scores, scores, st.floats(0.01, 2))
def test_dpo_is_bradley_terry_on_implicit_rewards(
    a: float, b: float, ref_a: float, ref_b: float, beta: float
) -> None:
    loss, margin = dpo_loss(t(a), t(b), t(ref_a), t(ref_b), beta=beta)
    assert loss.item() == pytest.approx(-log_sigmoid(beta * ((a - ref_a) - (b - ref_b))), abs=1e-9)
    swapped, opposite = dpo_loss(t(b), t(a), t(ref_b), t(ref_a), beta=beta)
    assert opposite.item() == pytest.approx(-margin.item(), abs=1e-9)
    assert loss.item() - swapped.item() == pytest.approx(-margin.item(), abs=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_dpo_at_the_reference_and_at_beta_to_zero_is_log_two(smoothing: float) -> None:
    same, margin = dpo_loss(t(-5.0), t(-7.0), t(-5.0), t(-7.0), beta=0.5, label_smoothing=smoothing)
    assert same.item() == pytest.approx(math.log(2))
    assert margin.item() == 0.0
    faint, _ = dpo_loss(t(-5.0), t(-7.0), t(-9.0), t(-3.0), beta=1e-9, label_smoothing=smoothing)
    assert faint.item() == pytest.approx(math.log(2))


def test_dpo_gradcheck() -> None:
    args = tuple(x.requires_grad_() for x in (t(-3.0, -4.0), t(-5.0, -1.0), t(-4.0, -2.0), t(-2.0, -3.0)))
    assert torch.autograd.gradcheck(lambda *a: dpo_loss(*a, beta=0.3, label_smoothing=0.1)[0], args)


# Cross-entropy, approximate KL, explained variance


def test_response_cross_entropy_golden_and_mask() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[-1.0, -2.0], [-3.0, NAN]], requires_grad=True)
    loss = response_cross_entropy(logprobs, mask)
    assert loss.item() == 2.0  # (1 + 2 + 3) / 3
    loss.backward()
    assert torch.allclose(logprobs.grad, torch.tensor([[-1 / 3, -1 / 3], [-1 / 3, 0.0]]))
    assert response_cross_entropy(logprobs, mask, normalizer=12).item() == 0.5  # 6 / 12


def test_approx_kl_golden_and_mask() -> None:
    mask = torch.tensor([[True, True, False]])
    new = torch.tensor([[-1.0, -2.0, NAN]], requires_grad=True)
    kl = approx_kl(new, torch.tensor([[-1.2, -1.8, 0.0]]), mask)
    assert kl.item() == pytest.approx(0.02)  # 0.5 * (0.04 + 0.04) / 2
    kl.backward()
    assert new.grad[0].tolist() == pytest.approx([0.1, -0.1, 0.0])  # difference / 2 tokens


def test_explained_variance_golden_and_mask() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    returns = torch.tensor([[0.0, 3.0], [6.0, NAN]])
    values = torch.tensor([[1.0, 3.0], [5.0, NAN]])
    # errors -1, 0, 1 with variance 2/3, returns with variance 6: 1 - 1/9
    assert explained_variance(values, returns, mask) == pytest.approx(8 / 9)
    assert explained_variance(returns, returns, mask) == 1.0
    assert explained_variance(returns + 5, returns, mask) == 1.0  # an offset explains all that varies
    assert explained_variance(torch.zeros(2, 2), returns, mask) == 0.0
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0)  # Var(2 G) / Var(G) = 4


def test_explained_variance_abstains_when_there_is_nothing_to_explain() -> None:
    mask = torch.ones(3, 7, dtype=torch.bool)
    # 0.1 in float32 has a mean that rounds, and so a variance that is not quite 0.
    assert explained_variance(torch.randn(3, 7), torch.full((3, 7), 0.1), mask) is None
    with pytest.raises(ValueError, match="0 tokens"):
        explained_variance(torch.zeros(3, 7), torch.zeros(3, 7), ~mask)


def test_ipo_golden_and_its_optimum() -> None:
    # h = 3; 1 / (2 beta) = 5: (3 - 5)^2
    loss, margin = ipo_loss(t(-10.0), t(-9.0), t(-12.0), t(-8.0), beta=0.1)
    assert loss.item() == pytest.approx(4.0)
    assert margin.item() == pytest.approx(0.3)
    past = t(-6.0).requires_grad_()  # h = 7
    ipo_loss(past, t(-9.0), t(-12.0), t(-8.0), beta=0.1)[0].sum().backward()
    assert past.grad.item() > 0, "what is won by more than it should be is pulled back"


def test_ipo_gradcheck() -> None:
    args = tuple(x.requires_grad_() for x in (t(-3.0, -4.0), t(-5.0, -1.0), t(-4.0, -2.0), t(-2.0, -3.0)))
    assert torch.autograd.gradcheck(lambda *a: ipo_loss(*a, beta=0.3)[0], args)


def test_every_loss_of_dpo_can_be_configured() -> None:
    assert set(DPO_LOSSES) == set(get_args(DPOConfig.model_fields["loss"].annotation))
    args = [t(-10.0), t(-9.0), t(-12.0), t(-8.0)]
    for loss in DPO_LOSSES.values():
        values, margins = loss(*args, beta=0.1, label_smoothing=0.0, confidence=t(1.0))
        assert values.shape == margins.shape == (1,)
        assert not margins.requires_grad


def test_an_upper_clip_range_of_its_own() -> None:
    """Ratios 1.25 and 0.75 with advantages that gain from the clipped side."""
    mask = torch.ones(1, 2, dtype=torch.bool)
    logprobs = torch.tensor([[1.25, 0.75]]).log()
    args = (logprobs, torch.zeros(1, 2), torch.tensor([[1.0, -1.0]]), mask)
    symmetric, share = clipped_policy_loss(*args, cliprange=0.2)
    assert float(symmetric) == pytest.approx((-1.2 + 0.8) / 2)
    assert float(share) == 1.0
    wide, share = clipped_policy_loss(*args, cliprange=0.2, cliprange_high=0.28)
    assert float(wide) == pytest.approx((-1.25 + 0.8) / 2)
    assert float(share) == 0.5


def test_the_ratio_of_a_response_is_the_mean_of_its_log_ratios() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    logprobs = torch.tensor([[0.3, -0.1], [0.2, 9.0]], requires_grad=True)
    advantages = torch.ones(2, 2)
    loss, _ = clipped_policy_loss(
        logprobs, torch.zeros(2, 2), advantages, mask, cliprange=0.5, ratio_of="response"
    )
    assert loss.item() == pytest.approx(-(2 * math.exp(0.1) + math.exp(0.2)) / 3)
    (slope,) = torch.autograd.grad(loss, logprobs)
    assert slope[0].tolist() == pytest.approx([-math.exp(0.1) / 3] * 2)
    assert slope[1].tolist() == pytest.approx([-math.exp(0.2) / 3, 0.0])


def test_means_of_the_loss_by_hand() -> None:
    """Two responses of 1 and 3 tokens with losses of 4 and 1 a token, at most 5 tokens long."""
    mask = torch.tensor([[True, False, False], [True, True, True]])
    x = torch.tensor([[4.0, 7.0, 7.0], [1.0, 1.0, 1.0]])
    wanted = {"token": 7 / 4, "response": (4 + 1) / 2, "constant": 7 / 10}
    for how, value in wanted.items():
        normalizer = loss_normalizer(how, mask, tokens=4, responses=2, longest=5)
        assert float(masked_mean(x, mask, normalizer)) == pytest.approx(value)
        parts = [
            masked_mean(
                x[[i]],
                mask[[i]],
                loss_normalizer(how, mask[[i]], tokens=4, responses=2, longest=5),
            )
            for i in range(2)
        ]
        assert float(sum(parts)) == pytest.approx(value), "micro-batches add up"
