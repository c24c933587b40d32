"""PPO on a problem whose optimum is known, its resume, and its behaviour when nothing may move."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path

import pytest
import torch

from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import PPOConfig, ShapingConfig
from burnish.errors import Diverged, TrainingError
from burnish.models.batches import pad_batch
from burnish.monitor.health import HealthMonitor
from burnish.policy.guard import GuardState, guard_step
from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import self_check
from burnish.policy.shaping import Shaping
from burnish.records import Prompt, Scores
from tests.toys import make_ppo, toy


def first_token_distribution(ppo: PPO, which: str) -> torch.Tensor:
    policy = getattr(ppo, which)
    batch = pad_batch([[2]], [[3]], ppo.codec.pad_id)
    with torch.no_grad():
        return policy.logits(policy.response_hidden(batch))[0].softmax(-1)


@pytest.mark.slow("optimum")
@pytest.mark.parametrize(
    ("advantage", "where"),
    [("gae", "reward"), ("gae", "loss"), ("rloo", "reward"), ("rloo", "reward_to_go"), ("rloo", "loss")],
)
def test_ppo_finds_the_known_optimum(advantage: str, where: str) -> None:
    """max E[r] - coef KL has the solution pi(t) = pi0(t) exp(r(t) / coef) / Z (r = 1 for `a`, else 0)."""
    base, codec = toy()
    answers = 1 if advantage == "gae" else 4
    ppo = make_ppo(
        base,
        codec,
        coef=0.5,
        updates=400,
        rate=0.005,
        adaptive_rate=False,
        advantage=advantage,
        samples_per_prompt=answers,
        where=where,
    )
    for _ in ppo.updates():
        pass
    start = first_token_distribution(ppo, "reference")
    tilted = start * torch.tensor([1.0, 1.0, 1.0, math.exp(1 / 0.5), 1.0])
    expected = tilted / tilted.sum()
    assert expected[3] - start[3] > 0.2, "the optimum lies away from the start"
    close = 0.02 if (advantage, where) == ("gae", "reward") else 0.05
    assert torch.allclose(first_token_distribution(ppo, "policy"), expected, atol=close)


def test_first_update_starts_at_ratio_one_and_kl_zero() -> None:
    base, codec = toy()
    stats = next(make_ppo(base, codec, epochs=1).updates())
    assert stats["kl"] == pytest.approx(0.0, abs=1e-6)
    assert stats["clip_fraction"] == 0.0
    assert stats["approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert stats["sampling_gap"] < 1e-5


@pytest.mark.parametrize("advantage", ["gae", "rloo", "grpo"])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_kl_in_the_loss_has_the_coefficient_in_units_of_the_score(advantage: str, whiten: bool) -> None:
    """The advantages have no KL, and the weight of the KL is scaled as they are."""
    base, codec = toy()
    same = {"advantage": advantage, "samples_per_prompt": 4, "epochs": 1}
    ppo = make_ppo(base, codec, coef=0.25, where="loss", whiten_advantages=whiten, **same)
    plain = make_ppo(base, codec, coef=1e-9, whiten_advantages=False, **(same | {"advantage": "rloo"}))
    with torch.no_grad():
        ppo.policy_parameters[-1].mul_(1.5)  # so that the KL is not 0
        plain.policy_parameters[-1].mul_(1.5)
    experience, unscaled = ppo.collect(1), plain.collect(1)
    mask = experience.rollout.response_mask
    assert float(experience.kl.abs().max()) > 0.01
    if advantage != "gae":
        grown = experience.advantages[mask].std(unbiased=False) / unscaled.advantages[mask].std(
            unbiased=False
        )
        assert experience.kl_weight == pytest.approx(0.25 * float(grown), rel=1e-3)
    elif not whiten:
        assert experience.kl_weight == pytest.approx(0.25)
    figures = ppo.minibatch(experience, list(range(64)))
    assert figures is not None
    assert figures["kl_loss"] > 0


def test_micro_batches_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures and gradients of one minibatch, whole and in parts; what Adam makes of them is left out, for it
    divides by their size and so turns rounding into steps."""
    found = []
    for size in (64, 8):
        base, codec = toy()
        ppo = make_ppo(base, codec, micro_batch=size, max_grad_norm=1e9)
        monkeypatch.setattr(ppo.optimizer, "step", lambda: None)
        figures = ppo.minibatch(ppo.collect(1), list(range(64)))
        parameters = [*ppo.policy_parameters, *ppo.value_parameters]
        found.append((figures, [p.grad.clone() for p in parameters if p.grad is not None]))
    (whole, whole_grads), (parts, parts_grads) = found
    assert whole == pytest.approx(parts, abs=1e-5, rel=1e-4)
    assert len(whole_grads) == len(parts_grads) > 4
    for a, b in zip(whole_grads, parts_grads, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3)
    assert max(float(g.abs().max()) for g in whole_grads) > 1e-2


def test_save_and_load_continue_bit_identically(tmp_path: Path) -> None:
    base, codec = toy()
    whole = make_ppo(base, codec, updates=6, adaptive=True)
    rows = [s.as_row() for s in whole.updates()]
    first = make_ppo(base, codec, updates=6, adaptive=True)
    assert [s.as_row() for s in islice(first.updates(), 3)] == rows[:3]
    first.save(tmp_path)
    second = make_ppo(base, codec, updates=6, adaptive=True)
    second.load(tmp_path)
    second.load_state_dict(first.state_dict())
    assert [s.as_row() for s in second.updates()] == rows[3:]
    for a, b in zip(whole.policy_parameters, second.policy_parameters, strict=True):
        assert torch.equal(a, b)


def test_a_new_attempt_draws_new_randomness() -> None:
    base, codec = toy()
    one, two = make_ppo(base, codec), make_ppo(base, codec)
    two.restart(0.5, attempt=1)
    assert two.learning_rate == one.learning_rate / 2
    assert one.collect(1).rollout.response_ids != two.collect(1).rollout.response_ids


def test_a_frozen_policy_leaves_guard_and_coefficient_alone() -> None:
    """Learning rate 0 for 100 updates: nothing to find, so nothing may be found."""
    base, codec = toy()
    ppo = make_ppo(base, codec, coef=0.3, rate=0.0, adaptive=True, updates=100)
    health, state = HealthMonitor(MonitorConfig(), 1.0), GuardState()
    before = {n: t.clone() for n, t in ppo.policy.top.trained_state().items()}
    for stats in ppo.updates():
        step = guard_step(state, stats, health.observe(stats), ppo.tick, GuardConfig())
        state = step.state
        assert step.action == "none"
    assert ppo.step == 100
    assert ppo.controller.coef == 0.3
    assert all(torch.equal(before[n], t) for n, t in ppo.policy.top.trained_state().items())


def test_a_step_that_is_not_finite_is_skipped_and_counted() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, updates=1, epochs=2)
    before = [p.clone() for p in ppo.policy_parameters]
    good = ppo.score
    ppo.score = lambda r: Scores(*(x * math.inf for x in (good(r).scores, good(r).members)), torch.zeros(64))
    experience = ppo.collect(1)
    figures = ppo.train_epochs(experience)
    assert figures["skipped"] == 2
    assert all(torch.equal(a, b) for a, b in zip(before, ppo.policy_parameters, strict=True))


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_value_function_that_diverges_is_told_to_the_guard(weight: float) -> None:
    """`Diverged`, which rolls a run back, and not an error of whoever writes the figures down."""
    base, codec = toy()
    ppo = make_ppo(base, codec)
    with torch.no_grad():
        ppo.value.head.weight.fill_(weight)
    with pytest.raises(Diverged, match=r"PPO's value is (nan|inf)"):
        next(ppo.updates())
    assert (ppo.step, ppo.tick) == (0, 0)


def test_the_score_stands_on_the_last_token_and_cut_off_answers_pay() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, coef=1e-4, missing_eos_penalty=1.0)
    experience = ppo.collect(1)
    rewards = experience.returns[:, 0]
    for ids, value in zip(experience.rollout.response_ids, rewards.tolist(), strict=True):
        expected = (1.0 if ids == [3] else 0.0) - (0.0 if ids == [1] else 1.0)
        assert value == pytest.approx(expected, abs=1e-3)


def test_the_self_check_refuses_a_policy_that_is_not_the_reference() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec)
    with torch.no_grad():
        ppo.policy_parameters[0].add_(0.5 * torch.randn(ppo.policy_parameters[0].shape))
    with pytest.raises(TrainingError, match="before the first update"):
        self_check(ppo.policy, ppo.reference, codec, ppo.prompts, max_tokens=4, seed=0)


def test_the_self_check_refuses_a_sampler_at_another_temperature(monkeypatch: pytest.MonkeyPatch) -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec)
    import burnish.policy.ppo_start as module

    plain = module.sample_rollout

    def warmer(policy, *args, **kwargs):  # type: ignore[no-untyped-def]
        policy.temperature = 0.5
        rollout = plain(policy, *args, **kwargs)
        policy.temperature = 1.0
        return rollout

    monkeypatch.setattr(module, "sample_rollout", warmer)
    with pytest.raises(TrainingError, match="temperature"):
        self_check(ppo.policy, ppo.reference, codec, ppo.prompts, max_tokens=4, seed=0)


def test_answers_to_a_prompt_stand_together_and_need_no_value_function(tmp_path: Path) -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, advantage="grpo", samples_per_prompt=4, batch_size=12, updates=3)
    rows = ppo.next_prompts()
    assert len(rows) == 12
    assert all(len({p.text for p in rows[i : i + 4]}) == 1 for i in (0, 4, 8))
    stats = list(ppo.updates())
    assert not {"value_loss", "explained_variance", "value_grad_norm"} & stats[0].values.keys()
    assert all(s["skipped"] == 0 for s in stats)
    ppo.save(tmp_path)
    assert not (tmp_path / "value.safetensors").exists()
    again = make_ppo(base, codec, advantage="grpo", samples_per_prompt=4, batch_size=12, updates=3)
    again.load(tmp_path)
    for a, b in zip(ppo.policy_parameters, again.policy_parameters, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"advantage": "rloo"}, "ppo.samples_per_prompt=1; set it to 4"),
        ({"samples_per_prompt": 5}, "ppo.samples_per_prompt=5 must divide ppo.batch_size=64"),
    ],
)
def test_answers_that_cannot_be_compared_are_refused(change: dict[str, object], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        PPOConfig(**change)  # type: ignore[arg-type]


def test_a_rate_that_is_far_too_low_goes_up_until_the_policy_moves() -> None:
    base, codec = toy()
    found = []
    for adaptive in (True, False):
        ppo = make_ppo(base, codec, coef=1e-3, rate=1e-5, updates=30, adaptive_rate=adaptive)
        found.append([(s["kl"], s["learning_rate"]) for s in ppo.updates()])
    (moved, still), rates = ([max(kl for kl, _ in run) for run in found], [r for _, r in found[0]])
    assert moved > 0.5
    assert still < 0.05
    assert max(rates) <= 1000 * 1e-5
    assert rates[-1] == rates[-2], "near the target it stays"


def test_a_rate_that_is_far_too_high_goes_down_and_never_up() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, coef=1e-3, rate=0.3, updates=12, warmup_updates=0)
    stats = list(ppo.updates())
    rates = [s["learning_rate"] for s in stats]
    assert stats[0]["step_kl"] > 0.3
    assert rates[1] < rates[0]
    assert rates == sorted(rates, reverse=True)


def test_the_rate_survives_a_restart(tmp_path: Path) -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, rate=1e-6, updates=6, warmup_updates=0)
    updates = ppo.updates()
    for _ in range(3):
        next(updates)
    ppo.save(tmp_path)
    again = make_ppo(base, codec, rate=1e-6, updates=6, warmup_updates=0)
    again.load(tmp_path)
    again.load_state_dict(ppo.state_dict())
    assert again.learning_rate == ppo.learning_rate > 1e-6
    assert [s.values for s in again.updates()] == [s.values for s in updates]


def test_inner_epochs_end_where_the_policy_has_moved_far_enough() -> None:
    base, codec = toy()
    calls = []
    for stop in (None, 1e-4):
        ppo = make_ppo(base, codec, rate=0.05, epochs=6, updates=1, warmup_updates=0, stop_kl=stop)
        own, count = ppo.minibatch, []
        ppo.minibatch = lambda *a, own=own, count=count, **k: count.append(1) or own(*a, **k)  # type: ignore[method-assign]
        next(ppo.updates())
        calls.append(len(count))
    assert calls[0] == 6
    assert 1 <= calls[1] < 6


def blind(ppo: PPO) -> PPO:
    """With a value function that explains nothing and learns nothing: large, and another for each prompt. (Prompts of
    one token repeated have one value between them, and explain nothing only up to rounding.)"""
    torch.manual_seed(1)
    ppo.prompts = [Prompt("p"), Prompt("b"), Prompt("b p"), Prompt("p b b")]
    with torch.no_grad():
        ppo.value.head.weight.normal_(std=500.0)
    ppo.value_learning_rate = 0.0
    return ppo


def test_a_value_function_that_explains_nothing_is_dropped_on_record(tmp_path: Path) -> None:
    base, codec = toy()
    ppo = blind(make_ppo(base, codec, updates=8, advantage="auto"))
    updates = ppo.updates()
    first = [next(updates) for _ in range(3)]
    assert all(s["explained_variance"] <= 0 for s in first)
    assert [n.action for n in ppo.notes] == ["critic_dropped"]
    assert "4 answers to each prompt" in ppo.notes[0].reason
    ppo.save(tmp_path)
    again = blind(make_ppo(base, codec, updates=8, advantage="auto"))
    again.load(tmp_path)
    again.load_state_dict(ppo.state_dict())
    rest = list(updates)
    assert not any({"explained_variance", "value_loss", "value_grad_norm"} & s.values.keys() for s in rest)
    assert ppo.next_prompts()[:4] == [ppo.next_prompts()[0]] * 4
    assert [s.as_row() for s in again.updates()] == [s.as_row() for s in rest]
    assert again.notes == []


@pytest.mark.parametrize(("asked", "size"), [("gae", 64), ("auto", 49)])
def test_it_is_kept_on_request_and_where_no_answers_can_stand_together(asked: str, size: int) -> None:
    base, codec = toy()
    ppo = blind(make_ppo(base, codec, updates=5, advantage=asked, batch_size=size))
    assert all("explained_variance" in s.values for s in ppo.updates())
    assert (ppo.notes, ppo.samples_per_prompt) == ([], 1)


def test_a_state_from_before_critics_could_be_dropped_is_taken_up() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec)
    state = ppo.state_dict()
    for name in ("first_rate", "advantage", "samples_per_prompt", "unexplained"):
        del state[name]
    ppo.load_state_dict(state)
    assert (ppo.advantage, ppo.samples_per_prompt, ppo.first_rate) == ("gae", 1, 0.01)
    ppo.load_state_dict({**state, "answers": 4})  # the key of version 0.1
    assert ppo.samples_per_prompt == 4


def test_while_the_value_function_warms_up_the_policy_stands_still() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, updates=6, value_warmup=3, rate=0.01)
    start = [p.clone() for p in ppo.policy_parameters]
    head = [p.clone() for p in ppo.value_parameters]
    moved = []
    for stats in ppo.updates():
        moved.append(any(not torch.equal(a, b) for a, b in zip(start, ppo.policy_parameters, strict=True)))
        assert ("policy_loss" in stats.values) == (stats.step > 3)
        assert "value_loss" in stats.values
        if stats.step == 1:
            assert any(not torch.equal(a, b) for a, b in zip(head, ppo.value_parameters, strict=True))
        if stats.step <= 3:
            assert ppo.learning_rate == 0.01, "a policy that stands still is no reason for a higher rate"
    assert moved == [False] * 3 + [True] * 3


def test_a_warmed_value_function_knows_what_is_usual_at_the_policys_first_update() -> None:
    """It begins at 0, where the mean score is not."""
    off = []
    for warmup in (0, 30):
        base, codec = toy()
        ppo = make_ppo(base, codec, updates=40, value_warmup=warmup, coef=1e-3)
        for _ in islice(ppo.updates(), warmup + 1):
            pass
        batch = ppo.experience
        assert batch is not None
        assert batch.old_values is not None
        mean = float(batch.scores.scores.mean())
        off.append(abs(float(batch.old_values[batch.rollout.response_mask].mean()) - mean) / mean)
    assert off[0] == pytest.approx(1.0)
    assert off[1] < 0.6


def test_shaped_scores_are_what_advantages_are_made_of() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec)
    ppo.shaping = Shaping(ShapingConfig(clip=0.5), 0.5)
    batch = ppo.collect(1)
    assert set(batch.scores.scores.tolist()) == {0.0, 1.0}
    assert set(batch.shaped_scores.tolist()) == {0.0, 0.25}
    stats = next(ppo.updates())
    assert stats["reward"] == pytest.approx(stats["score"] / 4)


@pytest.mark.parametrize("loss_mean", ["token", "response", "constant"])
@pytest.mark.parametrize("ratio", ["token", "response"])
def test_variants_of_the_loss_do_not_depend_on_micro_batches(
    loss_mean: str, ratio: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    for size in (64, 8):
        base, codec = toy()
        settings = {"loss_mean": loss_mean, "ratio": ratio, "cliprange_high": 0.3, "max_grad_norm": 1e9}
        ppo = make_ppo(base, codec, micro_batch=size, **settings)
        monkeypatch.setattr(ppo.optimizer, "step", lambda: None)
        assert ppo.minibatch(ppo.collect(1), list(range(64))) is not None
        found.append([p.grad.clone() for p in ppo.policy_parameters if p.grad is not None])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, atol=1e-5, rtol=1e-3)


def test_groups_of_equal_scores_are_left_out() -> None:
    base, codec = toy()
    settings = {"advantage": "rloo", "samples_per_prompt": 4, "skip_equal_groups": True}
    ppo = make_ppo(base, codec, **settings)
    experience = ppo.collect(1)
    scores = experience.scores.scores.view(-1, 4)
    unequal = [i for i, group in enumerate(scores.tolist()) if len(set(group)) > 1]
    assert 0 < len(unequal) < 16, "some groups of this seed have one score"
    rows, weights, _ = ppo.learned(experience, list(range(64)))
    assert weights is None
    assert rows == [4 * i + k for i in unequal for k in range(4)]
    with pytest.raises(ValueError, match=r"skip_equal_groups compares .*samples_per_prompt=1"):
        PPOConfig(skip_equal_groups=True)
