"""The guard over PPO."""

from pydantic import Field

from burnish.config.strict import Section


class GuardConfig(Section):
    """When PPO is corrected, rolled back, and given up."""

    enabled: bool = True
    raise_kl_factor: float = Field(2.0, gt=1)
    patience: int = Field(3, ge=1)  # consecutive unhealthy updates before the coefficient is raised
    max_raises: int = Field(2, ge=0)  # raises in one attempt before rolling back
    max_rollbacks: int = Field(2, ge=0)
    learning_rate_factor: float = Field(0.5, gt=0, lt=1)  # on each roll-back
    settle_updates: int = Field(3, ge=0)  # after an action, before the next one
