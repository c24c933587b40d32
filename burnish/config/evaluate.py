"""Section `evaluate`: the win rates that decide the champion."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from burnish.config.judge import JudgeConfig
from burnish.config.strict import Section

SAMPLES = 4  # responses to a prompt that a reward model examines


class RegressionSet(Section):
    """A check that the champion has not lost an ability.

    It is a file of JSON lines with a prompt and its `reference`, or a task of lm-eval (`pip install
    'burnish[lm-eval]'`).
    """

    file: str | None = Field(
        None,
        description="JSON lines with `prompt` (as in data.prompts) and `reference`. Give a file or a task.",
    )
    task: str | None = Field(None, description="Name of a task or a group of tasks of lm-eval.")
    include: str | None = Field(
        None, description="Folder with lm-eval tasks of your own, as in its --include_path."
    )
    metric: str | None = Field(
        None,
        description="Metric of the task, with its filter where it has several: exact_match,strict-match.",
    )
    measure: Literal["contains", "exact", "likelihood"] = Field(
        "contains",
        description="How a response to a file's prompt is scored. contains: it contains the reference; exact: it "
        "equals the reference apart from case and white space; likelihood: nats per token of the reference.",
    )
    tolerance: float = Field(
        0.0, ge=0, description="Loss that is accepted: a share of the prompts, or nats per token."
    )
    limit: int | None = Field(None, ge=8, description="Prompts used at most, for each task of a group.")

    @property
    def name(self) -> str:
        """Name of the task, or of the file without its ending."""
        return self.task if self.task is not None else Path(str(self.file)).stem

    def lacks(self) -> str | None:
        """Return an error message if the file or the lm-eval package is missing, else None."""
        if self.file is not None and not Path(self.file).exists():
            return (
                f"evaluate.regression_sets names {self.file}, which does not exist; give a file of prompts and "
                "references"
            )
        if self.task is not None and find_spec("lm_eval") is None:
            return (
                f"evaluate.regression_sets names {self.task!r}, a task of lm-eval, which is not installed; run "
                "`pip install 'burnish[lm-eval]'`, or give a file"
            )
        return None

    @model_validator(mode="after")
    def _one_of_two(self) -> RegressionSet:
        if (self.file is None) == (self.task is None):
            raise ValueError("a regression set is a file or a task of lm-eval: give one of the two")
        if self.task is None and (self.include or self.metric):
            raise ValueError("include and metric belong to a task of lm-eval; a file has `measure`")
        return self


class EvaluateConfig(Section):
    """Win rates against SFT on held-out prompts. The sample sizes are fixed before the run."""

    bootstrap: ClassVar[int] = 2000  # resamples of prompts for an interval
    look_prompts: ClassVar[int] = 64  # selection prompts of a look during PPO

    examiner: Literal["panel", "reward_model", "judge", "people"] = Field(
        "panel",
        description="What compares a candidate's responses with SFT's: the rehearsal's simulated panel, a reward "
        "model trained on pairs of its own, an AI judge, or people.",
    )
    judge: JudgeConfig = JudgeConfig()  # must differ from label.judge
    labels_per_pair: int = Field(
        1, ge=1, description="People who compare each pair of responses, where people are the examiner."
    )
    regression_sets: tuple[RegressionSet, ...] = Field(
        (),
        description="Checks of abilities that the champion must keep. A candidate that loses on one, beyond its "
        "tolerance and with the whole interval, does not become champion.",
    )
    n_selection: int = Field(128, ge=8, description="Selection prompts used to choose among candidates.")
    n_test: int = Field(
        256,
        ge=8,
        description="Test prompts of the final win rate. Its interval narrows with their square root.",
    )
    samples: int | None = Field(
        None,
        ge=1,
        description="Responses of each policy to each held-out prompt; null: 4 where a reward model examines, else 1, "
        "since people and judges are paid by the question. Intervals are by prompt.",
    )
    every: int | None = Field(
        None,
        ge=0,
        description="PPO updates between two looks at selection prompts. A look scores one response to each of 64 "
        "prompts by ensemble, watcher and the terms of ppo.rewards. The earliest checkpoint within one standard error "
        "of the watcher's best is a candidate. null: a sixth of ppo.updates, or 0 where every layer is trained or "
        "people or a judge examine; 0: no looks.",
    )
    kinds: str | None = Field(
        None,
        description="Column with the kind of each prompt, in data.prompts or label.preferences, for win rates by kind; "
        "null: clusters of prompts.",
    )
    kl_prompts: int = Field(256, ge=2, description="Prompts used to estimate a candidate's KL to SFT.")
    best_of_n: int = Field(
        4,
        ge=1,
        description="n of the best-of-n baseline (SFT's best of n samples by the ensemble); 1 leaves it out.",
    )
    best_of_n_candidate: bool = Field(
        False,
        description="Whether best-of-n may become champion. It costs n samples for every answer in production.",
    )
    temperature: float | None = Field(
        None, gt=0, description="Sampling temperature of the evaluation; null: ppo.temperature."
    )
    batch_size: int = Field(
        128, ge=1, description="Responses sampled at once. Lower it where sampling runs out of memory."
    )
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Confidence level of accuracies and win rates.")

    @property
    def paid(self) -> bool:
        """True if every question to the examiner costs."""
        return self.examiner in ("judge", "people")

    @property
    def answers(self) -> int:
        """Number of responses of each policy to each held-out prompt."""
        return self.samples or (SAMPLES if self.examiner == "reward_model" else 1)

    @property
    def sft_answers(self) -> int:
        """Number of responses of SFT to each held-out prompt: best of n leaves one of n + 1 out."""
        return max(self.answers, self.best_of_n + 1 if self.best_of_n > 1 else 1)
