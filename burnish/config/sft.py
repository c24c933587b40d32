"""Section `sft`: supervised fine-tuning before anything else."""

from typing import ClassVar

from pydantic import Field

from burnish.config.rate import Rate
from burnish.config.strict import Section


class SftConfig(Section):
    """Supervised fine-tuning on demonstrations; off unless `demonstrations` is given."""

    max_grad_norm: ClassVar[float] = 1.0

    demonstrations: str | None = Field(
        None,
        description="JSON lines with `prompt` and `completion`, or `messages`. Give it for a model that was not "
        "fine-tuned yet; null starts from the model as it is.",
    )
    epochs: int = Field(1, ge=1, description="Passes over the demonstrations.")
    batch_size: int = Field(32, ge=1, description="Demonstrations per optimiser step.")
    micro_batch: int = Field(
        32,
        ge=1,
        description="Rows per forward pass, more if they are short. Lower it where training runs out of memory; "
        "results stay the same.",
    )
    learning_rate: Rate = Field(
        "auto", description="Learning rate of AdamW. `auto` finds it with short trials."
    )
