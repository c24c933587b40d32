"""Health checks of a PPO run, from its figures alone; a check without its figure abstains."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

from burnish.config.monitor import MonitorConfig
from burnish.records import Alert, Severity, StepStats

KEPT = ("entropy_start", "losses", "skips", "reward_start", "flat")  # attributes saved in checkpoints
WINDOW = 20  # updates whose median a loss is compared with
CALM = 5  # least number of updates for a median
FLAT = 1e-6  # in standard deviations: the spread that rounding gives a constant reward


class HealthMonitor:
    """Monitor for KL and loss spikes, entropy collapse, large or non-finite steps and failed rewards."""

    def __init__(self, config: MonitorConfig, kl_target: float) -> None:
        self.config = config
        self.kl_target = kl_target
        self.entropy_start: float | None = None
        self.losses: list[float] = []
        self.skips = 0
        self.reward_start: tuple[float, float] | None = None  # mean and sd of the first scores
        self.flat = 0

    def observe(self, stats: StepStats) -> list[Alert]:
        """Return the alerts of one update, most severe first."""
        # Reward alerts come first, because a failed reward also causes alerts of the policy.
        looks = (self._reward, self._kl, self._entropy, self._loss, self._steps)
        alerts = [alert for look in looks for alert in look(stats)]
        return sorted(alerts, key=lambda a: a.severity != "critical")

    def _alert(
        self, stats: StepStats, name: str, severity: Severity, value: float, threshold: float, text: str
    ) -> Alert:
        return Alert(name, severity, text, stats.step, value, threshold, {"attempt": stats.attempt})

    def _kl(self, stats: StepStats) -> list[Alert]:
        # The k1 estimate of one batch can be small by chance, so the smoothed KL counts too.
        # k3 is not used: a few outlying responses make it many times as large.
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
        self.skips = self.skips + 1 if stats.values.get("skipped") else 0
        if self.skips >= self.config.skipped_limit:
            text = f"{self.skips} updates in a row had steps that were not finite"
            alerts.append(
                self._alert(stats, "non_finite", "critical", self.skips, self.config.skipped_limit, text)
            )
        return alerts

    def _reward(self, stats: StepStats) -> list[Alert]:
        if "score" not in stats.values or "score_sd" not in stats.values:
            return []
        score, sd = stats["score"], stats["score_sd"]
        if self.reward_start is None:
            self.reward_start = (score, sd)
        start, usual = self.reward_start
        # A collapsed policy also has one score, but the entropy alert reports it.
        alike = stats.values.get("entropy", math.inf) < self.config.entropy_floor * (
            self.entropy_start or 0.0
        )
        self.flat = self.flat + 1 if sd <= FLAT * max(usual, 1.0) and not alike else 0
        alerts = []
        if self.flat >= self.config.flat_limit:
            text = f"{self.flat} updates in a row had one score for all answers: there is nothing to learn from it"
            alerts.append(
                self._alert(stats, "flat_reward", "critical", self.flat, self.config.flat_limit, text)
            )
        limit = self.config.reward_jump * usual
        if usual > FLAT and abs(score - start) > limit:
            text = f"the score has gone from {start:.3g} to {score:.3g}, over {limit:.3g} away: not plausible"
            alerts.append(self._alert(stats, "exploding_reward", "critical", abs(score - start), limit, text))
        return alerts

    def restart(self, before: HealthMonitor) -> None:
        """Forget the broken attempt after a roll-back, and keep the start of the run.

        The restored checkpoint may be older than the start, so it is taken from `before`.
        """
        self.losses, self.skips, self.flat = [], 0, 0
        if self.reward_start is None:
            self.entropy_start, self.reward_start = before.entropy_start, before.reward_start

    def state_dict(self) -> dict[str, Any]:
        """Return the attributes in `KEPT`, ready for JSON."""
        return {name: getattr(self, name) for name in KEPT}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        for name in KEPT:
            setattr(self, name, state.get(name, getattr(self, name)))  # older checkpoints have fewer
        if self.reward_start is not None:
            self.reward_start = (self.reward_start[0], self.reward_start[1])
