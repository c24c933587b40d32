"""The guard over PPO."""

from pydantic import Field

from burnish.config.strict import Section


class GuardConfig(Section):
    """When PPO is corrected, rolled back, and given up."""

    enabled: bool = True
    patience: int = Field(3, ge=1)  # unhealthy updates before the guard acts
    calm_updates: int = Field(2, ge=1)  # healthy updates in a row that end a streak of unhealthy ones
    forgive_updates: int = Field(20, ge=1)  # after which raises and cuts count anew
    settle_updates: int = Field(3, ge=0)  # after an action, before the next one
    raise_kl_factor: float = Field(2.0, gt=1)
    max_raises: int = Field(2, ge=0)  # in one attempt
    # Whether members that disagree make a score count for less (uwo, then with twice the lambda) where raises do not
    # end a hack; nothing is tighter than min.
    tighten: bool = True
    max_rate_cuts: int = Field(1, ge=0)  # in one attempt, where steps are too large
    max_rollbacks: int = Field(2, ge=0)
    learning_rate_factor: float = Field(0.5, gt=0, lt=1)  # on each cut and each roll-back
    proof_updates: int = Field(5, ge=0)  # healthy updates after which a checkpoint is one to go back to
