"""Pairs to be labelled."""

from pydantic import Field

from burnish.config.strict import Section


class CollectConfig(Section):
    """Pairs sampled from the policy."""

    n_pairs: int = Field(1536, ge=0)  # of all rounds together; 0: use imported pairs only
    # An earlier run of the same model: go on from its labels, sample from what it aligned, choose by its reward models.
    follows: str | None = None
    temperature: float = Field(1.0, gt=0)
    batch_size: int = Field(128, ge=1)
