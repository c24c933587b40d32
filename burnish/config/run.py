"""The whole configuration: one section for each stage."""

from pydantic import Field

from burnish.config.align import AlignConfig, of_method
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

LOOKS = 6  # at held-out prompts, by default


class RunConfig(Section):
    """One run, from prompts to report."""

    name: str = Field(
        "run",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run; its directory is runs/NAME unless --dir says otherwise.",
    )
    seed: int = Field(
        0, ge=0, description="Seed of everything random. Runs with other seeds show the variance."
    )
    threads: int | None = Field(
        None,
        ge=1,
        description="CPU threads; null takes the machine's cores and freezes the number in run.yaml, because "
        "results depend on it by rounding.",
    )
    rounds: int = Field(
        1,
        ge=1,
        description="Times to sample, label, train rewards and align; from the second on, `select` applies.",
    )
    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    sft: SftConfig = SftConfig()
    collect: CollectConfig = CollectConfig()
    select: SelectConfig = SelectConfig()
    label: LabelConfig = LabelConfig()
    reward: RewardConfig = RewardConfig()
    align: AlignConfig = AlignConfig()
    ppo: PPOConfig = PPOConfig()
    guard: GuardConfig = GuardConfig()
    dpo: DPOConfig = DPOConfig()
    distill: DistillConfig = DistillConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    monitor: MonitorConfig = MonitorConfig()
    scale: ScaleConfig = ScaleConfig()

    @property
    def training(self) -> PPOConfig:
        """Section `ppo` as the method of `align` uses it; for `auto`, as ppo does."""
        return of_method(self.ppo, self.align.method)

    @property
    def looks_every(self) -> int:
        """Number of PPO updates between two looks at held-out prompts; 0: no looks."""
        if self.evaluate.every is not None or not self.ppo.updates:
            return self.evaluate.every or 0
        unasked = not self.evaluate.paid and self.model.layers != "all"
        return max(1, self.ppo.updates // LOOKS) if unasked else 0

    @property
    def examines_average(self) -> bool:
        """False if PPO's averaged weights would be an unasked policy for a paid examiner."""
        return not self.evaluate.paid or self.ppo.average_updates is not None
