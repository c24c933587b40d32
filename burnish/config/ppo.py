"""PPO and its adaptive KL controller."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from burnish.config.rate import PolicyRate, Rate
from burnish.config.strict import Section


class KLConfig(Section):
    """Adaptive KL. Targets are nats per response, summed over its tokens, averaged over the batch."""

    target: float = Field(4.0, gt=0)
    adaptive: bool = True
    init_coef: float | None = Field(None, gt=0)  # None: sd within a prompt / sqrt(2 target)
    horizon: int | None = Field(None, gt=0)  # episodes; None: a twentieth of the run's
    smoothing: float = Field(0.5, ge=0, lt=1)  # exponential moving average of the measured KL
    lead: float = Field(5.0, ge=0)  # updates ahead that the controller looks, by the last one's change
    min_coef: float = Field(1e-4, gt=0)  # both clamps are multiplied by the score's sd
    max_coef: float = Field(10.0, gt=0)


class FunctionReward(Section):
    """A reward besides the ensemble: a Python function, `package.module:function`, given the prompts, responses and
    token counts of a batch, giving a number for each response; or the reward models of another run, at the address
    where `burnish reward serve` offers them."""

    function: str | None = Field(None, pattern=r"^[\w.]+:\w+$")
    url: str | None = Field(None, pattern=r"^https?://\S+$")
    weight: float = 1.0
    called: str | None = Field(None, pattern=r"^\w+$")  # in the metrics; None: as the function, or `remote`
    timeout: float = Field(120.0, gt=0)  # seconds a batch, for an address
    token_env: str | None = None  # environment variable with the token that the address asks for

    @property
    def name(self) -> str:
        """What its term is called in the metrics."""
        return self.called or ("remote" if self.function is None else self.function.partition(":")[2])

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
        if (self.function is None) == (self.url is None):
            raise ValueError("a reward is a function (package.module:name) or a url: give one of the two")
        return self


class ShapingConfig(Section):
    """What becomes of a score before PPO is paid by it. Units are standard deviations of the score on responses of the
    reference policy, so that nothing here depends on the scale a reward comes in."""

    # Divide by that standard deviation (reference), or by that of all scores seen so far, which narrows with the policy
    # (running). auto: reference where ppo.rewards or ppo.ensemble_weight make a scale of their own, so that only what
    # terms weigh against one another counts; the ensemble's own is near 1 already.
    normalise: Literal["auto", "none", "reference", "running"] = "auto"
    clip: float | None = Field(None, gt=0)  # no score counts for more, on either side of the reference's mean
    # sigmoid(score - that of a reference response to the same prompt) - 1/2 (PAR, Fu et al. 2025): no answer can be
    # worth more than half above the reference, however far its score runs.
    bounded: bool = False

    def given(self, own_scale: bool) -> "ShapingConfig":
        """With `auto` decided: whether the score has a scale of its own."""
        if self.normalise != "auto":
            return self
        return self.model_copy(
            update={"normalise": "reference" if own_scale and not self.bounded else "none"}
        )

    @property
    def active(self) -> bool:
        return self.bounded or self.clip is not None or self.normalise in ("reference", "running")

    @model_validator(mode="after")
    def _one_scale(self) -> "ShapingConfig":
        if self.bounded and (self.clip is not None or self.normalise in ("reference", "running")):
            raise ValueError(
                "ppo.shaping.bounded has a scale and bounds of its own; leave out normalise and clip, or bounded"
            )
        return self


class PPOConfig(Section):
    """Proximal policy optimisation."""

    # Whether PPO is tried when the reward is no better than a trivial rule: not, or all the same (`run --force`).
    gate: Literal["obeyed", "ignored"] = "obeyed"
    updates: int = Field(36, ge=0)
    batch_size: int = Field(64, ge=2)
    # As many responses an update as take about so long (and fit model.cache_gib) in place of batch_size, found when the
    # run is created and frozen in run.yaml; None: batch_size.
    update_seconds: float | None = Field(None, gt=0)
    epochs: int = Field(3, ge=1)
    minibatches: int = Field(1, ge=1)
    micro_batch: int = Field(32, ge=1)  # rows per forward pass; frozen in run.yaml
    # gae: by a value function; rloo, grpo: against the other answers to the same prompt, without one; auto: gae, and
    # rloo once the value function has explained nothing for three updates.
    advantage: Literal["auto", "gae", "rloo", "grpo"] = "auto"
    answers: int = Field(1, ge=1)  # to each prompt of a batch
    # auto: that with which the first update moves the policy as far as it should; 0 freezes it.
    learning_rate: PolicyRate = "auto"
    # Whether the policy's rate follows the KL of one update to the next, to reach the target in a third of them.
    adaptive_rate: bool = True
    stop_kl: float | None = Field(
        None, gt=0
    )  # nats a response from the sampled policy, at which inner epochs end
    value_learning_rate: Rate = "auto"  # auto: a third of the reward models'
    # Trained layers of the value function; None, and in models not built like Llama: as many as the policy's.
    value_layers: int | None = Field(1, ge=1)
    # auto: reward_model; zero for LoRA, and where the ensemble is left out of the reward.
    value_init: Literal["auto", "reward_model", "zero"] = "auto"
    warmup_updates: int = Field(2, ge=0)
    value_warmup: int = Field(0, ge=0)  # updates, of `updates`, in which only the value function learns
    # An instruction that is sampled under ("Answer concisely."), by policy, reference and value function alike; reward,
    # watcher and examiner read the prompt without it, and so is the champion decided.
    concise: str | None = Field(None, min_length=1)
    gamma: float = Field(1.0, gt=0, le=1)
    lam: float = Field(0.95, ge=0, le=1)
    cliprange: float = Field(0.2, gt=0)
    cliprange_value: float = Field(0.2, gt=0)
    vf_coef: float = Field(0.1, ge=0)
    temperature: float = Field(1.0, gt=0)
    whiten_advantages: bool = True
    missing_eos_penalty: float = Field(1.0, ge=0)  # standard deviations of the reference's scores
    max_grad_norm: float = Field(1.0, gt=0)
    adam_eps: float = Field(1e-5, gt=0)
    # What is optimised: ensemble_weight times the ensemble's score, plus weight times every function's value.
    ensemble_weight: float = Field(1.0, ge=0)
    rewards: tuple[FunctionReward, ...] = ()
    shaping: ShapingConfig = ShapingConfig()
    checkpoint_every: int = Field(5, ge=1)
    watch_every: int = Field(5, ge=1)
    kl: KLConfig = KLConfig()

    @property
    def looks(self) -> int:
        """How often the watcher looks: at the first update and at every `watch_every`-th."""
        return len({1, *range(self.watch_every, self.updates + 1, self.watch_every)})

    @model_validator(mode="after")
    def _divides(self) -> "PPOConfig":
        names = [reward.name for reward in self.rewards]
        twice = next((n for n in names if names.count(n) > 1), "ensemble" if "ensemble" in names else None)
        if twice:
            raise ValueError(
                f"ppo.rewards: two terms would be called {twice!r} in the metrics; rename a function, or set `called`"
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
        if self.advantage in ("rloo", "grpo") and self.answers < 2:
            raise ValueError(
                f"ppo.advantage={self.advantage} compares answers to the same prompt, but ppo.answers={self.answers}; "
                "set it to 4"
            )
        if self.batch_size % self.answers:
            raise ValueError(
                f"ppo.answers={self.answers} must divide ppo.batch_size={self.batch_size}, which counts answers"
            )
        if self.batch_size % self.minibatches:
            fits = [m for m in range(1, self.batch_size + 1) if self.batch_size % m == 0]
            nearest = min(fits, key=lambda m: abs(m - self.minibatches))
            raise ValueError(
                f"ppo.minibatches={self.minibatches} must divide ppo.batch_size={self.batch_size}; "
                f"try {nearest}"
            )
        return self
