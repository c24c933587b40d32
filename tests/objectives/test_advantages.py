"""Token rewards, GAE and whitening against hand-worked numbers and a slow definition."""

import math
from itertools import product

import pytest
import torch
from hypothesis import given, settings, strategies as st

from burnish.config.ppo import PPOConfig
from burnish.objectives import exact_kl, gae, group_advantages, paid_before, shape_rewards, whiten
from burnish.policy.advantages import advantages_of, prefix_baseline

NAN = float("nan")


def right_padded(lengths: list[int], width: int) -> torch.Tensor:
    return torch.arange(width)[None] < torch.tensor(lengths)[:, None]


def random_case(seed: int, width: int = 6) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    mask = right_padded(torch.randint(1, width + 1, (4,), generator=rng).tolist(), width)
    rewards, values = (torch.randn(4, width, generator=rng, dtype=torch.float64) for _ in range(2))
    return rewards, values, mask


# Token rewards


def test_shape_rewards_golden_with_rows_of_different_length() -> None:
    mask = right_padded([3, 1], 3)
    logprobs = torch.tensor([[-1.0, -2.0, -3.0], [-1.0, NAN, NAN]])
    ref_logprobs = torch.tensor([[-1.5, -1.0, -3.0], [-3.0, NAN, NAN]])
    rewards = shape_rewards(torch.tensor([10.0, 20.0]), logprobs, ref_logprobs, mask, kl_coef=0.1)
    # row 0: -0.1 * (0.5, -1, 0) and 10 on the third token; row 1: -0.1 * 2 + 20 on its only token
    want = torch.tensor([[-0.05, 0.1, 10.0], [19.8, 0.0, 0.0]])
    assert torch.allclose(rewards, want)


def test_a_response_the_reference_finds_unlikely_costs() -> None:
    mask = right_padded([2], 2)
    far = shape_rewards(
        torch.zeros(1), torch.tensor([[-1.0, -1.0]]), torch.full((1, 2), -4.0), mask, kl_coef=0.5
    )
    assert far.tolist() == [[-1.5, -1.5]]


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0, 2))
def test_rewards_of_a_response_add_up_to_score_minus_kl(seed: int, kl_coef: float) -> None:
    logprobs, ref_logprobs, mask = random_case(seed)
    scores = torch.arange(4, dtype=torch.float64)
    rewards = shape_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=kl_coef)
    for b in range(4):
        n = int(mask[b].sum())
        kl = sum(float(logprobs[b, i] - ref_logprobs[b, i]) for i in range(n))
        assert float(rewards[b].sum()) == pytest.approx(float(scores[b]) - kl_coef * kl, abs=1e-9)
        if n > 1:
            first = -kl_coef * float(logprobs[b, 0] - ref_logprobs[b, 0])
            assert float(rewards[b, 0]) == pytest.approx(first, abs=1e-9)
    assert bool((rewards[~mask] == 0).all())


def test_an_empty_response_raises() -> None:
    zeros = torch.zeros(3, 4)
    with pytest.raises(ValueError, match="response 1 has 0 tokens"):
        shape_rewards(torch.zeros(3), zeros, zeros, right_padded([2, 0, 4], 4), kl_coef=0.1)


def test_padding_on_the_left_is_refused() -> None:
    zeros, left = torch.zeros(1, 3), torch.tensor([[False, True, True]])
    with pytest.raises(AssertionError):
        shape_rewards(torch.zeros(1), zeros, zeros, left, kl_coef=0.1)
    with pytest.raises(AssertionError):
        gae(zeros, zeros, left, gamma=1.0, lam=1.0)


# GAE


def test_gae_golden() -> None:
    # V = (1, 2), r = (0.5, 3), gamma 0.9, lambda 0.8
    # delta_1 = 3 - 2 = 1; delta_0 = 0.5 + 0.9 * 2 - 1 = 1.3; A_0 = 1.3 + 0.72 * 1 = 2.02
    advantages, returns = gae(
        torch.tensor([[0.5, 3.0, NAN]], dtype=torch.float64),
        torch.tensor([[1.0, 2.0, NAN]], dtype=torch.float64),
        right_padded([2], 3),
        gamma=0.9,
        lam=0.8,
    )
    assert advantages[0].tolist() == pytest.approx([2.02, 1.0, 0.0])
    assert returns[0].tolist() == pytest.approx([3.02, 3.0, 0.0])


def slow_advantage(rewards: list[float], values: list[float], start: int, gamma: float, lam: float) -> float:
    """The definition as a sum: A_t = sum_l (gamma lam)^l (r_{t+l} + gamma V_{t+l+1} - V_{t+l})."""
    ahead = [*values, 0.0]
    return sum(
        (gamma * lam) ** (i - start) * (rewards[i] + gamma * ahead[i + 1] - ahead[i])
        for i in range(start, len(rewards))
    )


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.5, 1), st.floats(0, 1))
def test_gae_equals_the_sum_that_defines_it(seed: int, gamma: float, lam: float) -> None:
    rewards, values, mask = random_case(seed)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, lam=lam)
    for b in range(4):
        n = int(mask[b].sum())
        want = [
            slow_advantage(rewards[b, :n].tolist(), values[b, :n].tolist(), i, gamma, lam) for i in range(n)
        ]
        assert advantages[b, :n].tolist() == pytest.approx(want, abs=1e-9)
        assert returns[b, :n].tolist() == pytest.approx(
            [w + float(v) for w, v in zip(want, values[b], strict=False)], abs=1e-9
        )
    assert bool((advantages[~mask] == 0).all())
    assert bool((returns[~mask] == 0).all())


@settings(max_examples=40)
@given(st.integers(0, 10_000))
def test_gae_with_lambda_and_gamma_one_is_rewards_to_go_minus_values(seed: int) -> None:
    rewards, values, mask = random_case(seed)
    advantages, returns = gae(rewards, values, mask, gamma=1.0, lam=1.0)
    kept = rewards * mask
    to_go = kept.sum(1, keepdim=True) - kept.cumsum(1) + kept
    assert torch.allclose(advantages, (to_go - values) * mask)
    assert torch.allclose(returns, to_go * mask)


def test_gae_with_lambda_zero_looks_one_step_ahead() -> None:
    rewards, values, mask = random_case(5)
    advantages, _ = gae(rewards, values, mask, gamma=0.9, lam=0.0)
    ahead = torch.cat([(values * mask)[:, 1:], torch.zeros(4, 1)], 1)
    assert torch.allclose(advantages, (rewards + 0.9 * ahead - values) * mask)


def test_gae_ignores_what_is_off_the_mask() -> None:
    rewards, values, mask = random_case(2)
    assert not bool(mask.all())
    clean = gae(rewards, values, mask, gamma=0.99, lam=0.95)
    dirty_rewards, dirty_values = (
        x.masked_fill(~mask, garbage).requires_grad_() for x, garbage in ((rewards, NAN), (values, 1e9))
    )
    dirty = gae(dirty_rewards, dirty_values, mask, gamma=0.99, lam=0.95)
    assert torch.equal(dirty[0], clean[0])
    assert torch.equal(dirty[1], clean[1])
    (dirty[0].square().sum() + dirty[1].square().sum()).backward()
    for x in (dirty_rewards, dirty_values):
        assert bool((x.grad[~mask] == 0).all())
        assert bool((x.grad[mask] != 0).any())


def test_gae_gradcheck() -> None:
    rewards, values, mask = random_case(9, width=4)
    assert torch.autograd.gradcheck(
        lambda r, v: gae(r, v, mask, gamma=0.9, lam=0.7), (rewards.requires_grad_(), values.requires_grad_())
    )


# Whitening


def test_whiten_golden_with_biased_variance() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    x = torch.tensor([[1.0, 2.0], [6.0, NAN]], dtype=torch.float64)
    # mean 3, deviations -2 -1 3, biased variance 14 / 3 (unbiased: 7)
    sd = math.sqrt(14 / 3)
    white = whiten(x, mask)
    assert white.flatten().tolist() == pytest.approx([-2 / sd, -1 / sd, 3 / sd, 0.0])
    scaled = whiten(x, mask, shift_mean=False)
    assert scaled.flatten().tolist() == pytest.approx([3 - 2 / sd, 3 - 1 / sd, 3 + 3 / sd, 0.0])


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.floats(0.1, 50), st.floats(-5, 5))
def test_whitened_entries_have_mean_zero_and_variance_one(seed: int, scale: float, shift: float) -> None:
    x, _, mask = random_case(seed)
    kept = whiten(scale * x + shift, mask)[mask]
    assert float(kept.mean()) == pytest.approx(0.0, abs=1e-6)
    assert float(kept.square().mean()) == pytest.approx(1.0, abs=1e-3)
    assert torch.allclose(kept, whiten(x, mask)[mask], atol=1e-4)  # neither scale nor shift survives


def test_whitening_ignores_what_is_off_the_mask() -> None:
    x, _, mask = random_case(2)
    dirty = x.masked_fill(~mask, 1e6).requires_grad_()
    white = whiten(dirty, mask)
    assert torch.equal(white, whiten(x, mask))
    white.pow(3).sum().backward()
    assert bool((dirty.grad[~mask] == 0).all())
    assert bool((dirty.grad[mask] != 0).any())


def test_whitening_equal_entries_gives_zeros_and_none_raises() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    assert bool((whiten(torch.full((2, 3), 2.0), mask) == 0).all())  # (x - mean) / sqrt(0 + 1e-8)
    with pytest.raises(ValueError, match="0 entries"):
        whiten(torch.ones(2, 3), ~mask)


def test_the_epsilon_stands_inside_the_root() -> None:
    x = torch.tensor([[-1e-4, 1e-4]], dtype=torch.float64)
    # variance 1e-8, so 1e-4 / sqrt(1e-8 + 1e-8) = 1 / sqrt(2)
    white = whiten(x, torch.ones(1, 2, dtype=torch.bool))
    assert white[0].tolist() == pytest.approx([-math.sqrt(0.5), math.sqrt(0.5)])


def test_group_advantages_by_hand() -> None:
    """Two prompts, two and two answers: totals 1, 3 and 5, 5."""
    rewards = torch.tensor([[0.5, 0.5], [3.0, 9.0], [5.0, 0.0], [2.0, 3.0]])
    mask = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
    rloo = group_advantages(rewards, mask, answers=2, scaled=False)
    assert rloo.tolist() == [[-2.0, -2.0], [2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    grpo = group_advantages(rewards, mask, answers=2, scaled=True)
    assert grpo.tolist() == [[-1.0, -1.0], [1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]
    three = group_advantages(
        torch.tensor([[0.0], [3.0], [6.0]]), torch.ones(3, 1).bool(), answers=3, scaled=False
    )
    assert three[:, 0].tolist() == [-4.5, 0.0, 4.5]
    for answers in (1, 3):
        with pytest.raises(ValueError, match="each prompt needs two answers"):
            group_advantages(rewards, mask, answers=answers, scaled=False)


def test_group_advantages_of_what_follows_a_token_by_hand() -> None:
    """Penalties -1, -2 and -4, -8; scores 10 and 30 at the last token."""
    mask = torch.tensor([[True, True], [True, False]])
    penalties = torch.tensor([[-1.0, -2.0], [-4.0, -8.0]])
    paid = paid_before(penalties, mask)
    assert paid.tolist() == [[0.0, -1.0], [0.0, -4.0]]
    rewards = torch.tensor([[-1.0, 8.0], [26.0, 0.0]])
    found = group_advantages(rewards, mask, answers=2, scaled=False, paid=paid)
    # 7 and 26 from the first token on; from the second on 8, and 30 for the response that has ended.
    assert found.tolist() == [[-19.0, -22.0], [19.0, 0.0]]


@pytest.mark.parametrize("where", ["reward", "reward_to_go", "loss"])
def test_each_place_of_the_kl_gives_the_gradient_of_its_objective(where: str) -> None:
    """All pairs of responses of up to three tokens are enumerated, so that expectations are exact.

    A KL in the reward has the gradient of score less coefficient times KL. A KL in the loss has it
    with the prefixes of the KL held fixed.
    """
    rng = torch.Generator().manual_seed(3)
    words, longest, coef = 3, 3, 0.7
    logits = torch.randn(longest, words, generator=rng, dtype=torch.float64, requires_grad=True)
    log_q = torch.randn(longest, words, generator=rng, dtype=torch.float64).log_softmax(1)
    score = torch.randn(words, words, words, generator=rng, dtype=torch.float64)
    log_p = logits.log_softmax(1)
    responses = []  # token 0 ends a response
    for tokens in product(range(words), repeat=longest):
        length = tokens.index(0) + 1 if 0 in tokens else longest
        if tokens[:length] not in responses:
            responses.append(tokens[:length])
    width = range(longest)
    mask = torch.tensor([[t < len(r) for t in width] for r in responses])
    padded = torch.tensor([[*r, *[0] * (longest - len(r))] for r in responses])
    scores = torch.stack([score[tuple(r)] for r in padded.tolist()])
    logprobs = torch.stack([log_p[t, padded[:, t]] for t in width], 1)
    reference = torch.stack([log_q[t, padded[:, t]] for t in width], 1)
    chance = (logprobs * mask).sum(1).exp()
    assert float(chance.detach().sum()) == pytest.approx(1.0)
    exact = exact_kl(log_p, log_q).expand(len(mask), -1)  # the same after every prefix
    fixed = chance.detach() @ (exact * mask).sum(1)
    kl = fixed if where == "loss" else chance @ ((logprobs - reference) * mask).sum(1)
    (wanted,) = torch.autograd.grad(chance @ scores - coef * kl, logits, retain_graph=True)
    settings = {
        "kl": {"where": where},
        "whiten_advantages": False,
        "samples_per_prompt": 2,
        "advantage": "rloo",
    }
    config = PPOConfig.model_validate(settings)
    total = torch.zeros((), dtype=torch.float64)
    for i, j in product(range(len(responses)), repeat=2):
        rows = [i, j]
        found = advantages_of(
            config,
            *(scores[rows], logprobs[rows].detach(), reference[rows], None, mask[rows]),
            kl_coef=coef,
            samples_per_prompt=2,
            scaled=False,
        )
        per_token = found.values * logprobs[rows] - found.kl_weight * exact[rows]
        total = total + (chance[i] * chance[j]).detach() * (per_token * mask[rows]).sum() / 2
    (given,) = torch.autograd.grad(total, logits)
    assert torch.allclose(given, wanted, atol=1e-9)


def prefix_batch(seed: int, prompts: int = 64, together: int = 4, width: int = 12):  # type: ignore[no-untyped-def]
    """Scores that are means of independent tokens' worths, and the running means before each token."""
    rng = torch.Generator().manual_seed(seed)
    rows = prompts * together
    worth = torch.randn(rows, width, generator=rng, dtype=torch.float64)
    lengths = torch.randint(2, width + 1, (rows,), generator=rng)
    mask = torch.arange(width)[None] < lengths[:, None]
    worth = worth.masked_fill(~mask, 0.0)
    usual = torch.randn(prompts, generator=rng, dtype=torch.float64).repeat_interleave(together)
    before = worth.cumsum(1) - worth
    prefixes = usual[:, None] + before / torch.arange(width).clamp(min=1)
    scores = usual + worth.sum(1) / lengths
    return scores, prefixes, mask, rng


def test_a_baseline_of_prefixes_explains_more_than_the_other_responses() -> None:
    scores, prefixes, mask, _ = prefix_batch(0)
    groups = scores.view(-1, 4)
    others = ((groups.sum(1, keepdim=True) - groups) / 3).reshape(-1, 1).expand_as(prefixes)
    baseline = prefix_baseline(scores, prefixes, mask, together=4)

    def error(guess: torch.Tensor) -> float:
        return float((scores[:, None] - guess)[mask].square().mean())

    assert error(baseline) < 0.9 * error(others)
    assert torch.equal(baseline[:, 0], others[:, 0]), "nothing is known before the first token"


def test_prefixes_that_say_nothing_leave_the_baseline_of_rloo() -> None:
    scores, prefixes, mask, rng = prefix_batch(1, prompts=256)
    noise = torch.randn(prefixes.shape, generator=rng, dtype=torch.float64)
    groups = scores.view(-1, 4)
    others = ((groups.sum(1, keepdim=True) - groups) / 3).reshape(-1, 1).expand_as(prefixes)
    baseline = prefix_baseline(scores, noise, mask, together=4)
    assert float((baseline - others)[mask].abs().mean()) < 0.05
    flat = prefix_baseline(scores, torch.zeros_like(prefixes), mask, together=4)
    assert torch.equal(flat[mask], others[mask]), "prefixes without any rise"


@pytest.mark.parametrize("lam", [1.0, 0.9])
def test_credit_by_prefix_has_less_noise_and_the_same_direction(lam: float) -> None:
    """The gradient of a policy over independent tokens, whose worths are known: mean and spread over batches."""
    settings = {"credit": "prefix", "advantage": "rloo", "samples_per_prompt": 4, "lam": lam}
    config = PPOConfig.model_validate({**settings, "batch_size": 256, "whiten_advantages": False})
    found: dict[str, list[float]] = {"prefix": [], "response": []}
    for seed in range(30):
        scores, prefixes, mask, _ = prefix_batch(seed)
        zeros = torch.zeros_like(prefixes)
        for credit in found:
            advantages = advantages_of(
                config,
                *(scores, zeros, zeros, None, mask),
                kl_coef=0.1,
                samples_per_prompt=4,
                scaled=False,
                prefixes=prefixes if credit == "prefix" else None,
            ).values
            # The score function of a token is its own worth, for a Gaussian with its mean as parameter.
            grown = torch.cat([prefixes[:, 1:], scores[:, None]], 1)
            count = torch.arange(1, mask.shape[1] + 1)
            worth = (grown - prefixes[:, :1]) * count - (prefixes - prefixes[:, :1]) * (count - 1)
            inner = mask.clone()
            inner[torch.arange(len(mask)), mask.sum(1) - 1] = False  # the last token's worth is in the score
            found[credit].append(float((advantages * worth)[inner].mean()))
    means = {credit: sum(v) / len(v) for credit, v in found.items()}
    spreads = {credit: torch.tensor(v).std().item() for credit, v in found.items()}
    assert means["prefix"] > 0.5 * means["response"] > 0
    assert spreads["prefix"] / means["prefix"] < 0.8 * spreads["response"] / means["response"]
