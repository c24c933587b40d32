"""Monitors and guard over the figures of a PPO run, live or replayed; needs no model."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from burnish.config.guard import GuardConfig
from burnish.config.monitor import MonitorConfig
from burnish.detectors import DETECTORS
from burnish.monitor.hacking import HackMonitor
from burnish.monitor.health import HealthMonitor
from burnish.monitor.watcher import WatcherMonitor
from burnish.policy.guard import GuardState, GuardStep, guard_step
from burnish.records import Alert, Decision, StepStats

NUMBERS = ("healthy", "healthy_tick", "candidate", "candidate_tick")


@dataclass
class Oversight:
    """Monitors and guard of a PPO run, and the checkpoints to which it can roll back.

    `healthy`: number of the last checkpoint proven healthy, saved at `healthy_tick`. `candidate`: that
    of the next to be proven, or 0. `tightest`: how often members can be combined more conservatively.
    """

    config: GuardConfig
    health: HealthMonitor
    watcher: WatcherMonitor
    hacks: HackMonitor
    tightest: int = 0
    guard: GuardState = field(default_factory=GuardState)
    healthy: int = 0
    healthy_tick: int = 0
    candidate: int = 0
    candidate_tick: int = 0

    @classmethod
    def of(
        cls,
        guard: GuardConfig,
        monitor: MonitorConfig,
        *,
        kl_target: float,
        responses: int,
        armed: bool,
        looks: int,
        tightest: int = 0,
    ) -> Oversight:
        """Build the oversight of updates with `responses` responses each.

        `armed`: whether the watcher may raise alerts. `looks`: its number of looks in the whole run.
        """
        return cls(
            guard,
            HealthMonitor(monitor, kl_target),
            WatcherMonitor(armed, looks),
            HackMonitor(responses),
            tightest if guard.tighten else 0,
        )

    def introduced(self) -> Decision:
        """Return a decision that names the monitors, with the settings that a replay needs."""
        watcher = "a watcher" if self.watcher.armed else "no watcher"
        guard = "a guard" if self.config.enabled else "no guard"
        text = f"every update is checked by {len(DETECTORS)} detectors of hacking, {watcher} and {guard}"
        evidence = {
            "kl_target": self.health.kl_target,
            "responses": self.hacks.responses,
            "armed": self.watcher.armed,
            "looks": self.watcher.looks,
            "tightest": self.tightest,
        }
        return Decision("oversight", text, evidence)

    def observe(self, stats: StepStats) -> list[Alert]:
        """Return the alerts of all monitors for one update."""
        return [a for monitor in (self.health, self.watcher, self.hacks) for a in monitor.observe(stats)]

    def judge(self, stats: StepStats, alerts: Sequence[Alert], tick: int) -> GuardStep:
        """Return the guard's verdict on an update, with the number of updates that it gives up.

        The verdict is `healthy` only if no streak of unhealthy updates is open.
        """
        verdict = guard_step(self.guard, stats, alerts, tick, self.config, tightest=self.tightest)
        self.guard = verdict.state
        if verdict.action != "none":
            self.watcher.acted()
        if verdict.decision is not None:
            gone = {"roll_back": tick - self.healthy_tick, "give_up": tick}.get(verdict.action, 0)
            reason = (
                f"{verdict.decision.reason} ({gone} updates given up)" if gone else verdict.decision.reason
            )
            evidence = {**verdict.decision.evidence, "updates_lost": gone}
            verdict = replace(verdict, decision=replace(verdict.decision, reason=reason, evidence=evidence))
        healthy = verdict.healthy and not verdict.state.streak
        self._prove(healthy, tick)
        return replace(verdict, healthy=healthy)

    def _prove(self, healthy: bool, tick: int) -> None:
        """Promote the candidate to `healthy` after enough healthy updates; drop it on an unhealthy one.

        A high reward alone is thus never enough: watcher and detectors have checked the updates since.
        """
        if not healthy:
            self.candidate = 0
        elif self.candidate and tick - self.candidate_tick >= self.config.proof_updates:
            self.healthy, self.healthy_tick, self.candidate = self.candidate, self.candidate_tick, 0

    def checkpointed(self, number: int, tick: int, *, healthy: bool, proven: bool = False) -> frozenset[int]:
        """Register a checkpoint and return the numbers of those that must be kept."""
        if proven:
            self.healthy, self.healthy_tick, self.candidate = number, tick, 0
        elif healthy and not self.candidate:
            self.candidate, self.candidate_tick = number, tick
        return frozenset({self.healthy, self.candidate})

    def rolled_back(self, state: dict[str, Any]) -> None:
        """Restore the saved state, but keep the guard's decisions and the figures of the run's start."""
        guard, health, hacks = self.guard, deepcopy(self.health), deepcopy(self.hacks)
        self.load_state_dict(state)
        self.guard = guard
        self.health.restart(health)
        self.hacks.restart(hacks)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint stores."""
        return {
            "health": self.health.state_dict(),
            "watcher": self.watcher.state_dict(),
            "hacks": self.hacks.state_dict(),
            "guard": self.guard.state_dict(),
            **{name: getattr(self, name) for name in NUMBERS},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.health.load_state_dict(state["health"])
        self.watcher.load_state_dict(state["watcher"])
        self.hacks.load_state_dict(
            state.get("hacks", {"start": [], "recent": []})
        )  # not in older checkpoints
        self.guard = GuardState(**state["guard"])
        for name in NUMBERS:
            setattr(self, name, state.get(name, 0))
