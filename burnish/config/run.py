"""The whole configuration: one section a stage."""

from pydantic import Field

from burnish.config.collect import CollectConfig
from burnish.config.data import DataConfig
from burnish.config.distill import DistillConfig
from burnish.config.dpo import DPOConfig
from burnish.config.evaluate import EvaluateConfig
from burnish.config.guard import GuardConfig
from burnish.config.label import LabelConfig
from burnish.config.model import ModelConfig
from burnish.config.monitor import MonitorConfig
from burnish.config.ppo import PPOConfig
from burnish.config.reward import RewardConfig
from burnish.config.scale import ScaleConfig
from burnish.config.select import SelectConfig
from burnish.config.sft import SftConfig
from burnish.config.strict import Section


class RunConfig(Section):
    """One run, from prompts to report."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0)
    threads: int | None = Field(None, ge=1)  # None: the machine's cores, then frozen in run.yaml
    rounds: int = Field(1, ge=1)  # how often to sample, have labelled, train rewards and align
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    collect: CollectConfig = CollectConfig()
    select: SelectConfig = SelectConfig()
    label: LabelConfig = LabelConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    guard: GuardConfig = GuardConfig()
    dpo: DPOConfig = DPOConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    monitor: MonitorConfig = MonitorConfig()
    scale: ScaleConfig = ScaleConfig()
