"""Reward hacking while it happens: the proxy rises, the watcher (never optimised against) falls."""

from __future__ import annotations

from typing import Any

from burnish.records import Alert, StepStats

SURE = 3.0  # standard errors by which the watcher must have fallen


class WatcherMonitor:
    """Compares the watcher's score of this policy with its best so far. Disarmed, it only records."""

    def __init__(self, armed: bool) -> None:
        self.armed = armed
        self.best: tuple[float, float, float] | None = None  # watcher, its standard error, proxy

    def observe(self, stats: StepStats) -> list[Alert]:
        """An alert when the watcher is surely below its best while the proxy is above what it was then."""
        if not self.armed or "watcher" not in stats.values:
            return []
        value, se, proxy = stats["watcher"], stats["watcher_se"], stats["score"]
        if self.best is None or value >= self.best[0]:
            self.best = (value, se, proxy)
            return []
        best, best_se, best_proxy = self.best
        margin = SURE * (se**2 + best_se**2) ** 0.5
        if best - value <= margin or proxy <= best_proxy:
            return []
        text = (
            f"the watcher fell from {best:.2f} to {value:.2f} while the proxy rose from {best_proxy:.2f} "
            f"to {proxy:.2f}"
        )
        evidence = {
            "attempt": stats.attempt,
            "watcher_best": best,
            "proxy_at_best": best_proxy,
            "proxy": proxy,
        }
        return [Alert("watcher_gap", "warning", text, stats.step, value, best - margin, evidence)]

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best = None if state["best"] is None else tuple(state["best"])
