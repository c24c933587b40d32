"""The whole configuration: one section a stage."""

from pydantic import Field

from burnish.config.data import CollectConfig, DataConfig, LabelConfig, SftConfig
from burnish.config.dpo import DPOConfig
from burnish.config.evaluate import EvaluateConfig, MonitorConfig
from burnish.config.model import ModelConfig
from burnish.config.ppo import GuardConfig, PPOConfig
from burnish.config.reward import RewardConfig
from burnish.config.strict import Section


class RunConfig(Section):
    """One run, from prompts to report."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)  # None: the machine's cores, then frozen in run.yaml
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    collect: CollectConfig = CollectConfig()
    label: LabelConfig = LabelConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    guard: GuardConfig = GuardConfig()
    dpo: DPOConfig = DPOConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    monitor: MonitorConfig = MonitorConfig()
