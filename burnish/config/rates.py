"""Learning rates by what is trained and how; used where a section leaves `learning_rate` open."""

from typing import Literal

from burnish.config.model import TINY_MODEL, ModelConfig

Job = Literal["sft", "reward", "ppo", "value", "dpo"]

# Full fine-tuning at the 1e-6 scale (OpenRLHF, verl; InstructGPT saw divergence above 8e-6), adapters ten times
# higher, the embedded model its own: half a million weights need steps that would wreck a billion.
RATES: dict[str, dict[Job, float]] = {
    "tiny": {"sft": 1e-3, "reward": 2e-3, "ppo": 3e-4, "value": 1e-3, "dpo": 3e-4},
    "tiny_top": {"sft": 1e-3, "reward": 3e-3, "ppo": 1e-3, "value": 1e-3, "dpo": 1e-3},
    "full": {"sft": 1e-5, "reward": 9e-6, "ppo": 1e-6, "value": 9e-6, "dpo": 1e-6},
    "lora": {"sft": 1e-4, "reward": 1e-4, "ppo": 5e-5, "value": 1e-4, "dpo": 5e-5},
    "top": {"sft": 2e-5, "reward": 5e-5, "ppo": 1e-5, "value": 5e-5, "dpo": 1e-5},
}


def learning_rate(job: Job, model: ModelConfig, layers: str) -> float:
    """The default rate of a job for this model, when these of its layers are trained (`Base.layers`, never auto)."""
    mode = layers.split(":")[0].removesuffix("_top")  # all, top, lora
    if model.path == TINY_MODEL:
        return RATES["tiny_top" if mode == "top" else "tiny"][job]
    return RATES["full" if mode == "all" else mode][job]
