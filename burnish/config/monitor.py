"""Section `monitor`: limits of the health checks, trackers and the webhook."""

from typing import ClassVar, Literal

from pydantic import Field

from burnish.config.strict import Section


class MonitorConfig(Section):
    """Limits of health alerts, and where the figures go besides JSON lines."""

    skipped_limit: ClassVar[int] = 3  # consecutive updates with non-finite gradients
    flat_limit: ClassVar[int] = 5  # consecutive updates in which all responses have one score
    reward_jump: ClassVar[float] = 50.0  # standard deviations of the first scores

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = Field(
        ("tensorboard",),
        description="Experiment trackers that get every figure. All but tensorboard need the extra `trackers`.",
    )
    webhook: str | None = Field(
        None,
        description="Environment variable that holds the URL to which alerts and guard decisions are posted.",
    )
    sample_every: int = Field(10, ge=1, description="Updates between two sets of responses that are kept.")
    kl_spike: float = Field(2.0, gt=1, description="Alert where KL exceeds this many times its target.")
    entropy_floor: float = Field(
        0.3, gt=0, lt=1, description="Alert where the entropy falls below this share of its start."
    )
    loss_spike: float = Field(
        8.0, gt=1, description="Alert where the value loss exceeds this many times its median."
    )
    clip_fraction: float = Field(0.4, gt=0, le=1, description="Alert where this share of ratios is clipped.")
    approx_kl: float = Field(
        0.2,
        gt=0,
        description="Alert where the KL to the policy before the update, by inner epochs, exceeds this.",
    )
