"""Supervised fine-tuning before anything else."""

from pydantic import Field

from burnish.config.rate import Rate
from burnish.config.strict import Section


class SftConfig(Section):
    """Supervised fine-tuning on demonstrations; off unless `demonstrations` is given."""

    demonstrations: str | None = None  # JSONL with `prompt` and `completion`, or `messages`
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    micro_batch: int = Field(32, ge=1)  # rows per forward pass
    learning_rate: Rate = "auto"  # auto: by short trials
    max_grad_norm: float = Field(1.0, gt=0)
