"""DPO: the fallback when PPO is given up, and the other arm of the comparison on request."""

from typing import Literal

from pydantic import Field

from burnish.config.rate import Rate
from burnish.config.strict import Section


class DPOConfig(Section):
    """Direct preference optimisation from SFT on the same preferences."""

    when: Literal["fallback", "always", "never"] = "fallback"
    beta: float = Field(0.1, gt=0)
    label_smoothing: float = Field(0.1, ge=0, lt=0.5)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    micro_batch: int = Field(32, ge=1)
    learning_rate: Rate = "auto"  # auto: by short trials
    warmup_share: float = Field(0.1, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0)
    checkpoint_every: int = Field(20, ge=1)
