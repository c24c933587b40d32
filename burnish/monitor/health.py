"""Health of a PPO run, from its figures alone. A monitor that lacks a figure abstains."""

from __future__ import annotations

from statistics import median
from typing import Any

from burnish.config.monitor import MonitorConfig
from burnish.records import Alert, Severity, StepStats

WINDOW = 20  # updates whose median a loss is compared with
CALM = 5  # updates before a median means something


class HealthMonitor:
    """KL spikes, entropy collapse, loss spikes, too large steps, non-finite updates."""

    def __init__(self, config: MonitorConfig, kl_target: float) -> None:
        self.config = config
        self.kl_target = kl_target
        self.entropy_start: float | None = None
        self.losses: list[float] = []
        self.skips = 0

    def observe(self, stats: StepStats) -> list[Alert]:
        """Alerts of one update, most severe first."""
        alerts = [*self._kl(stats), *self._entropy(stats), *self._loss(stats), *self._steps(stats)]
        return sorted(alerts, key=lambda a: a.severity != "critical")

    def _alert(
        self, stats: StepStats, name: str, severity: Severity, value: float, threshold: float, text: str
    ) -> Alert:
        return Alert(name, severity, text, stats.step, value, threshold, {"attempt": stats.attempt})

    def _kl(self, stats: StepStats) -> list[Alert]:
        # The non-negative estimate: k1 of a small batch can look calm by chance.
        if "kl" not in stats.values:
            return []
        value = max(stats["kl"], stats.values.get("kl_smoothed", 0.0))
        limit = self.config.kl_spike * self.kl_target
        if value <= limit:
            return []
        severity: Severity = "critical" if value > 2 * limit else "warning"
        text = f"KL {value:.1f} nats per response is over {limit:.1f} ({self.kl_target:g} is the target)"
        return [self._alert(stats, "kl_spike", severity, value, limit, text)]

    def _entropy(self, stats: StepStats) -> list[Alert]:
        if "entropy" not in stats.values:
            return []
        value = stats["entropy"]
        if self.entropy_start is None:
            self.entropy_start = value
        limit = self.config.entropy_floor * self.entropy_start
        if value >= limit:
            return []
        text = (
            f"entropy {value:.2f} nats a token has fallen under {limit:.2f}, "
            f"{self.config.entropy_floor:.0%} of its start"
        )
        return [self._alert(stats, "entropy_collapse", "critical", value, limit, text)]

    def _loss(self, stats: StepStats) -> list[Alert]:
        if "value_loss" not in stats.values:
            return []
        value = stats["value_loss"]
        calm = median(self.losses) if len(self.losses) >= CALM else None
        self.losses = [*self.losses, value][-WINDOW:]
        if calm is None or value <= self.config.loss_spike * max(calm, 1e-8):
            return []
        limit = self.config.loss_spike * calm
        text = f"value loss {value:.3g} jumped over {limit:.3g}, {self.config.loss_spike:g} times its median"
        return [self._alert(stats, "loss_spike", "warning", value, limit, text)]

    def _steps(self, stats: StepStats) -> list[Alert]:
        alerts = []
        for name, limit, what in (
            ("clip_fraction", self.config.clip_fraction, "share of clipped ratios"),
            ("approx_kl", self.config.approx_kl, "KL to the policy before the update"),
        ):
            value = stats.values.get(name)
            if value is not None and value > limit:
                text = f"{what} {value:.2f} is over {limit:g}: steps are too large"
                alerts.append(self._alert(stats, name, "warning", value, limit, text))
        self.skips = self.skips + 1 if stats.values.get("skipped", 0.0) else 0
        if self.skips >= self.config.skipped_limit:
            text = f"{self.skips} updates in a row held steps that were not finite"
            alerts.append(
                self._alert(stats, "non_finite", "critical", self.skips, self.config.skipped_limit, text)
            )
        return alerts

    def restart(self) -> None:
        """After a roll-back: forget what the broken attempt looked like, keep the entropy at the start."""
        self.losses, self.skips = [], 0

    def state_dict(self) -> dict[str, Any]:
        return {"entropy_start": self.entropy_start, "losses": self.losses, "skips": self.skips}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.entropy_start, self.losses, self.skips = state["entropy_start"], state["losses"], state["skips"]
