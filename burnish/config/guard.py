"""Section `guard`: supervision of PPO."""

from typing import ClassVar

from pydantic import Field

from burnish.config.strict import Section


class GuardConfig(Section):
    """Settings of the guard: when it corrects PPO, rolls it back, or gives it up."""

    calm_updates: ClassVar[int] = 2  # healthy updates in a row that end a streak of unhealthy ones
    forgive_updates: ClassVar[int] = (
        20  # healthy updates after which the counts of raises and cuts restart at 0
    )
    raise_kl_factor: ClassVar[float] = 2.0  # factor of the KL coefficient at each raise
    learning_rate_factor: ClassVar[float] = 0.5  # factor of the learning rates at each cut and each roll-back
    proof_updates: ClassVar[int] = 5  # healthy updates after which a checkpoint is one to roll back to

    enabled: bool = Field(
        True, description="Whether the guard acts. With false, alerts are recorded and PPO continues."
    )
    patience: int = Field(
        3,
        ge=1,
        description="Unhealthy updates before the guard acts. Raise it if alerts come and go by themselves.",
    )
    settle_updates: int = Field(
        3, ge=0, description="Updates after an action before the guard may act again."
    )
    max_raises: int = Field(
        2, ge=0, description="Times the KL coefficient is raised in one attempt before a roll-back."
    )
    tighten: bool = Field(
        True,
        description="If raises do not end a reward hack, subtract the members' disagreement from the score (uwo; a "
        "second time with twice the weight). It has no effect where reward.aggregate is min or weights.",
    )
    max_rate_cuts: int = Field(
        1, ge=0, description="Times the learning rates are cut in one attempt where steps are too large."
    )
    max_rollbacks: int = Field(
        2, ge=0, description="Roll-backs to a healthy checkpoint before PPO is given up."
    )
