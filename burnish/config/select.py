"""Which sampled comparisons are worth a label, once there are reward models to ask."""

from typing import Literal

from pydantic import Field

from burnish.config.strict import Section


class SelectConfig(Section):
    """From the second round on: candidates sampled from the newest policy, of which some are labelled."""

    how: Literal["variance", "bald", "entropy", "d_optimal", "random"] = "variance"
    candidates: int = Field(4, ge=1)  # sampled for every comparison that is labelled
    random_share: float = Field(
        0.3, ge=0, le=1
    )  # of what members learn from that is drawn at random all the same
