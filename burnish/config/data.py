"""Prompts, and how they are split."""

from pydantic import Field

from burnish.config.strict import Section


class DataConfig(Section):
    """Where prompts come from, and how they are split (by hash, so that a prompt never changes sides)."""

    prompts: str = "stories"  # `stories` (the embedded world), a .jsonl/.txt file, or `preferences`
    n_prompts: int | None = Field(None, ge=1)  # cap on the prompts read
    selection_share: float = Field(0.15, gt=0, lt=0.5)
    test_share: float = Field(0.3, gt=0, lt=0.6)
    rejected_rows_limit: float = Field(0.5, ge=0, le=1)  # share of unusable rows above which import stops
