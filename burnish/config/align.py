"""Section `align`: the method that improves the policy against the reward."""

from typing import Literal

from pydantic import Field, model_validator

from burnish.config.ppo import PPOConfig
from burnish.config.strict import Section
from burnish.errors import ConfigError

Method = Literal["ppo", "rloo", "grpo", "distill", "online_dpo"]
GROUPS: dict[str, tuple[int, ...]] = {
    "rloo": (4, 5, 3, 2),
    "grpo": (4, 5, 3, 2),
    "distill": (8, 4, 5, 3, 2),
    "online_dpo": (8, 4, 5, 3, 2),
}
"""Responses per prompt that a method takes if ppo.samples_per_prompt is 1: the first that divides the batch."""


class AlignConfig(Section):
    """Choice of the method. Every method samples, is guarded and resumes alike, with the settings of `ppo`."""

    method: Literal["ppo", "rloo", "grpo", "distill", "online_dpo", "auto"] = Field(
        "ppo",
        description="ppo: as ppo.advantage says. rloo, grpo: PPO with that advantage. distill: in each update, "
        "fine-tuning on the best of several responses to a prompt, by reward less KL. online_dpo: in each update, DPO "
        "on the best against the worst. auto: short trials of `compared`, then the best of them by the watcher.",
    )
    start: Literal["sft", "dpo"] = Field(
        "sft",
        description="Weights that the method starts from. dpo: DPO on `dpo.pairs` runs first and is a candidate of its "
        "own, and the method continues from it (Tulu 3). KL is measured to SFT in either case. Where DPO alone spends "
        "more KL than `start_share` allows, its change of the weights is scaled down.",
    )
    start_share: float = Field(
        0.25,
        gt=0,
        lt=1,
        description="Share of ppo.kl.target that the weights of `start: dpo` may spend.",
    )
    compared: tuple[Method, ...] = Field(
        ("ppo", "online_dpo", "distill"), description="Methods that `auto` tries.", min_length=2
    )
    trial_updates: int = Field(4, ge=1, description="Updates of each trial of `auto`.")

    @model_validator(mode="after")
    def _different(self) -> "AlignConfig":
        if len(set(self.compared)) < len(self.compared):
            raise ValueError(f"compared={list(self.compared)} names a method twice; name each once")
        return self


def of_method(ppo: PPOConfig, method: str) -> PPOConfig:
    """Return the settings of `ppo` for a method: its advantage, and enough responses to a prompt.

    Raises ConfigError if no number of responses divides the batch, or minibatches would tear groups apart.
    """
    if method not in GROUPS:
        return ppo
    together = ppo.samples_per_prompt
    if together == 1:
        together = next((n for n in GROUPS[method] if ppo.batch_size % n == 0), 1)
    if together == 1:
        raise ConfigError(
            f"align.method={method} compares responses to the same prompt, but ppo.batch_size={ppo.batch_size} is not "
            f"divisible by any of {sorted(GROUPS[method])}; change it, or set ppo.samples_per_prompt"
        )
    if method in ("distill", "online_dpo") and ppo.batch_size // together % ppo.minibatches:
        raise ConfigError(
            f"align.method={method} keeps the {together} responses to a prompt in one minibatch, but ppo.minibatches="
            f"{ppo.minibatches} does not divide the {ppo.batch_size // together} prompts of a batch; set it to 1"
        )
    advantage = "grpo" if method == "grpo" else "rloo"
    settled = {"advantage": advantage, "samples_per_prompt": together, "value_warmup": 0}
    return ppo.model_copy(update=settled)
