"""Terminal interface in which a person compares answers.

Questions are blind and shuffled, and show two or a few answers at a time. The last answer can be
taken back.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from burnish.labels.tasks import Question, labels_of, questions_of
from burnish.records import Comparison, Label

LETTERS = "abcdef"  # names of the answers of one question
ORDER = re.compile(r"[a-f](?:[>=]?[a-f])*")
HELP = "{order}   s: skip   u: take the last answer back   g: guidelines   q: quit"
PAIR = "a or b: the better answer   t: tie"
RANKING = "best first, = between ties, e.g. b>a=c"


def read_order(typed: str, n: int) -> list[int] | None:
    """Parse `b>a=c` or `bac` into the tier of each of n answers, 0 the best.

    Two answers may also be given as `a`, `b` or `t` (tie). Return None if the text does not order
    all answers.
    """
    typed = typed.replace(" ", "")
    if n == 2 and typed in ("a", "b", "t"):
        return {"a": [0, 1], "b": [1, 0], "t": [0, 0]}[typed]
    letters = re.sub("[>=]", "", typed)
    if not ORDER.fullmatch(typed) or sorted(letters) != sorted(LETTERS[:n]):
        return None
    tiers, tier, tied = [0] * n, -1, False
    for letter in typed:
        if letter in ">=":
            tied = letter == "="
            continue
        tier += not tied
        tiers[LETTERS.index(letter)] = tier
        tied = False
    return tiers


@dataclass
class Session:
    """Labelling session of one person, with up to `most` answers per question.

    `keep` receives the labels of an answer when the next one is given or the session ends. Until
    then the answer can be taken back.
    """

    comparisons: Sequence[Comparison]
    annotator: str
    guidelines_id: str
    guidelines: str
    keep: Callable[[Sequence[Label]], object]
    read: Callable[[str], str]
    console: Console
    clock: Callable[[], float] = monotonic
    most: int = 2
    given: int = 0
    skipped: int = 0
    _last: tuple[int, list[Label]] | None = field(default=None)

    def __post_init__(self) -> None:
        self.questions = questions_of(self.comparisons, self.most, self.annotator)

    def carry_out(self) -> None:
        """Ask until all questions are answered, the person quits, or the input ends."""
        at = 0
        try:
            while at < len(self.questions):
                at = self._ask(at)
        except EOFError:
            self.console.print("The input has ended; all answers are saved.")
        finally:
            self._settle()
        self.console.print(f"{self.given} answers kept, {self.skipped} skipped.")

    def _ask(self, at: int) -> int:
        """Show a question, read a decision and return the index of the next question."""
        question = self.questions[at]
        n = len(question.shown)
        self.console.rule(f"{at + 1} of {len(self.questions)}")
        self.console.print(Panel(Text(question.prompt.text), title="Request"))
        sides = [
            Panel(Text(r.text.strip()), title=f"Answer {letter.upper()}")
            for letter, r in zip(LETTERS, question.shown, strict=False)
        ]
        self.console.print(Columns(sides, expand=True, equal=True))
        began = self.clock()
        ask = (
            "Which is better? (a, b, t, s, u, g, q) " if n == 2 else f"Which order? ({RANKING}; s, u, g, q) "
        )
        while True:
            key = self.read(ask).strip().lower()
            tiers = read_order(key, n)
            if tiers is not None:
                self._settle()
                self._last = (at, self._labels(question, tiers, self.clock() - began))
                return at + 1
            if key == "s":
                self.skipped += 1
                return at + 1
            if key == "u" and self._last is not None:
                back, self._last = self._last[0], None
                return back
            if key == "q":
                return len(self.questions)
            if key == "g":
                self.console.print(Text(self.guidelines))
            elif key == "u":
                self.console.print("There is no answer to take back: only the last one can be taken back.")
            else:
                self.console.print(HELP.format(order=PAIR if n == 2 else RANKING))

    def _labels(self, question: Question, tiers: Sequence[int], seconds: float) -> list[Label]:
        return labels_of(
            question, tiers, self.annotator, seconds=round(seconds, 1), guidelines=self.guidelines_id
        )

    def _settle(self) -> None:
        """Keep the answer that could still be taken back."""
        if self._last is not None:
            self.keep(self._last[1])
            self.given += 1
            self._last = None
