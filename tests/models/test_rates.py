"""Ladders and trials of learning rates."""

from __future__ import annotations

import math

import pytest

from burnish.errors import TrainingError
from burnish.models.backbone import Backbone
from burnish.models.optim import RUNG, for_longer, ladder, trial_rows, trial_steps, try_rates
from burnish.randomness import generator


def test_the_ladder_shrinks_with_the_width_and_is_higher_for_adapters(base: Backbone) -> None:
    rates = ladder(base)
    assert rates == sorted(rates, reverse=True)
    assert rates[0] * base.hidden_size == pytest.approx(1.2)
    assert rates[0] / rates[1] == RUNG
    adapters = Backbone(base.lm, "lora")
    assert ladder(adapters)[0] == 4 * rates[0]


def test_trials_take_a_tenth_of_a_long_job() -> None:
    assert 4 * trial_steps(600) <= 60
    assert [trial_steps(n) for n in (3, 40, 100_000)] == [3, 6, 24]


def test_rows_of_a_prompt_are_on_one_side() -> None:
    groups = [str(i // 6) for i in range(240)]
    learned, unseen = trial_rows(groups, 60, generator(0))
    assert not {groups[i] for i in learned} & {groups[i] for i in unseen}
    assert (len(learned), len(unseen)) == (60, 60)
    assert len(trial_rows(groups, 10_000, generator(0))[0]) == 180
    assert trial_rows(["a", "b", "b"], 60, generator(0))[1] == [], "too few to part"


def test_the_best_rate_is_the_one_with_the_least_loss_and_none_that_diverged() -> None:
    losses = {1.0: math.nan, 0.1: 0.4, 0.01: 0.6}
    found = try_rates("dpo", list(losses), losses.__getitem__)
    assert [t.rate for t in found] == [0.1, 0.01, 1.0]
    assert found[-1].as_json() == {"rate": 1.0, "loss": None}
    with pytest.raises(TrainingError, match=r"tried \(1, 2\); set dpo.learning_rate, smaller"):
        try_rates("dpo", [1.0, 2.0], lambda rate: math.inf)


def test_a_longer_job_takes_smaller_steps() -> None:
    assert for_longer(1e-3, 24, 96) == pytest.approx(5e-4)
    assert for_longer(1e-3, 24, 10) == 1e-3
