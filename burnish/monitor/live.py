"""The live view of a run: a Rich panel on a terminal, plain lines anywhere else."""

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
    """Plain lines: stages, every tenth update, every alert and decision. `LiveView` draws instead."""

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
        """A stage begins."""
        self.stage_name = name
        self.done, self.total, self.began = 0, 0, monotonic()
        self.note(f"{name} {note}".rstrip())

    def progress(self, done: int, total: int) -> None:
        self.done, self.total = done, total

    def update(self, stats: Mapping[str, float]) -> None:
        """Figures of one update: shown for the first, every tenth and the last."""
        if self.done in (1, self.total) or self.done % THIN == 0:
            shown = [f"{n} {stats[n]:.3g}" for n in CURVES if n in stats]
            self.note(f"  {self.done}/{self.total}  " + "  ".join(shown))

    def alert(self, alert: Alert) -> None:
        self.note(f"  {alert.severity}: {alert.message}")

    def decision(self, decision: Decision) -> None:
        self.note(f"  {decision.action}: {decision.reason}")

    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)


class LiveView(View):
    """A panel that is redrawn: progress with remaining time, the curves that matter, the last alert."""

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
        for name in CURVES:
            if name in stats:
                self.history.setdefault(name, deque(maxlen=40)).append(stats[name])
        self._draw()

    def progress(self, done: int, total: int) -> None:
        super().progress(done, total)
        self._draw()

    def alert(self, alert: Alert) -> None:
        self.last_alert = f"step {alert.step}: {alert.message}"
        self._draw()

    def note(self, text: str) -> None:
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
    """Eight-level bars between the least and the greatest value."""
    low, high = min(values), max(values)
    span = high - low
    return "".join(BARS[round((v - low) / span * 7) if span else 0] for v in values)


class Unseen(View):
    """Says nothing: that of a process that is not the one to talk."""

    def note(self, text: str) -> None:
        return None


def open_view(title: str, kl_target: float) -> View:
    """A live panel when standard error is a terminal, plain lines otherwise."""
    console = Console(stderr=True)
    return LiveView(title, kl_target, console) if console.is_terminal else View(title, kl_target)
