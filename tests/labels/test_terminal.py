"""A person in a terminal: blind, shuffled, an answer taken back, and a run that waits for them."""

from __future__ import annotations

import io
import json
from itertools import combinations
from pathlib import Path

import pytest
from rich.console import Console

from burnish.data.store import LabelStore
from burnish.labels.terminal import Session, read_order
from burnish.records import Comparison, Label, Prompt, Response
from burnish.runs.directory import RunDirectory
from tests.command import burnish

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
            self.kept.extend,
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


def sides(session: Session) -> list[bool]:
    """Of every pair whether its second answer is shown first."""
    return [q.shown[0] == q.comparisons[0].second for q in session.questions]


def test_the_better_answer_is_kept_whichever_side_it_stood_on() -> None:
    person = Person(["better"] * N)
    person.session.carry_out()
    assert [label.preference for label in person.kept] == [1.0] * N
    swapped = sides(person.session)
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
    drawn = [sides(s) for s in (one, again, other)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_last_answer_can_be_taken_back_once_and_no_other() -> None:
    person = Person(["better", "a", "u", "u", "b", "?", "g", "s", "t", "q"])
    person.session.carry_out()
    assert len(person.kept) == 3, "the second was answered twice, the fifth never"
    assert person.kept[0].preference == 1.0
    second = 0.0 if not sides(person.session)[1] else 1.0
    assert person.kept[1].preference == second
    assert person.kept[2].preference == 0.5
    assert person.session.skipped == 1
    assert "the guidelines" in person.out.getvalue()
    assert "only the last one can" in person.out.getvalue()


def ranked(keys: list[str], asked: list[Comparison], most: int = 4) -> tuple[Session, list[Label], str]:
    kept: list[Label] = []
    out, clock = io.StringIO(), iter(range(0, 1000, 30))
    session = Session(
        asked,
        "person:zoe",
        "told",
        "the guidelines",
        kept.extend,
        lambda _: keys.pop(0) if keys else "q",
        Console(file=out, width=200, color_system=None),
        lambda: float(next(clock)),
        most,
    )
    session.carry_out()
    return session, kept, out.getvalue()


def all_pairs(prompt: str, n: int) -> list[Comparison]:
    answers = [Response(f"{prompt} {i}") for i in range(n)]
    return [Comparison(Prompt(prompt), a, b) for a, b in combinations(answers, 2)]


def test_four_answers_are_ranked_at_once_and_become_six_labels() -> None:
    asked = [*all_pairs("x", 4), *all_pairs("y", 2)]
    session, kept, shown = ranked(["abc", "c>a=d>b", "a"], asked)
    assert [len(q.shown) for q in session.questions] == [4, 2]
    assert "best first, = between ties" in shown, "three of four letters are no order"
    place = {r.text: i for i, r in enumerate(session.questions[0].shown)}
    tier = [1, 2, 0, 1]
    said = {label.comparison_id: label for label in kept}
    for c in asked[:6]:
        first, second = place[c.first.text], place[c.second.text]
        better = 0.5 if tier[first] == tier[second] else float(tier[first] < tier[second])
        assert said[c.id].preference == better
        assert said[c.id].swapped == (second < first)
        assert said[c.id].seconds == pytest.approx(5.0)
    assert len(kept) == 7
    assert session.given == 2


def test_what_is_not_compared_with_all_others_stays_a_pair() -> None:
    three = all_pairs("x", 3)[:2]  # the second and the third answer are not compared with each other
    assert [len(q.shown) for q in ranked([], three)[0].questions] == [2, 2]
    assert [len(q.shown) for q in ranked([], all_pairs("x", 4), most=3)[0].questions] == [3, 2, 2, 2]
    asked = all_pairs("x", 6)
    questions = ranked([], asked, most=6)[0].questions
    assert [len(q.comparisons) for q in questions] == [15]
    covered = [c.id for q in ranked([], asked)[0].questions for c in q.comparisons]
    assert sorted(covered) == sorted(c.id for c in asked)


@pytest.mark.parametrize(
    ("typed", "n", "tiers"),
    [
        ("a", 2, [0, 1]),
        ("t", 2, [0, 0]),
        ("b>a", 2, [1, 0]),
        ("bac", 3, [1, 0, 2]),
        ("c = a > b", 3, [0, 1, 0]),
        ("a", 3, None),
        ("t", 3, None),
        ("abb", 3, None),
        (">ab", 2, None),
        ("a>>b", 2, None),
        ("abcd", 3, None),
        ("", 2, None),
        ("u", 2, None),
    ],
)
def test_orders_are_read_or_not(typed: str, n: int, tiers: list[int] | None) -> None:
    assert read_order(typed, n) == tiers


def test_input_that_ends_loses_nothing() -> None:
    person = Person(["better", "better"])
    person.session.carry_out()
    assert len(person.kept) == 2
    assert "all answers are saved" in person.out.getvalue()


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
