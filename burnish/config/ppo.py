"""Section `ppo`: PPO, its adaptive KL controller, and the reward it optimises."""

import re
from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from burnish.config.rate import PolicyRate, Rate
from burnish.config.strict import Section


class KLConfig(Section):
    """Adaptive KL control (Ziegler et al. 2019). KL is in nats per response, summed over its tokens."""

    smoothing: ClassVar[float] = 0.5  # of the exponential moving average of the measured KL
    lead: ClassVar[float] = 5.0  # updates that the controller extrapolates, by the last change
    min_coef: ClassVar[float] = 1e-4  # limits of the coefficient, times the standard deviation of the score
    max_coef: ClassVar[float] = 10.0

    target: float = Field(
        4.0,
        gt=0,
        description="KL to the SFT model that the controller aims at. Raise it for more reward, lower it where "
        "reward hacking begins.",
    )
    where: Literal["reward", "reward_to_go", "loss"] = Field(
        "reward",
        description="Where the KL penalty acts. reward: the KL of the whole response lowers the advantage of every "
        "token. reward_to_go: only the KL from a token on does (gae always works so). loss: the exact KL at every "
        "token is added to the loss, which costs a pass of the reference.",
    )
    reached_at: float = Field(
        1 / 3,
        gt=0,
        le=1,
        description="Share of the responses after which the steps of the policy add up to the target. Nearer to 1, "
        "more updates share the KL, and their noise is averaged; nearer to 0, the policy moves early.",
    )
    adaptive: bool = Field(True, description="Adapt the coefficient; false keeps init_coef.")
    init_coef: float | None = Field(
        None,
        gt=0,
        description="First coefficient; null: standard deviation of the score within a prompt / sqrt(2 * target), "
        "which holds the target for a Gaussian score.",
    )
    horizon: int | None = Field(
        None, gt=0, description="Episodes over which the controller adapts; null: a twentieth of the run's."
    )


class FunctionReward(Section):
    """A reward besides the ensemble: a Python function, a published reward model, or a server's reward models.

    A function with a parameter `completions` has TRL's signature: it gets `prompts`, `completions` and the columns of
    the prompts' data by name, and returns a number or None for each response. Another one takes the prompts, responses
    and token counts of a batch. `burnish.rewards` has functions for common checks.
    """

    function: str | None = Field(
        None,
        pattern=r"^[\w.]+:\w+$",
        description="`package.module:function`. Give one of function, model and url.",
    )
    arguments: dict[str, Any] = Field(
        {},
        description="Keyword arguments of a function in TRL's signature, as in {pattern: '[0-9]+'}.",
    )
    model: str | None = Field(
        None,
        description="Folder or hub name of a reward model: an AutoModelForSequenceClassification with one label, "
        "with its own tokenizer and chat template.",
    )
    device: str = Field("auto", description="Device of `model`; auto: that of the policy.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Precision of `model`; auto: that of its files."
    )
    batch_size: int = Field(16, ge=1, description="Responses that `model` scores at once.")
    url: str | None = Field(
        None, pattern=r"^https?://\S+$", description="Address of a server started by `burnish reward serve`."
    )
    weight: float = Field(1.0, description="Weight of the term in the sum that is optimised.")
    name: str | None = Field(
        None,
        pattern=r"^\w+$",
        description="Name in the metrics; null: that of the function or model, or `remote`.",
    )
    timeout: float = Field(120.0, gt=0, description="Seconds per batch before a request to `url` fails.")
    token_env: str | None = Field(
        None, description="Environment variable that holds the bearer token of the server at `url`."
    )

    @property
    def source(self) -> str:
        """What the term is: its function, model or address."""
        return self.function or self.model or str(self.url)

    @property
    def term(self) -> str:
        """Name of the term in the metrics."""
        if self.name is not None:
            return self.name
        if self.model is not None:
            return re.sub(r"\W+", "_", self.model.rstrip("/").rpartition("/")[2])
        return "remote" if self.function is None else self.function.partition(":")[2]

    @field_validator("url")
    @classmethod
    def _no_secret(cls, url: str | None) -> str | None:
        if url is not None and "@" in url.split("://", 1)[1].split("/", 1)[0]:
            raise ValueError(
                "the address holds a user or password, which run.yaml would show; leave it out and name an environment "
                "variable with the token in token_env"
            )
        return url

    @model_validator(mode="after")
    def _one_of_two(self) -> "FunctionReward":
        if sum(given is not None for given in (self.function, self.model, self.url)) != 1:
            raise ValueError(
                "a reward is a function (package.module:name), a model or a url: give one of the three"
            )
        return self


class ShapingConfig(Section):
    """Shaping of the score before PPO optimises it.

    Units are standard deviations of the score on responses of the reference model, so that settings do not depend on
    the scale of a reward.
    """

    normalise: Literal["auto", "none", "reference", "running"] = Field(
        "auto",
        description="Divide the score by its standard deviation on reference responses (reference), or on all "
        "responses so far (running). `auto` is reference where ppo.rewards or ppo.ensemble_weight change the "
        "scale, else none.",
    )
    clip: float | None = Field(
        None,
        gt=0,
        description="Largest distance of a score from the reference's mean, on both sides; null: none.",
    )
    bounded: bool = Field(
        False,
        description="Use sigmoid(score - score of a reference response to the same prompt) - 1/2 (PAR, Fu et al. "
        "2025), which is at most 1/2. Set it where scores run away.",
    )

    def given(self, own_scale: bool) -> "ShapingConfig":
        """Return the settings with `auto` resolved; `own_scale` says that the score has a scale of its own."""
        if self.normalise != "auto":
            return self
        return self.model_copy(
            update={"normalise": "reference" if own_scale and not self.bounded else "none"}
        )

    @property
    def active(self) -> bool:
        """Whether scores are changed at all."""
        return self.bounded or self.clip is not None or self.normalise in ("reference", "running")

    @model_validator(mode="after")
    def _one_scale(self) -> "ShapingConfig":
        if self.bounded and (self.clip is not None or self.normalise in ("reference", "running")):
            raise ValueError(
                "ppo.shaping.bounded has a scale and bounds of its own; leave out normalise and clip, or bounded"
            )
        return self


AVERAGED_SHARE = 6  # the updates divided by those of the moving average
MOST_BATCHES = 4  # times batch_size, the most responses that `answers_per_update: auto` takes


class PPOConfig(Section):
    """Proximal policy optimisation (Schulman et al. 2017)."""

    adam_eps: ClassVar[float] = 1e-5

    gate: Literal["obeyed", "ignored"] = Field(
        "obeyed",
        description="Whether PPO is skipped where the reward is no better than a trivial rule (`obeyed`), or runs "
        "anyway (`ignored`, as with `run --force`).",
    )
    updates: int = Field(36, ge=0, description="PPO updates. 0 skips PPO.")
    batch_size: int = Field(
        64, ge=2, description="Responses per update. More reduce the noise of the gradient."
    )
    update_seconds: float | None = Field(
        None,
        gt=0,
        description="Choose batch_size so that an update takes about this many seconds and fits model.cache_gib. "
        "The run measures it once and freezes it in run.yaml; null uses batch_size.",
    )
    answers_per_update: Literal["fixed", "auto"] = Field(
        "fixed",
        description="fixed: batch_size responses. auto: two to four times as many where the gradients of two halves of "
        "the batch disagree, in fewer updates: the run samples updates * batch_size responses in all.",
    )
    epochs: int = Field(3, ge=1, description="Passes over the responses of an update.")
    minibatches: int = Field(1, ge=1, description="Optimiser steps per pass; must divide batch_size.")
    micro_batch: int = Field(
        32,
        ge=1,
        description="Rows per forward pass, more if they are short; frozen in run.yaml. Lower it where training runs "
        "out of memory; results stay the same but for rounding.",
    )
    advantage: Literal["auto", "gae", "rloo", "grpo"] = Field(
        "auto",
        description="gae: a value function (Schulman et al. 2016); rloo, grpo: the other responses to the same "
        "prompt as the baseline, without a value function. `auto` starts with gae, and changes to rloo once the "
        "value function has explained nothing for three updates.",
    )
    credit: Literal["response", "prefix"] = Field(
        "response",
        description="Where rloo and grpo credit a reward. response: on every token alike. prefix: on the tokens after "
        "which the reward models' score of the prefix rises, by GAE with `lam`.",
    )
    samples_per_prompt: int = Field(
        1,
        ge=1,
        description="Responses to each prompt of a batch; must divide batch_size. rloo and grpo need 2 or more.",
    )
    learning_rate: PolicyRate = Field(
        "auto",
        description="Learning rate of AdamW for the policy. `auto` finds the rate whose first update has the "
        "wanted KL; 0 freezes the policy.",
    )
    adaptive_rate: bool = Field(
        True,
        description="Adapt the learning rate to the KL of each update, so that the target is reached when "
        "kl.reached_at says.",
    )
    schedule: Literal["constant", "linear"] = Field(
        "constant",
        description="Schedule of the policy's learning rate after the warm-up. linear: down to 0 after the last one, "
        "so that the noise of single updates is averaged at the end. adaptive_rate then aims at steps that shrink too.",
    )
    average_updates: int | None = Field(
        None,
        ge=0,
        description="Updates over which a moving average of the policy's weights extends. The average is a candidate "
        "beside the last policy. null: a sixth of the updates, or 0 where every layer is trained, since it costs a "
        "copy of the trained weights, and no candidate where people or a judge examine; 0: no average.",
    )
    stop_kl: float | None = Field(
        None,
        gt=0,
        description="End the passes of an update at this KL to the sampling policy, in nats per response.",
    )
    value_learning_rate: Rate = Field(
        "auto", description="Learning rate of the value function. `auto` is a third of the reward models'."
    )
    value_layers: int | None = Field(
        1,
        ge=1,
        description="Trained layers of the value function; null, and in architectures that cannot be cut: as many "
        "as the policy's.",
    )
    value_init: Literal["auto", "reward_model", "zero"] = Field(
        "auto",
        description="First weights of the value function. `auto` is reward_model; it is zero for LoRA and where "
        "the ensemble is not in the reward.",
    )
    warmup_updates: int = Field(2, ge=0, description="Updates with a linearly rising learning rate.")
    value_warmup: int = Field(0, ge=0, description="The first updates, which train only the value function.")
    concise: str | None = Field(
        None,
        min_length=1,
        description='Instruction added to every prompt while sampling ("Answer concisely."), for policy, reference '
        "and value function. Reward models, watcher and examiner read the prompt without it.",
    )
    gamma: float = Field(1.0, gt=0, le=1, description="Discount per token.")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of GAE.")
    cliprange: float = Field(0.2, gt=0, description="Clip range of the probability ratio.")
    cliprange_high: float | None = Field(
        None,
        gt=0,
        description="Upper clip range of the ratio, if it differs (DAPO: 0.28); null: cliprange.",
    )
    ratio: Literal["token", "response"] = Field(
        "token",
        description="Probability ratio of each token, or of the whole response, by the mean of its log-ratios (GSPO, "
        "whose clip ranges are about 0.0003).",
    )
    loss_mean: Literal["token", "response", "constant"] = Field(
        "token",
        description="Mean of the policy loss. token: over all tokens of a minibatch (DAPO). response: over responses, "
        "of the mean over their tokens (GRPO). constant: the sum divided by the longest allowed response (Dr. GRPO).",
    )
    skip_equal_groups: bool = Field(
        False,
        description="Without a value function, leave out responses to a prompt whose scores are all equal (DAPO). They "
        "have no advantage but that of their KL, and count in the mean of the loss.",
    )
    cliprange_value: float = Field(0.2, gt=0, description="Clip range of the value's change.")
    vf_coef: float = Field(0.1, ge=0, description="Weight of the value loss.")
    temperature: float = Field(
        1.0, gt=0, description="Sampling temperature; log-probabilities are taken at the same temperature."
    )
    whiten_advantages: bool = Field(
        True, description="Scale the advantages of a batch to mean 0 and variance 1."
    )
    missing_eos_penalty: float = Field(
        1.0,
        ge=0,
        description="Subtracted from the score of a response that has no end-of-sequence token, in standard "
        "deviations of the reference's scores.",
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Norm at which gradients are clipped.")
    ensemble_weight: float = Field(
        1.0, ge=0, description="Weight of the ensemble's score in the reward; 0 optimises `rewards` alone."
    )
    rewards: tuple[FunctionReward, ...] = Field((), description="Rewards added to the ensemble's score.")
    shaping: ShapingConfig = ShapingConfig()
    checkpoint_every: int = Field(5, ge=1, description="Updates between two checkpoints.")
    watch_every: int = Field(5, ge=1, description="Updates between two scores of the watcher.")
    kl: KLConfig = KLConfig()

    @property
    def most_answers(self) -> int:
        """Largest number of responses of an update."""
        return self.batch_size * (MOST_BATCHES if self.answers_per_update == "auto" else 1)

    def averaged(self, *, whole: bool) -> int:
        """Return the updates of the moving average, 0 for none; `whole`: every layer is trained."""
        if self.average_updates is not None:
            return self.average_updates
        return 0 if whole or not self.updates else max(1, self.updates // AVERAGED_SHARE)

    @property
    def looks(self) -> int:
        """Number of updates at which the watcher scores: the first, and every `watch_every`-th."""
        return len({1, *range(self.watch_every, self.updates + 1, self.watch_every)})

    @model_validator(mode="after")
    def _divides(self) -> "PPOConfig":
        names = [reward.term for reward in self.rewards]
        twice = next((n for n in names if names.count(n) > 1), "ensemble" if "ensemble" in names else None)
        if twice:
            raise ValueError(
                f"ppo.rewards: two terms would be called {twice!r} in the metrics; rename a function, or set `name`"
            )
        if not (self.ensemble_weight or self.rewards):
            raise ValueError(
                "ppo.ensemble_weight=0 leaves nothing to optimise; raise it, or name ppo.rewards"
            )
        if self.shaping.bounded and self.rewards:
            raise ValueError(
                "ppo.shaping.bounded compares the ensemble's score with that of a reference response, which "
                "ppo.rewards have not seen; bound those in their own functions, or use ppo.shaping.clip"
            )
        if self.value_warmup and (
            self.advantage in ("rloo", "grpo") or self.value_warmup >= self.updates > 0
        ):
            raise ValueError(
                f"ppo.value_warmup={self.value_warmup} needs a value function (ppo.advantage: auto or gae) and must be "
                f"under ppo.updates={self.updates}; set it to 0"
            )
        if self.advantage in ("rloo", "grpo") and self.samples_per_prompt < 2:
            raise ValueError(
                f"ppo.advantage={self.advantage} compares responses to the same prompt, but "
                f"ppo.samples_per_prompt={self.samples_per_prompt}; set it to 4"
            )
        if self.skip_equal_groups and self.samples_per_prompt < 2:
            raise ValueError(
                "ppo.skip_equal_groups compares responses to the same prompt, but ppo.samples_per_prompt=1; set it to 4"
            )
        if self.answers_per_update == "auto" and self.update_seconds is not None:
            raise ValueError(
                "ppo.update_seconds limits the time of an update, but ppo.answers_per_update=auto makes updates of up "
                f"to {MOST_BATCHES} times batch_size responses; set one of the two"
            )
        if self.batch_size % self.samples_per_prompt:
            raise ValueError(
                f"ppo.samples_per_prompt={self.samples_per_prompt} must divide ppo.batch_size={self.batch_size}, which "
                "counts responses"
            )
        if self.batch_size % self.minibatches:
            fits = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
            nearest = min(fits, key=lambda m: abs(m - self.minibatches))
            raise ValueError(
                f"ppo.minibatches={self.minibatches} must divide ppo.batch_size={self.batch_size}; "
                f"try {nearest}"
            )
        return self
