"""Monitor that runs every detector of reward hacking over the updates of a run."""

from __future__ import annotations

import math
from typing import Any

from burnish.detectors import (
    BASELINE,
    DETECTORS,
    FEWEST,
    FIGURES,
    HISTORY,
    RESPONSES,
    SURE_RISE,
    WHAT_HACKS_NEED,
    WINDOW,
    Drift,
    drift,
)
from burnish.records import Alert, StepStats, current_names


class HackMonitor:
    """Monitor that compares medians of the last updates with the first ones, for every detector.

    It needs enough responses first. A detector of hacks fires only while the reward is surely above
    its start: a drift without that is not a hack.
    """

    def __init__(self, responses: int) -> None:
        self.responses = responses  # per update; also the number of prompts where the figures lack it
        self.start: list[dict[str, float]] = []
        self.recent: list[dict[str, float]] = []

    def observe(self, stats: StepStats) -> list[Alert]:
        """Return the alerts of one update; a missing metric raises no alert."""
        row = {name: stats[name] for name in FIGURES if name in stats.values}
        if not row:
            return []
        row["prompts"] = min(stats.values.get("prompts", self.responses), self.responses)
        needed = math.ceil(RESPONSES / self.responses)
        if len(self.start) < max(BASELINE, needed):
            self.start.append(row)
            return []
        window = max(WINDOW, needed)
        self.recent = [*self.recent, row][-max(window, HISTORY) :]
        if len(self.recent) < max(needed, FEWEST):
            return []

        def moved(name: str, share: bool = False) -> Drift | None:
            return drift(self.start, self.recent, window, name, share=share)

        reward = moved(WHAT_HACKS_NEED)
        rises = reward is not None and reward.change > SURE_RISE * reward.se
        alerts = []
        for name, detector in DETECTORS.items():
            found = None
            d = moved(detector.figure, detector.share)
            if d is not None and d.sure and (rises or not detector.hack):
                found = detector.look(d)
            if d is None or found is None:
                continue
            evidence = {"attempt": stats.attempt, "updates": min(window, len(self.recent)), "se": d.se}
            text = found.text
            if detector.hack:
                assert reward is not None
                evidence["reward_rise"] = reward.change
                text += f" while the reward rose by {reward.change:.2f}"
            alerts.append(Alert(name, "warning", text, stats.step, found.value, found.limit, evidence))
        return alerts

    def restart(self, before: HackMonitor) -> None:
        """Forget the abandoned updates after a roll-back, and keep the start of the run.

        The restored checkpoint may be older than the start, so it is taken from `before`.
        """
        self.recent = []
        if len(self.start) < len(before.start):
            self.start = before.start

    def state_dict(self) -> dict[str, Any]:
        """Return the kept rows, ready for JSON."""
        return {"start": self.start, "recent": self.recent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load what `state_dict` returned."""
        # Rows of older checkpoints lack the number of prompts, and have older names.
        self.start, self.recent = (
            [{"prompts": float(self.responses), **current_names(row)} for row in state[part]]
            for part in ("start", "recent")
        )
