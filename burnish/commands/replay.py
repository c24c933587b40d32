"""The guard over a run's kept figures: the same decisions again, or what other settings would have decided."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from burnish.config.loading import load_config
from burnish.errors import ConfigError, RunError
from burnish.pipeline.oversight import Oversight
from burnish.records import Alert, StepStats
from burnish.runs.directory import RunDirectory

SETTABLE = ("guard.", "monitor.")
ACTIONS = ("raise_kl", "tighten", "lower_rate", "roll_back", "give_up")


@dataclass(frozen=True)
class Acted:
    """One action of the guard's."""

    action: str
    step: int
    attempt: int
    alert: str
    reason: str

    @property
    def same_as(self) -> tuple[str, int, int, str]:
        """What makes two of them the same; words may differ with the settings."""
        return self.action, self.step, self.attempt, self.alert


@dataclass(frozen=True)
class Update:
    """The figures of one update, or that it could not even be sampled; `last` of its attempt."""

    stats: StepStats
    diverged: Alert | None
    last: bool


def replay(path: Path, sets: Sequence[str] = ()) -> dict[str, Any]:
    """What the guard decided (`recorded`), what it decides over the same figures (`replayed`; with other settings of
    guard or monitor), and where the two first differ. From there on the figures are those of a run that went on as it
    was recorded. Raises RunError where a run kept too little, ConfigError for other settings."""
    other = [s for s in sets if not s.startswith(SETTABLE)]
    if other:
        raise ConfigError(
            f"--set {other[0]} is no setting of the guard or of the monitors ({', '.join(SETTABLE)}...): what a run "
            "does under other ones takes another run"
        )
    run = RunDirectory.open(path)
    config = load_config(path / "run.yaml", sets) if sets else run.config
    events = run.read_rows("events.jsonl")
    evidence = next((e["evidence"] for e in events if e.get("action") == "oversight"), None)
    rows = run.read_rows("metrics/ppo.jsonl")
    if evidence is None or not rows:
        raise RunError(
            f"{path} has no PPO to look at again: none was begun, or by a version that did not note who looked at it"
        )
    # Older runs did not note how often the watcher was to look.
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
    """The updates of a run in their order, those that diverged at the end of their attempts."""
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
    """What the guard does over these updates, until it gives up. Where the run was rolled back so are the monitors,
    whatever the guard says here."""
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
