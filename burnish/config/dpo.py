"""Section `dpo`: the fallback when PPO is given up, or the other arm of a comparison."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from burnish.config.rate import Rate
from burnish.config.strict import Section


class DPOConfig(Section):
    """Direct preference optimisation from SFT on the same preferences."""

    max_grad_norm: ClassVar[float] = 1.0
    warmup_share: ClassVar[float] = 0.1  # of the steps, with a linearly rising learning rate

    when: Literal["fallback", "always", "never"] = Field(
        "fallback",
        description="When DPO runs: after PPO was given up or stopped by the gate, always (as a second candidate), "
        "or never.",
    )
    pairs: Literal["auto", "labels", "on_policy", "both"] = Field(
        "auto",
        description="Training pairs: the labels, the ensemble's best and worst response of the policy's own "
        "samples, or both. Samples come from SFT, or from PPO's last healthy checkpoint where PPO was given up; a "
        "pair counts only if the watcher agrees. `auto` takes both where the optimiser failed, and the labels "
        "where the reward failed or nothing failed.",
    )
    samples_per_prompt: int = Field(
        4, ge=2, description="Responses sampled for each prompt where pairs are on_policy or both."
    )
    pairs_per_prompt: int | None = Field(
        None,
        ge=1,
        description="Labelled pairs of a prompt that are trained on at most, those of the most and least preferred "
        "responses first. null: all. Rankings of k responses make up to k (k - 1) / 2 pairs, at that cost.",
    )
    max_prompts: int = Field(640, ge=8, description="Training prompts sampled at most for on-policy pairs.")
    loss: Literal["sigmoid", "ipo"] = Field(
        "sigmoid",
        description="sigmoid (Rafailov et al. 2023), or ipo (Azar et al. 2023), whose margin has a finite optimum. "
        "Use ipo where DPO overfits few pairs.",
    )
    per_token: bool = Field(
        False,
        description="Divide each log-ratio by the length of its response (Tulu 3), so that length alone gains no "
        "margin. Set it where DPO makes responses longer.",
    )
    beta: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(
        "auto",
        description="Strength of the KL penalty. `auto` is 0.1, or 5 with per_token, whose log-ratios are smaller. "
        "Raise it to stay closer to SFT.",
    )
    soft_labels: bool = Field(
        True,
        description="Train on the share of labels that prefer each response, where labels of a pair disagree.",
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | Literal["auto"] = Field(
        "auto",
        description="Probability that a label is wrong. `auto` estimates it where pairs have several labels; "
        "otherwise it is 0.1.",
    )
    nll: float = Field(
        0.0,
        ge=0,
        description="Weight of the chosen response's negative log-likelihood, in nats per token (Pang et al. "
        "2024). Raise it where the likelihood of chosen responses falls.",
    )
    epochs: int = Field(1, ge=1, description="Passes over the pairs.")
    batch_size: int = Field(32, ge=1, description="Pairs per optimiser step.")
    micro_batch: int = Field(
        32,
        ge=1,
        description="Rows per forward pass, more if they are short. Lower it where training runs out of memory; "
        "results stay the same.",
    )
    learning_rate: Rate = Field(
        "auto", description="Learning rate of AdamW. `auto` finds it with short trials."
    )
    checkpoint_every: int = Field(20, ge=1, description="Optimiser steps between two checkpoints.")

    @property
    def smooths(self) -> bool:
        """Whether the loss takes label smoothing; ipo bounds its margin itself."""
        return self.loss != "ipo"

    @property
    def strength(self) -> float:
        """Beta with `auto` resolved."""
        return self.beta if self.beta != "auto" else 5.0 if self.per_token else 0.1

    @model_validator(mode="after")
    def _smoothed(self) -> "DPOConfig":
        if not self.smooths and self.label_smoothing not in ("auto", 0):
            raise ValueError(
                f"dpo.label_smoothing={self.label_smoothing} belongs to the sigmoid loss; {self.loss} bounds the "
                "margin itself: remove the key"
            )
        return self
