"""The reward ensemble, its watcher and, where nobody else judges, a held-out examiner."""

from typing import Literal

from pydantic import Field, model_validator

from burnish.config.model import Layers
from burnish.config.rate import Rate
from burnish.config.strict import Section


class RewardConfig(Section):
    """Bradley-Terry reward models."""

    # Where scores are read: after how many layers, and from which tokens; auto: where linear probes read best.
    depth: int | Literal["auto"] = "auto"
    pooling: Literal["auto", "mean", "last"] = "auto"
    layers: Layers | None = None  # trained below that depth; None: as many as model.layers says
    members: int = Field(3, ge=1)
    aggregate: Literal["mean", "min", "uwo"] = "mean"
    uwo_lambda: float = Field(0.1, ge=0)
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    micro_batch: int = Field(32, ge=2)  # sequences per forward pass, two a pair
    learning_rate: Rate = "auto"  # auto: by short trials
    weight_decay: float = Field(0.01, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.05, ge=0, lt=0.5)
    center_coef: float = Field(0.01, ge=0)
    bootstrap: bool = True  # each member trains on its own resample of the pairs
    max_grad_norm: float = Field(1.0, gt=0)
    warmup_share: float = Field(0.1, ge=0, le=1)
    validation_share: float = Field(0.15, gt=0, lt=0.5)
    watcher_share: float = Field(0.2, ge=0, lt=0.5)
    examiner_share: float = Field(0.2, gt=0, lt=0.5)  # used only when evaluate.examiner is reward_model
    # What length may not buy: none, sqrt (R / sqrt(length), made safe), regress (what length alone predicts is taken
    # away), penalty (length_penalty standard deviations of the score for one of the length).
    length: Literal["none", "sqrt", "regress", "penalty"] = "none"
    length_penalty: float = Field(0.3, ge=0)
    reference_samples: int = Field(256, ge=32)

    @model_validator(mode="after")
    def _something_left(self) -> "RewardConfig":
        used = self.validation_share + self.watcher_share + self.examiner_share
        if used >= 0.9:
            raise ValueError(
                f"validation_share + watcher_share + examiner_share = {used:.2f} leaves the members under a "
                "tenth of the pairs; lower one of them"
            )
        return self
