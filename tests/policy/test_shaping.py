"""What PPO is paid: whatever scale a reward comes in, and however far it runs."""

from __future__ import annotations

import json

import pytest
import torch
from pydantic import ValidationError

from burnish.config.ppo import PPOConfig, ShapingConfig
from burnish.policy.shaping import PRIOR, Shaping
from burnish.records import Scores


def scores(values: list[float], anchor: list[float] | None = None) -> Scores:
    x = torch.tensor(values, dtype=torch.float64)
    known = None if anchor is None else torch.tensor(anchor, dtype=torch.float64)
    return Scores(x, x[:, None], torch.zeros_like(x), known)


@pytest.mark.parametrize(
    "config", [ShapingConfig(normalise="reference", clip=2.0), ShapingConfig(bounded=True)]
)
def test_the_scale_a_reward_comes_in_makes_no_difference(config: ShapingConfig) -> None:
    raw, anchor = [-1.0, 0.0, 0.4, 7.0], [0.1, -0.2, 0.3, 0.0]
    small, large = Shaping(config, 0.5), Shaping(config, 50.0)
    a = small(scores(raw, anchor))
    b = large(scores([100 * x for x in raw], [100 * x for x in anchor]))
    assert torch.allclose(a, b)


def test_clipped_and_bounded_worked_by_hand() -> None:
    assert Shaping(ShapingConfig(clip=2.0), 0.5)(scores([-3.0, 0.25, 9.0])).tolist() == [-1.0, 0.25, 1.0]
    both = Shaping(ShapingConfig(clip=2.0, normalise="reference"), 0.5)
    assert both(scores([-3.0, 0.25, 9.0])).tolist() == [-2.0, 0.5, 2.0]
    bounded = Shaping(ShapingConfig(bounded=True), 2.0)
    paid = bounded(scores([0.7, 2.7, 1e6, -1e6], [0.7, 0.7, 0.7, 0.7]))
    assert paid.tolist() == pytest.approx([0.0, 1 / (1 + 2.718281828459045**-1) - 0.5, 0.5, -0.5])


def test_a_running_scale_follows_the_scores_and_survives_a_stop() -> None:
    config = ShapingConfig(normalise="running")
    shaping = Shaping(config, 2.0)
    assert shaping.scale == pytest.approx(2.0)
    shaping.see(scores([4.0] * int(PRIOR)))
    assert shaping.scale == pytest.approx(((4 + 16) / 2) ** 0.5)
    again = Shaping(config, 2.0)
    again.load_state_dict(json.loads(json.dumps(shaping.state_dict())))
    assert again.scale == shaping.scale


def test_left_alone_a_sum_of_rewards_is_paid_on_the_references_scale_and_the_ensemble_as_it_is() -> None:
    assert ShapingConfig().given(own_scale=True).normalise == "reference"
    assert ShapingConfig().given(own_scale=False).normalise == "none"
    assert ShapingConfig(normalise="none").given(own_scale=True).normalise == "none"
    assert ShapingConfig(bounded=True).given(own_scale=True).normalise == "none"
    assert not ShapingConfig().active


def test_the_unit_is_the_spread_of_what_the_reference_is_paid() -> None:
    shaping = Shaping(ShapingConfig(normalise="reference"), 4.0)
    shaping.measure(scores([-4.0, 4.0]))
    assert shaping.unit == pytest.approx(1.0)


def test_scores_without_spread_are_refused() -> None:
    with pytest.raises(ValueError, match="finite and above 0"):
        Shaping(ShapingConfig(), 0.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"shaping": {"bounded": True, "clip": 1.0}}, "leave out normalise and clip"),
        ({"shaping": {"bounded": True}, "rewards": [{"function": "a:b"}]}, "bound those in their own"),
        ({"value_warmup": 3, "advantage": "rloo", "samples_per_prompt": 4}, "set it to 0"),
        ({"value_warmup": 36}, "under ppo.updates=36"),
    ],
)
def test_what_cannot_be_had_together_says_so(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        PPOConfig(**settings)  # type: ignore[arg-type]
