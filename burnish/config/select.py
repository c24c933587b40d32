"""Section `select`: active learning."""

from typing import Literal

from pydantic import Field

from burnish.config.strict import Section


class SelectConfig(Section):
    """Active learning from the second round on: several candidate pairs are sampled and some are labelled."""

    acquisition: Literal["variance", "bald", "entropy", "d_optimal", "random"] = Field(
        "variance", description="How pairs are selected by the reward ensemble; random selects none by it."
    )
    candidates: int = Field(4, ge=1, description="Pairs sampled for each pair that is labelled.")
    random_share: float = Field(
        0.3, ge=0, le=1, description="Share of the training pairs that is drawn at random all the same."
    )
