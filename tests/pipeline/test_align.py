"""What PPO begins with: the KL coefficient, from what differs between answers to one prompt."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from burnish.config.ppo import ShapingConfig
from burnish.pipeline.assemble import WITHIN_PROMPTS, spread_within
from burnish.policy.shaping import Shaping
from burnish.records import Prompt, Scores

PROMPTS = [Prompt(f"p{i}") for i in range(200)]


def scored(between: float, within: float) -> Any:
    """Scores of answers with an offset for each prompt and noise around it."""
    rng = torch.Generator().manual_seed(0)
    offsets = between * torch.randn(len(PROMPTS), generator=rng)

    def score(prompts: list[Prompt]) -> Scores:
        noise = within * torch.randn(len(prompts), generator=rng)
        scores = offsets[: len(prompts)] + noise
        return Scores(scores, scores[:, None], torch.zeros_like(scores))

    return score


@pytest.fixture(autouse=True)
def sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    """A rollout stands for its prompts."""
    monkeypatch.setattr("burnish.pipeline.assemble.sample_answers", lambda models, prompts, *_: prompts)


def test_only_the_spread_within_a_prompt_counts() -> None:
    """32 prompts: a standard error of one eighth."""
    assert WITHIN_PROMPTS == 32
    found = spread_within(None, scored(10.0, 0.5), None, PROMPTS, 0)  # type: ignore[arg-type]
    assert found == pytest.approx(0.5, rel=0.35)
    shaping = Shaping(ShapingConfig(normalise="reference"), 10.0)
    shaped = spread_within(None, scored(10.0, 0.5), shaping, PROMPTS, 0)  # type: ignore[arg-type]
    assert shaped == pytest.approx(0.05, rel=0.35)


def test_a_reward_that_differs_between_prompts_alone_has_no_spread_within() -> None:
    assert spread_within(None, scored(10.0, 0.0), None, PROMPTS, 0) == 0.0  # type: ignore[arg-type]
