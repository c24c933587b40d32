"""Prompts, demonstrations and preference pairs."""

from typing import Literal

from pydantic import Field

from burnish.config.strict import Section


class DataConfig(Section):
    """Where prompts come from, and how they are split (by hash, so that a prompt never changes sides)."""

    prompts: str = "stories"  # `stories` (the embedded world), a .jsonl/.txt file, or `preferences`
    n_prompts: int | None = Field(None, ge=1)  # cap on the prompts read
    selection_share: float = Field(0.15, gt=0, lt=0.5)
    test_share: float = Field(0.3, gt=0, lt=0.6)
    rejected_rows_limit: float = Field(0.5, ge=0, le=1)  # share of unusable rows above which import stops


class SftConfig(Section):
    """Supervised fine-tuning on demonstrations; off unless `demonstrations` is given."""

    demonstrations: str | None = None  # JSONL with `prompt` and `completion`, or `messages`
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float | None = Field(None, gt=0)  # None: by mode (full, LoRA, tiny)
    max_grad_norm: float = Field(1.0, gt=0)


class CollectConfig(Section):
    """Pairs sampled from the policy."""

    n_pairs: int = Field(1536, ge=0)  # 0: use imported pairs only
    temperature: float = Field(1.0, gt=0)
    batch_size: int = Field(128, ge=1)


class SimulatedConfig(Section):
    """Simulated annotators: they choose by the true preference, with these faults."""

    annotators: int = Field(8, ge=1)
    noise: float = Field(0.4, ge=0)  # scale of the logistic noise on the difference in gold
    length_bias: float = 0.0  # added to the difference in gold, per word the first response is longer
    position_bias: float = 0.0  # added to the difference in gold for whatever stands first
    spam_share: float = Field(0.0, ge=0, le=1)  # share of annotators who answer at random


class LabelConfig(Section):
    """Who answers the comparisons."""

    source: Literal["simulated", "imported"] = "simulated"
    preferences: str | None = None  # file, or `datasets` name, of Hugging Face preference pairs to import
    split: str = "train"  # the split, when `preferences` is a `datasets` name
    max_pairs: int | None = Field(None, ge=1)
    labels_per_pair: int = Field(1, ge=1)
    simulated: SimulatedConfig = SimulatedConfig()
