"""DPO: the fallback when PPO is given up, and the other arm of the comparison on request."""

from typing import Literal

from pydantic import Field

from burnish.config.rate import Rate
from burnish.config.strict import Section


class DPOConfig(Section):
    """Direct preference optimisation from SFT on the same preferences."""

    when: Literal["fallback", "always", "never"] = "fallback"
    # What is learned from: the labels, SFT's own best and worst answers by the ensemble, or both.
    pairs: Literal["labels", "on_policy", "both"] = "labels"
    n: int = Field(4, ge=2)  # of SFT's own answers a prompt
    prompts: int = Field(640, ge=8)  # training prompts that it answers, at most
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.1, ge=0, lt=0.5)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    micro_batch: int = Field(32, ge=1)
    learning_rate: Rate = "auto"  # auto: by short trials
    warmup_share: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(20, ge=1)
