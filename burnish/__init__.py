"""RLHF on one machine: reward ensembles, guarded PPO, DPO and evaluation.

Every stage is a typed function or a small class on plain objects. The public names below are
imported on first use.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_WHERE = {
    # configuration and runs
    "RunConfig": "burnish.config",
    "load_config": "burnish.config.loading",
    "run_pipeline": "burnish.pipeline.run",
    "RunDirectory": "burnish.runs.directory",
    # records
    "Prompt": "burnish.records",
    "Message": "burnish.records",
    "Response": "burnish.records",
    "Comparison": "burnish.records",
    "Label": "burnish.records",
    "Preference": "burnish.records",
    "StepStats": "burnish.records",
    # data
    "LabelStore": "burnish.data.store",
    "read_preferences": "burnish.data.preferences",
    "write_preferences": "burnish.data.preferences",
    "read_prompts": "burnish.data.prompts",
    # models
    "load_model": "burnish.models.load",
    "Backbone": "burnish.models.backbone",
    "TrainableLayers": "burnish.models.backbone",
    "make_policy": "burnish.models.logprobs",
    "sample_rollout": "burnish.models.generate",
    # reward
    "EncodedPairs": "burnish.models.pairs",
    "new_reward_head": "burnish.models.heads",
    "train_reward_model": "burnish.reward.train",
    "RewardEnsemble": "burnish.reward.ensemble",
    # policy
    "demonstrated": "burnish.policy.sft",
    "fine_tune": "burnish.policy.sft",
    "PPO": "burnish.policy.ppo",
    "AdaptiveKLController": "burnish.policy.kl_control",
    "guard_step": "burnish.policy.guard",
    "DPO": "burnish.policy.dpo",
    # other trainers
    "watch": "burnish.monitor.callback",
    "audit_rows": "burnish.monitor.logs",
    # evaluation
    "choose_champion": "burnish.evaluation.champion",
    "head_to_head": "burnish.evaluation.winrate",
}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import burnish` stays light."""
    if name not in _WHERE:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}; see burnish.__all__")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
