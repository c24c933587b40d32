"""The rate PPO begins with: the step it takes, what is left of the search, and a batch without direction."""

from __future__ import annotations

import math
import time

import pytest
import torch

from burnish.policy.ppo import PPO
from burnish.policy.ppo_start import first_rate
from burnish.policy.rollouts import Experience
from burnish.records import Rollout, Scores
from tests.toys import make_ppo, toy


@pytest.mark.parametrize("scale", [1.0, 50.0])
@pytest.mark.parametrize("epochs", [1, 4])
def test_the_first_update_moves_about_as_far_as_it_should(scale: float, epochs: int) -> None:
    """Whatever the weights' size makes of a rate; without the search the same rate for both would be off."""
    base, codec = toy()
    with torch.no_grad():
        base.lm.get_output_embeddings().weight.mul_(scale)
    ppo = make_ppo(base, codec, coef=1e-3, rate=0.0, updates=30, epochs=epochs, adaptive_rate=True)
    rate, kl = first_rate(ppo)
    assert rate is not None
    assert kl == pytest.approx(ppo.wanted_kl, rel=0.5)
    ppo.begin_at(rate)
    moved = next(ppo.updates())["step_kl"]
    assert ppo.wanted_kl / 4 < moved < ppo.wanted_kl * 4
    assert ppo.first_rate == rate


def test_the_search_leaves_policy_and_batch_as_they_would_have_been() -> None:
    base, codec = toy()
    plain, searched = (make_ppo(base, codec, rate=0.01, updates=3) for _ in range(2))
    first_rate(searched)
    assert searched.first_batch is not None
    assert [s.as_row() for s in searched.updates()] == [s.as_row() for s in plain.updates()]
    assert searched.first_batch is None


def test_a_batch_collected_earlier_counts_its_collection_in_the_timing_of_its_update(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, rate=0.01, updates=2)
    own = PPO.collect

    def slow(self: PPO, step: int) -> Experience:
        found = own(self, step)
        if step == 1:
            time.sleep(0.3)
            self.timing["sampling_seconds"] += 0.2
        return found

    monkeypatch.setattr(PPO, "collect", slow)
    first_rate(ppo)
    for _ in ppo.updates():
        shares = ppo.timing["sampling_share"], ppo.timing["scoring_share"]
        assert all(0 <= share <= 1 for share in shares)
        assert sum(shares) <= 1
        if ppo.step == 1:
            assert ppo.timing["seconds"] > 0.3
            assert shares[0] > 0.2 / ppo.timing["seconds"] - 0.01


def test_a_batch_without_direction_gives_no_rate() -> None:
    base, codec = toy()
    ppo = make_ppo(base, codec, rate=0.0, advantage="rloo", samples_per_prompt=4, coef=1e-3)

    def same(rollout: Rollout) -> Scores:
        one = torch.ones(len(rollout))
        return Scores(one, one[:, None], torch.zeros_like(one))

    ppo.score = same
    assert first_rate(ppo) == (None, 0.0)
    assert math.isfinite(next(ppo.updates())["score"])


def test_a_linear_schedule_ends_at_zero_and_wants_steps_that_shrink_with_it() -> None:
    """The rate falls by responses, so that an update of several batches counts as so many."""
    base, codec = toy()
    settings = {"updates": 5, "batch_size": 16, "rate": 0.01, "warmup_updates": 0, "adaptive_rate": True}
    ppo = make_ppo(base, codec, schedule="linear", **settings)
    wanted = [ppo.wanted_kl]
    for _ in ppo.updates():
        wanted.append(ppo.wanted_kl)
    constant = make_ppo(base, codec, **settings)
    first = (
        constant.wanted_kl
        / (1 - (1 - constant.config.kl.reached_at) ** 3)
        * 3
        * constant.config.kl.reached_at
    )
    assert wanted == pytest.approx([first * (1 - k / 5) ** 2 for k in range(6)])
    assert [
        s["learning_rate"] for s in make_ppo(base, codec, **{**settings, "adaptive_rate": False}).updates()
    ] == [0.01] * 5
    falling = make_ppo(base, codec, schedule="linear", **{**settings, "adaptive_rate": False})
    assert [s["learning_rate"] for s in falling.updates()] == pytest.approx(
        [0.01, 0.008, 0.006, 0.004, 0.002]
    )
