"""Section `select`: active learning."""

from typing import Literal

from pydantic import Field

from burnish.config.strict import Section


class SelectConfig(Section):
    """Active learning: several candidate pairs are sampled, and some of them are labelled.

    It applies from the second round on, or with `collect.previous_run`.
    """

    acquisition: Literal["variance", "bald", "entropy", "d_optimal", "random"] = Field(
        "variance", description="How pairs are selected by the reward ensemble; random ignores the scores."
    )
    candidates: int = Field(4, ge=1, description="Pairs sampled for each pair that is labelled.")
    random_share: float = Field(
        0.3, ge=0, le=1, description="Share of the members' new pairs that is drawn at random."
    )
