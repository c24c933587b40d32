"""What a stage leaves on record: figures, alerts, decisions, rejected rows, checkpoints, under its own name."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from burnish.checkpoints import atomic_write
from burnish.monitor.live import View
from burnish.monitor.trackers import Trackers
from burnish.monitor.webhook import Webhook
from burnish.records import Alert, Decision, StepStats
from burnish.runs import Checkpoint, RunDirectory, read_jsonl


@dataclass(frozen=True)
class Journal:
    """The run directory, the trackers and the view, as one stage sees them."""

    run: RunDirectory
    view: View
    trackers: Trackers
    stage: str = ""
    hook: Webhook | None = None

    @property
    def path(self) -> Path:
        return self.run.path

    def of(self, stage: str) -> Journal:
        """The journal of another stage of the same run."""
        return replace(self, stage=stage)

    def log(self, name: str, stats: StepStats, extra: Mapping[str, Any] | None = None) -> None:
        """One update's figures to metrics/NAME.jsonl and the trackers."""
        self.run.append(f"metrics/{name}.jsonl", {**(extra or {}), **stats.as_row()})
        prefix = "/".join([name, *(str(v) for v in (extra or {}).values())])
        self.trackers.log(prefix, stats.step, stats.values)

    def alert(self, alert: Alert) -> None:
        self._event({"kind": "alert", "stage": self.stage, **alert.as_row()})
        self.view.alert(alert)

    def decide(self, step: int, decision: Decision) -> None:
        self._event({"kind": "decision", "stage": self.stage, "step": step, **decision.as_row()})
        self.view.decision(decision)

    def _event(self, row: Mapping[str, Any]) -> None:
        self.run.append_event(row)
        if self.hook is not None:
            self.hook.send(row)

    def less_at_once(self, what: str, rows: int, why: str) -> None:
        """Memory ran out: `what` goes on with so many rows at once."""
        reason = f"memory ran out ({why}): {what} goes on with {rows} rows at once"
        self.decide(0, Decision("halve_micro_batch", reason, {"what": what, "rows": rows}))

    def reject(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Rows that could not be used, with their reasons, in a file of their own: nothing is dropped in silence.
        Written whole, so that whoever looks twice counts once."""
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        atomic_write(self.path / "rejected" / f"{name}.jsonl", "".join(lines))

    def rejected(self, name: str) -> list[dict[str, Any]]:
        """The rows that `reject` has written."""
        file = self.path / "rejected" / f"{name}.jsonl"
        return list(read_jsonl(file)) if file.exists() else []

    def checkpoint(
        self,
        write: Callable[[Path], None] = lambda folder: None,
        state: Mapping[str, Any] | None = None,
        keep: frozenset[int] = frozenset(),
    ) -> int:
        """Save the stage's next checkpoint: the files `write` makes, and `state`. Returns its number, from 1; numbers
        count checkpoints, not steps, which a roll-back takes back. Older ones go, but for those in `keep`."""
        found = self.latest_checkpoint()
        number = found.step + 1 if found else 1
        self.run.checkpoint(self.stage, number, write, state or {}, keep | {number})
        return number

    def latest_checkpoint(self) -> Checkpoint | None:
        return self.run.latest_checkpoint(self.stage)
