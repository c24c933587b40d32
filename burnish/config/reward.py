"""Section `reward`: the reward ensemble, its watcher, and a held-out examiner."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from burnish.config.model import Layers
from burnish.config.rate import Rate
from burnish.config.strict import Section

Aggregate = Literal["mean", "min", "uwo", "mean_std", "weights"]


class RewardConfig(Section):
    """Bradley-Terry reward models."""

    max_grad_norm: ClassVar[float] = 1.0
    warmup_share: ClassVar[float] = 0.1  # of the steps, with a linearly rising learning rate

    depth: int | Literal["auto"] = Field(
        "auto",
        description="Layers below the reward head. `auto` takes the depth at which linear probes of the frozen "
        "model agree best with the labels.",
    )
    pooling: Literal["auto", "mean", "last"] = Field(
        "auto",
        description="Tokens the score is read from: the mean of the response, or its last token. `auto` decides "
        "with the same probes.",
    )
    layers: Layers | None = Field(
        None,
        description="What is trained below that depth, as in model.layers; null: as many layers as model.layers.",
    )
    readings: Literal["same", "different"] = Field(
        "same",
        description="same: all members read at one place. different: each at its own, chosen by the probes so that "
        "their errors correlate least, and the layers below it are trained. It costs the activations of each place.",
    )
    members: int = Field(3, ge=1, description="Reward models of the ensemble, with different seeds.")
    aggregate: Aggregate = Field(
        "mean",
        description="How the members' scores are combined. min, uwo (mean - uwo_lambda * variance) and mean_std "
        "(mean - std_lambda * standard deviation) compare members by their difference to a reference response; "
        "weights averages the members' weights (WARM). Use min or uwo where PPO exploits single members.",
    )
    uwo_lambda: float = Field(0.1, ge=0, description="Weight of the members' variance in uwo.")
    std_lambda: float = Field(0.5, ge=0, description="Weight of the members' standard deviation in mean_std.")
    shared_head: bool = Field(
        False,
        description="Start all members with the same head and keep the average of their weights. aggregate: "
        "weights needs it.",
    )
    epochs: int = Field(
        1, ge=1, description="Passes over the pairs. More than one or two overfit small data."
    )
    batch_size: int = Field(16, ge=1, description="Prompts per optimiser step, each with all of its pairs.")
    micro_batch: int = Field(
        32,
        ge=2,
        description="Sequences per forward pass, two for each pair. Lower it where training runs out of memory.",
    )
    learning_rate: Rate = Field(
        "auto", description="Learning rate of AdamW. `auto` finds it with short trials."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    dropout: float = Field(0.1, ge=0, lt=1, description="Dropout before the reward head.")
    label_smoothing: float = Field(0.05, ge=0, lt=0.5, description="Probability that a label is wrong.")
    center_coef: float = Field(
        0.01, ge=0, description="Weight of the squared sum of a pair's scores, which centres scores at 0."
    )
    bsr_coef: float = Field(
        0.0, ge=0, description="Weight of the squared mean of a batch's scores (batch-wise sum-to-zero)."
    )
    margin: float = Field(
        0.0,
        ge=0,
        description="Margin by which a certain label's winner must win; smaller where labels disagree. Where "
        "preferences are graded, it is in proportion to the grade (Llama 2).",
    )
    soft_labels: bool = Field(
        True,
        description="Train on the share of labels that prefer each response, where labels of a pair disagree.",
    )
    early_stopping: float = Field(
        0.0,
        ge=0,
        lt=0.5,
        description="Share of a member's prompts held out from its training. The best of eight checkpoints on them "
        "is kept (with odin by the score alone). 0 keeps the last step.",
    )
    bootstrap: bool = Field(
        True, description="Train each member on its own resample of the prompts, so that members differ more."
    )
    validation_share: float = Field(
        0.15, gt=0, lt=0.5, description="Share of the pairs held out for validation."
    )
    watcher_share: float = Field(
        0.2,
        ge=0,
        lt=0.5,
        description="Share of the pairs that train the watcher, a reward model that PPO does not optimise and that "
        "shows reward hacking. 0 trains no watcher.",
    )
    examiner_share: float = Field(
        0.2,
        gt=0,
        lt=0.5,
        description="Share of the pairs that train the examiner, where evaluate.examiner is reward_model.",
    )
    length: Literal["none", "sqrt", "regress", "penalty", "odin"] = Field(
        "none",
        description="Correction of length bias. sqrt: R / sqrt(length), about a low quantile and a least length; "
        "regress: subtract what length alone predicts; penalty: subtract length_penalty standard deviations of the "
        "score for one of the length; odin: a second head learns the length and is dropped afterwards.",
    )
    length_penalty: float = Field(0.3, ge=0, description="Strength of `length: penalty`.")
    reference_samples: int = Field(
        256,
        ge=32,
        description="Responses of SFT that fix the scale of the scores, and the reference of min and uwo.",
    )

    @property
    def correction(self) -> Literal["sqrt", "regress", "penalty"] | None:
        """Correction applied to scores after training, or None."""
        return None if self.length == "none" or self.length == "odin" else self.length

    @model_validator(mode="after")
    def _something_left(self) -> "RewardConfig":
        if self.aggregate == "weights" and not self.shared_head:
            raise ValueError(
                "aggregate=weights averages members that began with the same head; set shared_head: true"
            )
        if self.shared_head and self.members == 1:
            raise ValueError("shared_head keeps the average of several members; members is 1")
        if self.readings == "different" and self.shared_head:
            raise ValueError("readings=different gives each member its own head; set shared_head: false")
        if self.readings == "different" and self.depth != "auto" and self.pooling != "auto":
            raise ValueError(
                f"readings=different chooses among places, but depth={self.depth} and pooling={self.pooling} leave "
                "one; set one of them to auto"
            )
        used = self.validation_share + self.watcher_share + self.examiner_share
        if used >= 0.9:
            raise ValueError(
                f"validation_share + watcher_share + examiner_share = {used:.2f} leaves the members under a "
                "tenth of the pairs; lower one of them"
            )
        return self
