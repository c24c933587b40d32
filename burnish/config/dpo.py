"""DPO: the fallback when PPO is given up, and the other arm of the comparison on request."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from burnish.config.rate import Rate
from burnish.config.strict import Section


class DPOConfig(Section):
    """Direct preference optimisation from SFT on the same preferences."""

    when: Literal["fallback", "always", "never"] = "fallback"
    # What is learned from: the labels, the ensemble's best and worst of a policy's own answers, or both. The policy is
    # SFT; where PPO was given up after its last healthy checkpoint, that, and a pair counts only if the watcher agrees.
    # auto: both where the optimiser failed, the labels where the reward did (what it prefers is what failed) and where
    # nothing failed.
    pairs: Literal["auto", "labels", "on_policy", "both"] = "auto"
    n: int = Field(4, ge=2)  # of those answers a prompt
    prompts: int = Field(640, ge=8)  # training prompts that are answered, at most
    # sigmoid: Rafailov et al. 2023; ipo: Azar et al. 2023, whose margin has an optimum that pairs cannot push past.
    loss: Literal["sigmoid", "ipo"] = "sigmoid"
    per_token: bool = (
        False  # log-ratios divided by their answer's length (Tulu 3), so that length buys no margin
    )
    # auto: 0.1; 5 per token, where ratios are as much smaller.
    beta: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    soft_labels: bool = True  # whether contradicting labels are learned as the shares they are, as rewards do
    # auto: the share of trained pairs whose winner is expected to be wrong, where comparisons have several labels;
    # otherwise 0.1.
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] | Literal["auto"] = "auto"
    nll: float = Field(0.0, ge=0)  # times the chosen answer's nats a token, added (Pang et al. 2024)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    micro_batch: int = Field(32, ge=1)
    learning_rate: Rate = "auto"  # auto: by short trials
    warmup_share: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(20, ge=1)

    @property
    def strength(self) -> float:
        """Beta as it is used."""
        return self.beta if self.beta != "auto" else 5.0 if self.per_token else 0.1

    @model_validator(mode="after")
    def _smoothed(self) -> "DPOConfig":
        if self.loss == "ipo" and self.label_smoothing not in ("auto", 0):
            raise ValueError(
                f"dpo.label_smoothing={self.label_smoothing} is of the sigmoid loss; ipo bounds the margin itself: "
                "leave it out"
            )
        return self
