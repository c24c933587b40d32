"""A person in a terminal: blind, shuffled, an answer taken back, and a run that waits for them."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from burnish.data.store import LabelStore
from burnish.labels.terminal import Session
from burnish.records import Comparison, Label, Prompt, Response
from burnish.runs import RunDirectory
from tests.pipeline.conftest import burnish

N = 12


def comparisons() -> list[Comparison]:
    return [Comparison(Prompt(f"q [{i}]"), Response(f" good {i}"), Response(f" bad {i}")) for i in range(N)]


class Person:
    """Types keys; `better` stands for whichever side is shown with the good answer."""

    def __init__(self, keys: list[str], annotator: str = "person:zoe") -> None:
        self.keys, self.kept, self.clock = keys, list[Label](), 0.0
        self.out = io.StringIO()
        self.session = Session(
            comparisons(),
            annotator,
            "told",
            "the guidelines",
            self.kept.append,
            self.read,
            Console(file=self.out, width=100, color_system=None),
            self.tick,
        )

    def tick(self) -> float:
        self.clock += 2.0
        return self.clock

    def read(self, _: str) -> str:
        if not self.keys:
            raise EOFError
        key = self.keys.pop(0)
        if key != "better":
            return key
        last = self.out.getvalue().rsplit("Request", 1)[1]
        return "a" if last.index("good") < last.index("bad") else "b"


def test_the_better_answer_is_kept_whichever_side_it_stood_on() -> None:
    person = Person(["better"] * N)
    person.session.carry_out()
    assert [label.preference for label in person.kept] == [1.0] * N
    swapped = [person.session.swapped(c) for c in comparisons()]
    assert 0 < sum(swapped) < N
    assert all(
        (label.seconds, label.guidelines, label.source) == (2.0, "told", "human") for label in person.kept
    )
    shown = person.out.getvalue()
    assert "good 3" in shown
    assert "q [3]" in shown, "brackets are text, not markup"
    assert "policy" not in shown
    assert "imported" not in shown


def test_sides_differ_between_people_and_stay_for_one() -> None:
    one, again, other = (Person([], name).session for name in ("person:a", "person:a", "person:b"))
    drawn = [[s.swapped(c) for c in comparisons()] for s in (one, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_last_answer_can_be_taken_back_once_and_no_other() -> None:
    person = Person(["better", "a", "u", "u", "b", "?", "g", "s", "t", "q"])
    person.session.carry_out()
    assert len(person.kept) == 3, "the second was answered twice, the fifth never"
    assert person.kept[0].preference == 1.0
    second = 0.0 if not person.session.swapped(comparisons()[1]) else 1.0
    assert person.kept[1].preference == second
    assert person.kept[2].preference == 0.5
    assert person.session.skipped == 1
    assert "the guidelines" in person.out.getvalue()
    assert "only the last one can" in person.out.getvalue()


def test_input_that_ends_loses_nothing() -> None:
    person = Person(["better", "better"])
    person.session.carry_out()
    assert len(person.kept) == 2
    assert "what was answered is kept" in person.out.getvalue()


@pytest.mark.e2e
def test_a_run_waits_says_for_how_many_and_goes_on_with_the_same_command(tmp_path: Path) -> None:
    path = tmp_path / "r"
    sets = ["label.source=people", "evaluate.examiner=reward_model", "threads=1", "data.n_prompts=200"]
    arguments = [a for s in (*sets, "collect.n_pairs=12") for a in ("--set", s)]
    command = ["run", "--dir", str(path), *arguments, "--until", "label"]
    waiting = burnish(*command, check=False)
    assert waiting.returncode == 12
    assert "waiting for people: 12 of 12 comparisons" in waiting.stderr
    assert json.loads(burnish("status", str(path), "--json").stdout)["stages"]["label"] == "waiting"
    half = burnish("label", "terminal", str(path), "--name", "zoe", stdin="a\nb\nt\ns\na\na\n")
    assert "5 answers kept, 1 skipped" in half.stdout
    assert "7 of 12 comparisons" in burnish(*command, check=False).stderr
    burnish("label", "terminal", str(path), "--name", "zoe", stdin="a\n" * 7)
    nothing = burnish("label", "terminal", str(path), "--name", "zoe", check=False)
    assert nothing.returncode == 4
    assert "nothing that zoe has not answered" in nothing.stderr
    burnish(*command)
    assert RunDirectory.open(path).stage_state("label") == "done"
    with LabelStore(path / "labels.sqlite") as store:
        assert store.count()["labels"] == 12
        assert {label.annotator for label in store.labels()} == {"person:zoe"}
