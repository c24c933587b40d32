"""The examination that decides the champion."""

from typing import Literal

from pydantic import Field

from burnish.config.judge import JudgeConfig
from burnish.config.strict import Section


class EvaluateConfig(Section):
    """Win rates against SFT on held-out prompts; both sample sizes are fixed before anything is seen."""

    examiner: Literal["panel", "reward_model", "judge", "people"] = "panel"
    judge: JudgeConfig = JudgeConfig()  # another one than labelled
    people_each: int = Field(1, ge=1)  # people who see each pair of answers, where people examine
    n_selection: int = Field(128, ge=8)
    n_test: int = Field(256, ge=8)
    kl_prompts: int = Field(256, ge=2)  # two at least: a standard error needs them
    best_of_n: int = Field(4, ge=1)  # 1: leave the free baseline out
    best_of_n_candidate: bool = False
    temperature: float | None = Field(None, gt=0)  # None: as in PPO
    batch_size: int = Field(128, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(2000, ge=200)
