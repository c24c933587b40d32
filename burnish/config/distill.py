"""Best-of-n distilled: a candidate beside PPO and DPO that needs sampling and fine-tuning alone."""

from typing import Literal

from pydantic import Field

from burnish.config.rate import Rate
from burnish.config.strict import Section


class DistillConfig(Section):
    """Fine-tuning on the answer that the ensemble scores highest of several, from SFT."""

    when: Literal["never", "always"] = "never"
    n: int = Field(4, ge=2)  # answers a prompt
    prompts: int = Field(640, ge=8)  # training prompts, at most
    epochs: int = Field(2, ge=1)
    batch_size: int = Field(16, ge=1)
    micro_batch: int = Field(32, ge=1)  # rows per forward pass
    learning_rate: Rate = "auto"  # auto: by the model's width
    max_grad_norm: float = Field(1.0, gt=0)
