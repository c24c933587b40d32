"""Section `distill`: distilled best-of-n, a candidate beside PPO and DPO."""

from typing import ClassVar, Literal

from pydantic import Field

from burnish.config.rate import Rate
from burnish.config.strict import Section


class DistillConfig(Section):
    """Fine-tuning from SFT on the response that the ensemble scores highest of several."""

    batch_size: ClassVar[int] = 16  # responses per optimiser step
    max_grad_norm: ClassVar[float] = 1.0

    when: Literal["never", "always"] = Field(
        "never",
        description="Whether this candidate is trained. It needs sampling and fine-tuning only, no PPO.",
    )
    samples_per_prompt: int = Field(
        4,
        ge=2,
        description="Responses sampled for each prompt. More raise the score and cost as much more sampling.",
    )
    max_prompts: int = Field(640, ge=8, description="Training prompts used at most.")
    epochs: int = Field(2, ge=1, description="Passes over the selected responses.")
    micro_batch: int = Field(
        32,
        ge=1,
        description="Rows per forward pass, more if they are short. Lower it where training runs out of memory.",
    )
    learning_rate: Rate = Field(
        "auto", description="Learning rate of AdamW. `auto` derives it from the width of the model."
    )
