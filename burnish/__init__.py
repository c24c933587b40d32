"""RLHF with reward ensembles, guarded PPO, DPO and evaluation.

The functions `load_model`, `read_preferences`, `train_rewards`, `train_ppo`, `train_dpo`, `evaluate`, `run` and
`watch` are the Python API; the other names are its types, and classes for loops of your own. Names are
imported on first use, so that `import burnish` loads no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from burnish.api import (
        Evaluation as Evaluation,
        FinishedRun as FinishedRun,
        LanguageModel as LanguageModel,
        RewardModels as RewardModels,
        evaluate as evaluate,
        load_model as load_model,
        run as run,
        train_dpo as train_dpo,
        train_ppo as train_ppo,
        train_rewards as train_rewards,
    )
    from burnish.config import RunConfig as RunConfig
    from burnish.config.dpo import DPOConfig as DPOConfig
    from burnish.config.evaluate import EvaluateConfig as EvaluateConfig
    from burnish.config.guard import GuardConfig as GuardConfig
    from burnish.config.loading import load_config as load_config
    from burnish.config.model import ModelConfig as ModelConfig
    from burnish.config.ppo import KLConfig as KLConfig, PPOConfig as PPOConfig
    from burnish.config.reward import RewardConfig as RewardConfig
    from burnish.data.preferences import (
        read_preferences as read_preferences,
        write_preferences as write_preferences,
    )
    from burnish.data.prompts import read_prompts as read_prompts
    from burnish.data.store import LabelStore as LabelStore
    from burnish.evaluation.champion import choose_champion as choose_champion
    from burnish.evaluation.winrate import head_to_head as head_to_head
    from burnish.models.backbone import Backbone as Backbone, TrainableLayers as TrainableLayers
    from burnish.models.generate import sample_rollout as sample_rollout
    from burnish.models.heads import new_reward_head as new_reward_head
    from burnish.models.logprobs import make_policy as make_policy
    from burnish.models.pairs import EncodedPairs as EncodedPairs
    from burnish.monitor.callback import watch as watch
    from burnish.monitor.logs import audit_rows as audit_rows
    from burnish.pipeline.run import run_pipeline as run_pipeline
    from burnish.policy.dpo import DPO as DPO
    from burnish.policy.guard import guard_step as guard_step
    from burnish.policy.kl_control import AdaptiveKLController as AdaptiveKLController
    from burnish.policy.ppo import PPO as PPO
    from burnish.policy.sft import demonstrated as demonstrated, fine_tune as fine_tune
    from burnish.records import (
        Comparison as Comparison,
        Interval as Interval,
        Label as Label,
        Message as Message,
        Preference as Preference,
        Prompt as Prompt,
        Response as Response,
        StepStats as StepStats,
    )
    from burnish.reward.ensemble import RewardEnsemble as RewardEnsemble
    from burnish.reward.train import train_reward_model as train_reward_model
    from burnish.runs.directory import RunDirectory as RunDirectory

__version__ = "0.1.0"

_MODULES = {
    "burnish.api": (
        "Evaluation",
        "FinishedRun",
        "LanguageModel",
        "RewardModels",
        "evaluate",
        "load_model",
        "run",
        "train_dpo",
        "train_ppo",
        "train_rewards",
    ),
    "burnish.config": ("RunConfig",),
    "burnish.config.dpo": ("DPOConfig",),
    "burnish.config.evaluate": ("EvaluateConfig",),
    "burnish.config.guard": ("GuardConfig",),
    "burnish.config.loading": ("load_config",),
    "burnish.config.model": ("ModelConfig",),
    "burnish.config.ppo": (
        "KLConfig",
        "PPOConfig",
    ),
    "burnish.config.reward": ("RewardConfig",),
    "burnish.data.preferences": (
        "read_preferences",
        "write_preferences",
    ),
    "burnish.data.prompts": ("read_prompts",),
    "burnish.data.store": ("LabelStore",),
    "burnish.evaluation.champion": ("choose_champion",),
    "burnish.evaluation.winrate": ("head_to_head",),
    "burnish.models.backbone": (
        "Backbone",
        "TrainableLayers",
    ),
    "burnish.models.generate": ("sample_rollout",),
    "burnish.models.heads": ("new_reward_head",),
    "burnish.models.logprobs": ("make_policy",),
    "burnish.models.pairs": ("EncodedPairs",),
    "burnish.monitor.callback": ("watch",),
    "burnish.monitor.logs": ("audit_rows",),
    "burnish.pipeline.run": ("run_pipeline",),
    "burnish.policy.dpo": ("DPO",),
    "burnish.policy.guard": ("guard_step",),
    "burnish.policy.kl_control": ("AdaptiveKLController",),
    "burnish.policy.ppo": ("PPO",),
    "burnish.policy.sft": (
        "demonstrated",
        "fine_tune",
    ),
    "burnish.records": (
        "Comparison",
        "Interval",
        "Label",
        "Message",
        "Preference",
        "Prompt",
        "Response",
        "StepStats",
    ),
    "burnish.reward.ensemble": ("RewardEnsemble",),
    "burnish.reward.train": ("train_reward_model",),
    "burnish.runs.directory": ("RunDirectory",),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [*_WHERE, "__version__"]


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _WHERE:
        raise AttributeError(f"module 'burnish' has no attribute {name!r}; see burnish.__all__")
    value = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
