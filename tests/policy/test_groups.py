"""Methods that learn from the best and the worst of several responses: rows, weights, gradients, optimum."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from burnish.config.align import GROUPS, AlignConfig, of_method
from burnish.config.ppo import PPOConfig
from burnish.errors import ConfigError
from burnish.models.logprobs import token_logprobs
from burnish.objectives import dpo_loss, response_cross_entropy, sequence_sum
from burnish.policy.groups import extremes, weights_of_best, weights_of_pairs
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import first_rate
from tests.policy.test_ppo import first_token_distribution
from tests.toys import make_ppo, toy


def method_ppo(method: str, **config: object) -> PPO:
    base, codec = toy()
    ppo = make_ppo(base, codec, advantage="rloo", samples_per_prompt=4, **config)  # type: ignore[arg-type]
    ppo.method = method
    return ppo


def test_the_best_and_the_worst_of_whole_groups() -> None:
    ranked = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 0.0, -1.0, 4.0])
    assert extremes(ranked, range(9), 3) == [(1, 0), (8, 7)], "a group of equal values has no order"
    assert extremes(ranked, [0, 1, 6, 7, 8], 3) == [(8, 7)], "a group that is not whole is left out"
    experience: Any = SimpleNamespace(rollout=SimpleNamespace(lengths=[4] * 8 + [6]))
    assert weights_of_best([(1, 0), (8, 7)], experience) == {1: 0.1, 8: 0.1}


def test_weights_of_pairs_are_the_gradient_of_the_loss() -> None:
    rng = torch.Generator().manual_seed(1)
    ranked, logprobs, reference = (torch.randn(6, generator=rng) for _ in range(3))
    logprobs.requires_grad_()
    pairs = [(0, 2), (5, 3)]
    mask = torch.ones(6, 1, dtype=torch.bool)
    experience: Any = SimpleNamespace(
        ranked=ranked, ref_logprobs=reference[:, None], rollout=SimpleNamespace(response_mask=mask)
    )
    weights, figures = weights_of_pairs(pairs, experience, logprobs, beta=0.4)
    losses, _ = dpo_loss(
        logprobs[[0, 5]],
        logprobs[[2, 3]],
        reference[[0, 5]],
        reference[[2, 3]],
        beta=0.4,
        confidence=(ranked[[0, 5]] - ranked[[2, 3]]).sigmoid(),
    )
    (expected,) = torch.autograd.grad(losses.mean(), logprobs)
    assert {row: pytest.approx(-expected[row].item()) for row in weights} == weights
    assert sorted(weights) == [0, 2, 3, 5]
    assert figures["policy_loss"] == pytest.approx(losses.mean().item())


@pytest.mark.parametrize("method", ["distill", "online_dpo"])
@pytest.mark.parametrize("micro_batch", [64, 4])
@pytest.mark.parametrize("moved", [False, True])
def test_the_gradient_of_a_method_is_that_of_its_loss(method: str, micro_batch: int, moved: bool) -> None:
    """Also where the policy has changed since it sampled, and where micro-batches tear groups apart."""
    ppo = method_ppo(method, micro_batch=micro_batch, max_grad_norm=1e9)
    ppo.optimizer.step = lambda: None  # type: ignore[assignment, misc]
    experience = ppo.collect(1)
    if moved:
        with torch.no_grad():
            ppo.policy_parameters[-1].add_(0.3)
        experience.trained_on = True
    figures = ppo.minibatch(experience, list(range(64)), signal=True)
    assert figures is not None
    assert "gradient_signal" in figures
    ours = [p.grad.clone() for p in ppo.policy_parameters if p.grad is not None]
    pairs = extremes(experience.ranked, range(64), 4)
    batch = experience.sequences.batch(list(range(64)))
    logprobs = token_logprobs(ppo.policy, batch)
    best, worst = ([pair[side] for pair in pairs] for side in (0, 1))
    if method == "distill":
        loss = response_cross_entropy(logprobs[best], batch.response_mask[best])
    else:
        sums = sequence_sum(logprobs, batch.response_mask)
        reference = sequence_sum(experience.ref_logprobs, experience.rollout.response_mask)
        gap = experience.ranked[best] - experience.ranked[worst]
        losses, _ = dpo_loss(
            sums[best],
            sums[worst],
            reference[best],
            reference[worst],
            beta=ppo.controller.coef,
            confidence=gap.sigmoid(),
        )
        loss = losses.mean()
    assert figures["policy_loss"] == pytest.approx(loss.item(), abs=1e-4)
    expected = torch.autograd.grad(loss, ppo.policy_parameters, allow_unused=True)
    for a, b in zip(ours, [g for g in expected if g is not None], strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3)
    assert max(float(g.abs().max()) for g in ours) > 1e-3


def test_distill_ranks_by_reward_less_kl() -> None:
    ppo = method_ppo("distill", coef=2.0)
    with torch.no_grad():
        ppo.policy_parameters[-1].mul_(1.5)
    experience = ppo.collect(1)
    assert torch.allclose(experience.ranked, experience.shaped_scores - 2.0 * experience.kl)
    assert float(experience.kl.abs().max()) > 0.01


@pytest.mark.slow("optimum")
def test_online_dpo_finds_the_optimum_of_ppo() -> None:
    """pi(t) = pi0(t) exp(r(t) / coef) / Z: the log-ratios of a pair differ by the scores' difference / coef."""
    ppo = method_ppo("online_dpo", coef=0.5, updates=400, rate=0.005, adaptive_rate=False)
    for _ in ppo.updates():
        pass
    start = first_token_distribution(ppo, "reference")
    tilted = start * torch.tensor([1.0, 1.0, 1.0, math.exp(1 / 0.5), 1.0])
    assert torch.allclose(first_token_distribution(ppo, "policy"), tilted / tilted.sum(), atol=0.05)


@pytest.mark.parametrize("method", ["distill", "online_dpo"])
def test_a_method_raises_the_score(method: str) -> None:
    ppo = method_ppo(method, updates=12, rate=0.01, adaptive_rate=False)
    stats = list(ppo.updates())
    assert stats[-1]["score"] > stats[0]["score"] + 0.1
    assert stats[-1]["kl"] > 0
    assert {"approx_kl", "grad_norm", "policy_loss", "kl_coef"} <= stats[-1].values.keys()


@pytest.mark.parametrize("method", ["distill", "online_dpo"])
def test_a_method_continues_bit_identically(method: str, tmp_path: Path) -> None:
    ppo, again = (method_ppo(method, updates=6, batch_size=32, minibatches=2) for _ in range(2))
    updates = ppo.updates()
    list(islice(updates, 3))
    ppo.save(tmp_path)
    again.load(tmp_path)
    again.load_state_dict(ppo.state_dict())
    assert [s.values for s in updates] == [s.values for s in again.updates()]
    for a, b in zip(ppo.policy_parameters, again.policy_parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("method", ["distill", "online_dpo"])
def test_equal_scores_train_nothing(method: str) -> None:
    ppo = method_ppo(method)
    experience = ppo.collect(1)
    experience.ranked = torch.zeros(64)
    before = [p.detach().clone() for p in ppo.policy_parameters]
    assert ppo.minibatch(experience, list(range(64))) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.policy_parameters, strict=True))
    assert ppo.adapt_rate(experience) == {}, "without a step the rate says nothing"
    ppo.collect = lambda step: experience  # type: ignore[method-assign]
    assert first_rate(ppo) == (None, 0.0)


@pytest.mark.parametrize("minibatches", [1, 2, 3])
def test_minibatches_hold_whole_groups(minibatches: int) -> None:
    ppo = method_ppo("online_dpo", batch_size=48, minibatches=minibatches)
    parts = ppo.minibatches(48, 0)
    assert len(parts) == minibatches
    assert sorted(row for part in parts for row in part) == list(range(48))
    for part in parts:
        assert all(part[i : i + 4] == list(range(part[i], part[i] + 4)) for i in range(0, len(part), 4))


def test_a_method_settles_advantage_and_group_size() -> None:
    ppo = PPOConfig(batch_size=40)
    assert of_method(ppo, "ppo") == ppo
    for method, sizes in GROUPS.items():
        found = of_method(ppo, method)
        assert found.samples_per_prompt == next(n for n in sizes if 40 % n == 0)
        assert found.advantage == ("grpo" if method == "grpo" else "rloo")
    assert of_method(PPOConfig(batch_size=42, samples_per_prompt=6), "distill").samples_per_prompt == 6
    assert of_method(PPOConfig(value_warmup=2), "rloo").value_warmup == 0
    assert of_method(PPOConfig(minibatches=4), "grpo").minibatches == 4
    with pytest.raises(
        ConfigError, match=r"online_dpo keeps the 8 .*minibatches=16 does not divide the 8 prompts"
    ):
        of_method(PPOConfig(minibatches=16), "online_dpo")
    with pytest.raises(ConfigError, match=r"align\.method=rloo compares .* ppo\.batch_size=49"):
        of_method(PPOConfig(batch_size=49), "rloo")
    with pytest.raises(ValueError, match="names a method twice"):
        AlignConfig(compared=("ppo", "ppo"))
