"""Replay of the guard over a run's recorded figures, with the same or other settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burnish.config.loading import with_sets
from burnish.errors import ConfigError, RunError
from burnish.pipeline.oversight import Oversight
from burnish.records import Alert, StepStats
from burnish.runs.directory import RunDirectory

SETTABLE = ("guard.", "monitor.")
ACTIONS = ("raise_kl", "tighten", "lower_rate", "roll_back", "give_up")


@dataclass(frozen=True)
class Acted:
    """One action of the guard."""

    action: str
    step: int
    attempt: int
    alert: str
    reason: str

    @property
    def same_as(self) -> tuple[str, int, int, str]:
        """Identity of an action; the reason may differ with the settings."""
        return self.action, self.step, self.attempt, self.alert


@dataclass(frozen=True)
class Update:
    """Figures of one update, or the alert that it diverged; `last` of a rolled-back attempt."""

    stats: StepStats
    diverged: Alert | None
    last: bool


def replay(path: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Replay the guard over a run's figures, and compare with its recorded actions.

    Returns the recorded actions (`recorded`), those decided now (`replayed`; with other settings of
    guard or monitor if given), and where the two first differ. After that point the figures are still
    those of the recorded run. Raises RunError if a run kept too little, ConfigError for other settings.
    """
    other = [s for s in sets if not s.startswith(SETTABLE)]
    if other:
        raise ConfigError(
            f"--set {other[0]} is no setting of the guard or of the monitors ({', '.join(SETTABLE)}...): any other "
            "setting needs a new run"
        )
    run = RunDirectory.open(path)
    config = with_sets(run.config, sets)
    events = run.read_rows("events.jsonl")
    evidence = next((e["evidence"] for e in events if e.get("action") == "oversight"), None)
    rows = run.read_rows("metrics/ppo.jsonl")
    if evidence is None or not rows:
        raise RunError(
            f"{path} has no PPO to replay: none was begun, or its version did not record the guard's settings"
        )
    # Older runs did not record how often the watcher looks.
    oversight = Oversight.of(config.guard, config.monitor, **{"looks": config.ppo.looks, **evidence})
    every, updates = config.ppo.checkpoint_every, config.ppo.updates
    replayed = list(decided(oversight, list(items(rows, events)), every, updates))
    recorded = [
        Acted(e["action"], e["step"], e["evidence"]["attempt"], e["evidence"]["alert"], e["reason"])
        for e in events
        if e["kind"] == "decision" and e["action"] in ACTIONS
    ]
    pairs = [*zip(recorded, replayed, strict=False)]
    same = [a.same_as == b.same_as for a, b in pairs]
    apart = same.index(False) if False in same else len(pairs)
    first = next((a for acted in (recorded, replayed) for a in acted[apart : apart + 1]), None)
    return {
        "recorded": [asdict(a) for a in recorded],
        "replayed": [asdict(a) for a in replayed],
        "same": first is None,
        "apart_at": None if first is None else {"step": first.step, "attempt": first.attempt},
        "updates": len(rows),
    }


def items(rows: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> Iterator[Update]:
    """Yield the updates of a run in order; a diverged update ends its attempt."""
    broken = {e["evidence"]["attempt"]: e for e in events if e["kind"] == "alert" and e["name"] == "diverged"}
    attempts = sorted({row["attempt"] for row in rows} | broken.keys())
    for attempt in attempts:
        own = [row for row in rows if row["attempt"] == attempt]
        alert = broken.get(attempt)
        for i, row in enumerate(own):
            values = {k: v for k, v in row.items() if k not in ("step", "attempt")}
            last = alert is None and i == len(own) - 1 and attempt != attempts[-1]
            yield Update(StepStats(row["step"], attempt, values), None, last)
        if alert is not None:
            found = Alert(
                "diverged", "critical", alert["message"], alert["step"], 1.0, 0.0, alert["evidence"]
            )
            yield Update(StepStats(alert["step"], attempt, {}), found, attempt != attempts[-1])


def decided(
    oversight: Oversight, updates: Sequence[Update], checkpoint_every: int, total: int
) -> Iterator[Acted]:
    """Yield the guard's actions over these updates, until it gives up.

    The monitors are rolled back where the run was rolled back, whatever the guard decides here.
    """
    number, saved = 1, {}

    def save(tick: int, *, healthy: bool, proven: bool = False) -> None:
        oversight.checkpointed(number, tick, healthy=healthy, proven=proven)
        saved[number] = deepcopy(oversight.state_dict())

    save(0, healthy=True, proven=True)
    for tick, update in enumerate(updates, 1):
        alerts = [update.diverged] if update.diverged is not None else oversight.observe(update.stats)
        verdict = oversight.judge(update.stats, alerts, tick)
        if verdict.decision is not None:
            evidence = verdict.decision.evidence
            step, attempt = update.stats.step, update.stats.attempt
            yield Acted(verdict.action, step, attempt, str(evidence["alert"]), verdict.decision.reason)
            if verdict.action == "give_up":
                return
        if update.last:
            oversight.rolled_back(saved[oversight.healthy])
            number += 1
            save(tick, healthy=True, proven=True)
        elif update.stats.step % checkpoint_every == 0 or update.stats.step == total:
            number += 1
            save(tick, healthy=verdict.healthy)
