"""Limits of the health checks and detectors; trackers and the webhook."""

from typing import Literal

from pydantic import Field

from burnish.config.strict import Section


class MonitorConfig(Section):
    """Health alerts and where the figures go besides JSONL."""

    trackers: tuple[Literal["tensorboard", "wandb", "mlflow", "trackio"], ...] = ("tensorboard",)
    webhook: str | None = (
        None  # environment variable that holds the address alerts and decisions are posted to
    )
    sample_every: int = Field(10, ge=1)  # updates between kept samples
    kl_spike: float = Field(2.0, gt=1)  # times the target
    entropy_floor: float = Field(0.3, gt=0, lt=1)  # share of the entropy at the start
    loss_spike: float = Field(8.0, gt=1)  # times the running median
    clip_fraction: float = Field(0.4, gt=0, le=1)
    approx_kl: float = Field(0.2, gt=0)
    skipped_limit: int = Field(3, ge=1)  # consecutive non-finite updates
    flat_limit: int = Field(5, ge=1)  # consecutive updates with one score for all answers
    reward_jump: float = Field(50.0, gt=1)  # standard deviations of the first scores
