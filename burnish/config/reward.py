"""The reward ensemble, its watcher and, if `evaluate.examiner` is reward_model, a held-out examiner."""

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
    # How members become one score. min, uwo (mean - uwo_lambda * variance) and mean_std (mean - std_lambda * standard
    # deviation) compare members by the difference to a reference answer; weights averages the members' weights (WARM).
    aggregate: Literal["mean", "min", "uwo", "mean_std", "weights"] = "mean"
    uwo_lambda: float = Field(0.1, ge=0)
    std_lambda: float = Field(0.5, ge=0)
    shared_head: bool = (
        False  # members begin with the same head, and the average of their weights is kept beside them
    )
    epochs: int = Field(1, ge=1)
    batch_size: int = Field(16, ge=1)
    micro_batch: int = Field(32, ge=2)  # sequences per forward pass, two a pair
    learning_rate: Rate = "auto"  # auto: by short trials
    weight_decay: float = Field(0.01, ge=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.05, ge=0, lt=0.5)
    center_coef: float = Field(0.01, ge=0)
    bsr_coef: float = Field(0.0, ge=0)  # of the squared mean of a batch's scores: batches sum to zero
    margin: float = Field(0.0, ge=0)  # by which a sure label's winner must win, less where labels contradict
    soft_labels: bool = True  # whether contradicting labels are learned as the shares they are
    # Share of a member's prompts it does not learn from; the best of eight looks at them (with odin at the score alone)
    # is kept. 0: the last step.
    early_stopping: float = Field(0.0, ge=0, lt=0.5)
    bootstrap: bool = True  # each member trains on its own resample of the pairs
    max_grad_norm: float = Field(1.0, gt=0)
    warmup_share: float = Field(0.1, ge=0, le=1)
    validation_share: float = Field(0.15, gt=0, lt=0.5)
    watcher_share: float = Field(0.2, ge=0, lt=0.5)
    examiner_share: float = Field(0.2, gt=0, lt=0.5)  # used only when evaluate.examiner is reward_model
    # What length may not buy: none, sqrt (R / sqrt(length), made safe), regress (what length alone predicts is taken
    # away), penalty (length_penalty standard deviations of the score for one of the length), odin (a second head learns
    # the length while training, and is left out afterwards).
    length: Literal["none", "sqrt", "regress", "penalty", "odin"] = "none"
    length_penalty: float = Field(0.3, ge=0)
    reference_samples: int = Field(256, ge=32)

    @property
    def correction(self) -> Literal["sqrt", "regress", "penalty"] | None:
        """How scores are corrected for length after training; None where they are not."""
        return None if self.length == "none" or self.length == "odin" else self.length

    @model_validator(mode="after")
    def _something_left(self) -> "RewardConfig":
        if self.aggregate == "weights" and not self.shared_head:
            raise ValueError(
                "aggregate=weights averages members that began with the same head; set shared_head: true"
            )
        if self.shared_head and self.members == 1:
            raise ValueError("shared_head keeps the average of several members; members is 1")
        used = self.validation_share + self.watcher_share + self.examiner_share
        if used >= 0.9:
            raise ValueError(
                f"validation_share + watcher_share + examiner_share = {used:.2f} leaves the members under a "
                "tenth of the pairs; lower one of them"
            )
        return self
