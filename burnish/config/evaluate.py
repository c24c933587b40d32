"""The examination that decides the champion."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from burnish.config.judge import JudgeConfig
from burnish.config.strict import Section


class GuardSet(Section):
    """What a champion may not lose: JSON lines with a prompt (as in data.prompts) and its `reference`, or a task of
    lm-eval (`pip install 'burnish[lm-eval]'`)."""

    file: str | None = None
    task: str | None = None  # a task or group by its name
    include: str | None = None  # a folder with tasks of your own, as lm-eval's --include_path
    metric: str | None = None  # of the task, with its filter where it has several: exact_match,strict-match
    # contains: whether an answer has the reference in it, exact: whether it is the reference (case and white space
    # apart); likelihood: nats a token that the model gives the reference.
    measure: Literal["contains", "exact", "likelihood"] = "contains"
    tolerated: float = Field(0.0, ge=0)  # share of the prompts, or nats a token, that may be lost
    limit: int | None = Field(None, ge=8)  # prompts, at most; of every task of a group

    @property
    def name(self) -> str:
        return self.task if self.task is not None else Path(str(self.file)).stem

    def lacks(self) -> str | None:
        """What it needs and is not here, in words: to be asked before a run, not after it."""
        if self.file is not None and not Path(self.file).exists():
            return f"evaluate.guard_sets names {self.file}, which does not exist; give a file of prompts and references"
        if self.task is not None and find_spec("lm_eval") is None:
            return (
                f"evaluate.guard_sets names {self.task!r}, a task of lm-eval, which is not installed; run "
                "`pip install 'burnish[lm-eval]'`, or give a file"
            )
        return None

    @model_validator(mode="after")
    def _one_of_two(self) -> GuardSet:
        if (self.file is None) == (self.task is None):
            raise ValueError("a guard set is a file or a task of lm-eval: give one of the two")
        if self.task is None and (self.include or self.metric):
            raise ValueError("include and metric belong to a task of lm-eval; a file has `measure`")
        return self


class EvaluateConfig(Section):
    """Win rates against SFT on held-out prompts; both sample sizes are fixed before anything is seen."""

    examiner: Literal["panel", "reward_model", "judge", "people"] = "panel"
    judge: JudgeConfig = JudgeConfig()  # another one than labelled
    people_each: int = Field(1, ge=1)  # people who see each pair of answers, where people examine
    guard_sets: tuple[GuardSet, ...] = ()  # on which a champion may not surely lose against SFT
    n_selection: int = Field(128, ge=8)
    n_test: int = Field(256, ge=8)
    kl_prompts: int = Field(256, ge=2)  # two at least: a standard error needs them
    best_of_n: int = Field(4, ge=1)  # 1: leave the free baseline out
    best_of_n_candidate: bool = False
    temperature: float | None = Field(None, gt=0)  # None: as in PPO
    batch_size: int = Field(128, ge=1)
    confidence: float = Field(0.95, gt=0.5, lt=1)
    bootstrap: int = Field(2000, ge=200)
