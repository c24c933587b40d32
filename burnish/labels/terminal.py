"""A person compares answers in a terminal: blind, sides shuffled, an answer taken back while it is the last one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from burnish.records import Comparison, Label, content_id

KEYS = {"a": 1.0, "b": 0.0, "t": 0.5}
HELP = "a or b: the better answer   t: tie   s: skip   u: take the last answer back   g: guidelines   q: quit"


@dataclass
class Session:
    """One person, from a list of comparisons to labels. `keep` is called with an answer when the next one is given, or
    at the end: until then it can be taken back."""

    comparisons: Sequence[Comparison]
    annotator: str
    guidelines_id: str
    guidelines: str
    keep: Callable[[Label], None]
    read: Callable[[str], str]
    console: Console
    clock: Callable[[], float] = monotonic
    given: int = 0
    skipped: int = 0
    _last: tuple[int, Label] | None = field(default=None)

    def carry_out(self) -> None:
        """Ask until all are answered, the person quits, or the input ends."""
        at = 0
        try:
            while at < len(self.comparisons):
                at = self._ask(at)
        except EOFError:
            self.console.print("The input has ended; what was answered is kept.")
        finally:
            self._settle()
        self.console.print(f"{self.given} answers kept, {self.skipped} skipped.")

    def swapped(self, comparison: Comparison) -> bool:
        """Whether this person sees the second answer first: drawn from both names, so that it stays so."""
        return int(content_id("terminal", self.annotator, comparison.id), 16) % 2 == 1

    def _ask(self, at: int) -> int:
        """Show a comparison and act on one key; the number of the next one."""
        c = self.comparisons[at]
        a, b = (c.second, c.first) if self.swapped(c) else (c.first, c.second)
        self.console.rule(f"{at + 1} of {len(self.comparisons)}")
        self.console.print(Panel(Text(c.prompt.text), title="Request"))
        sides = [Panel(Text(r.text.strip()), title=f"Answer {n}") for n, r in (("A", a), ("B", b))]
        self.console.print(Columns(sides, expand=True, equal=True))
        began = self.clock()
        while True:
            key = self.read("Which is better? (a, b, t, s, u, g, q) ").strip().lower()
            if key in KEYS:
                shown = KEYS[key]
                value = 1.0 - shown if self.swapped(c) else shown
                label = Label(
                    c.id,
                    self.annotator,
                    value,
                    "human",
                    guidelines=self.guidelines_id,
                    swapped=self.swapped(c),
                )
                self._settle()
                self._last = (at, replace(label, seconds=round(self.clock() - began, 1)))
                return at + 1
            if key == "s":
                self.skipped += 1
                return at + 1
            if key == "u" and self._last is not None:
                back, self._last = self._last[0], None
                return back
            if key == "q":
                return len(self.comparisons)
            if key == "g":
                self.console.print(Text(self.guidelines))
            elif key == "u":
                self.console.print("There is no answer that could be taken back: only the last one can.")
            else:
                self.console.print(HELP)

    def _settle(self) -> None:
        """Keep the answer that was still open to being taken back."""
        if self._last is not None:
            self.keep(self._last[1])
            self.given += 1
            self._last = None
