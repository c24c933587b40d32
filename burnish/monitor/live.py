"""Live view of a run: a Rich panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from time import monotonic
from types import TracebackType
from typing import TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from burnish.records import Alert, Decision

CURVES = ("kl", "score", "watcher", "length", "entropy")
BARS = "▁▂▃▄▅▆▇█"
THIN = 10


class View:
    """View that prints plain lines: stages, every tenth update, every alert and decision."""

    def __init__(self, title: str, kl_target: float, stream: TextIO | None = None) -> None:
        self.title = title
        self.kl_target = kl_target
        self.stream = stream or sys.stderr
        self.stage_name = ""
        self.done, self.total = 0, 0
        self.began = monotonic()

    def __enter__(self) -> View:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def stage(self, name: str, note: str = "") -> None:
        """Start a stage and print its name."""
        self.stage_name = name
        self.done, self.total, self.began = 0, 0, monotonic()
        self.note(f"{name} {note}".rstrip())

    def progress(self, done: int, total: int) -> None:
        """Record that `done` of `total` steps of the stage are finished."""
        self.done, self.total = done, total

    def update(self, stats: Mapping[str, float]) -> None:
        """Print the figures of the first update, every tenth and the last."""
        if self.done in (1, self.total) or self.done % THIN == 0:
            shown = [f"{n} {stats[n]:.3g}" for n in CURVES if n in stats]
            self.note(f"  {self.done}/{self.total}  " + "  ".join(shown))

    def alert(self, alert: Alert) -> None:
        """Print an alert."""
        self.note(f"  {alert.severity}: {alert.message}")

    def decision(self, decision: Decision) -> None:
        """Print a decision."""
        self.note(f"  {decision.action}: {decision.reason}")

    def note(self, text: str) -> None:
        """Print one line."""
        print(text, file=self.stream, flush=True)


class LiveView(View):
    """View as a panel with progress, remaining time, the main curves and the last alert."""

    def __init__(self, title: str, kl_target: float, console: Console) -> None:
        super().__init__(title, kl_target)
        self.history: dict[str, deque[float]] = {}
        self.messages: deque[str] = deque(maxlen=4)
        self.last_alert = ""
        self.live = Live(console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> View:
        self.live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def update(self, stats: Mapping[str, float]) -> None:
        """Add the figures of one update to the curves."""
        for name in CURVES:
            if name in stats:
                self.history.setdefault(name, deque(maxlen=40)).append(stats[name])
        self._draw()

    def progress(self, done: int, total: int) -> None:
        """Redraw the panel with the new progress."""
        super().progress(done, total)
        self._draw()

    def alert(self, alert: Alert) -> None:
        """Show an alert until the next one."""
        self.last_alert = f"step {alert.step}: {alert.message}"
        self._draw()

    def note(self, text: str) -> None:
        """Add a line to the recent messages and redraw the view."""
        self.messages.append(text.strip())
        self._draw()

    def _draw(self) -> None:
        table = Table.grid(padding=(0, 2))
        for name, values in self.history.items():
            target = f"target {self.kl_target:g}" if name == "kl" else ""
            table.add_row(name, Text(sparkline(list(values))), f"{values[-1]:.3g}", Text(target, style="dim"))
        parts: list[Text | Table | ProgressBar] = [Text("\n".join(self.messages), style="dim")]
        if self.total:
            spent = monotonic() - self.began
            left = spent / self.done * (self.total - self.done) if self.done else 0.0
            parts.append(Text(f"{self.stage_name} {self.done}/{self.total}, about {left:.0f} s left"))
            parts.append(ProgressBar(self.total, self.done, width=40))
        parts.append(table)
        if self.last_alert:
            parts.append(Text(self.last_alert, style="yellow"))
        self.live.update(Panel(Group(*parts), title=self.title, title_align="left"))


def sparkline(values: list[float]) -> str:
    """Return the values as eight-level bars between their minimum and maximum."""
    low, high = min(values), max(values)
    span = high - low
    return "".join(BARS[round((v - low) / span * 7) if span else 0] for v in values)


class Unseen(View):
    """View that prints nothing, for processes that do not report."""

    def note(self, text: str) -> None:
        """Discard the text."""
        return None


def open_view(title: str, kl_target: float) -> View:
    """Return a live panel if standard error is a terminal, or a view of plain lines."""
    console = Console(stderr=True)
    return LiveView(title, kl_target, console) if console.is_terminal else View(title, kl_target)
