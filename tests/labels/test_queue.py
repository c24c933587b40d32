"""Who is asked what next: nobody the same, nothing twice, nothing lost."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import select

from burnish.data.store import LabelStore
from burnish.data.tables import TaskRow
from burnish.labels.queue import Queue
from burnish.labels.tasks import Answer, Refused, Rules, Sides, Task, grouped, settle_overdue
from burnish.records import Comparison, Prompt, Response


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def filled(store: LabelStore, n: int, answers: int = 2) -> list[Comparison]:
    found = [
        Comparison(Prompt(f"prompt {k}"), Response(f"answer {k}-{i}"), Response(f"answer {k}-{j}"))
        for k in range(n)
        for i in range(answers)
        for j in range(i + 1, answers)
    ]
    store.add_comparisons(found)
    return found


def given(queue: Queue, who: str) -> Task:
    task = queue.next(who)
    assert task is not None
    return task


def answer_all(queue: Queue, who: str, choice: str = "a2") -> int:
    n = 0
    while (task := queue.next(who)) is not None:
        queue.save(who, task.id, f"key-{task.id}", Answer(choice))
        n += 1
    return n


def test_two_people_are_never_given_the_same_question(store: LabelStore) -> None:
    filled(store, 6)
    queue = Queue(store, Rules(), clock=Clock())
    held = [given(queue, f"p{k}").question.comparisons[0].id for k in range(6)]
    assert len(set(held)) == 6
    assert queue.next("p7") is None


def test_whoever_reloads_has_the_question_they_had(store: LabelStore) -> None:
    filled(store, 3)
    queue = Queue(store, Rules(), clock=Clock())
    assert given(queue, "a").id == given(queue, "a").id


def test_an_answer_is_a_label_of_the_side_that_was_meant(store: LabelStore) -> None:
    comparisons = {c.id: c for c in filled(store, 40)}
    queue = Queue(store, Rules(), clock=Clock())
    meant = {}
    while (task := queue.next("a")) is not None:
        meant[task.question.comparisons[0].id] = task.question.shown[0].text
        queue.save("a", task.id, task.id, Answer("a3", reason=" better ", seconds=2.0))
    queue.settle(all=True)
    labels = list(store.labels())
    assert len(labels) == 40
    for label in labels:
        c = comparisons[label.comparison_id]
        assert (c.first.text if label.preference == 1.0 else c.second.text) == meant[c.id]
        assert label.swapped == (meant[c.id] == c.second.text)
        assert (label.strength, label.source, label.annotator) == (3.0, "human", "a")
    # Shown first is either of the two, about as often.
    assert 8 < sum(bool(label.swapped) for label in labels) < 32


def test_overlap_asks_so_many_people_and_no_more(store: LabelStore) -> None:
    found = filled(store, 60)
    rules = Rules(overlap=0.3, overlap_each=3)
    queue = Queue(store, rules, clock=Clock())
    for who in ("a", "b", "c", "d", "e"):
        answer_all(queue, who)
    queue.settle(all=True)
    people = Counter(label.comparison_id for label in store.labels())
    assert {c.id: rules.wanted(c.id) for c in found} == people
    assert set(people.values()) == {1, 3}


def test_a_lease_that_has_ended_frees_the_question_and_late_work_is_kept_aside(store: LabelStore) -> None:
    """One label and one payment: the late annotator is told, and the same save again says the same."""
    filled(store, 1)
    clock = Clock()
    queue = Queue(store, Rules(lease=60, pay=1.0), clock=clock)
    late = given(queue, "a")
    assert queue.next("b") is None
    clock.now += 61
    again = given(queue, "b")
    assert again.question.comparisons == late.question.comparisons
    for key in ("k", "k"):
        with pytest.raises(Refused, match="kept aside") as refused:
            queue.save("a", late.id, key, Answer("tie"))
        assert refused.value.why == "late"
    queue.save("b", again.id, "k", Answer("tie"))
    queue.settle(all=True)
    assert Counter(label.annotator for label in store.labels()) == {"b": 1}
    assert [row.labels is not None for row in tasks(store, "late")] == [True]


def test_a_late_answer_to_a_question_that_waited_is_a_label(store: LabelStore) -> None:
    filled(store, 1)
    clock = Clock()
    queue = Queue(store, Rules(lease=60), clock=clock)
    late = given(queue, "a")
    clock.now += 61
    queue.save("a", late.id, "k", Answer("tie"))
    queue.settle(all=True)
    assert Counter(label.annotator for label in store.labels()) == {"a": 1}


def tasks(store: LabelStore, state: str) -> list[TaskRow]:
    with store.reading() as session:
        return list(session.scalars(select(TaskRow).where(TaskRow.state == state)))


def test_an_abandoned_lease_spends_nothing_of_the_budget(store: LabelStore) -> None:
    filled(store, 4)
    clock = Clock()
    queue = Queue(store, Rules(lease=60, pay=1.0, budget=2.0), clock=clock)
    for name in ("a", "b"):
        given(queue, name)
    assert queue.next("c") is None, "two questions are under way"
    clock.now += 61
    assert answer_all(queue, "c") == 2


def test_practice_is_not_passed_by_skipping(store: LabelStore) -> None:
    filled(store, 3)
    known = [Comparison(Prompt(f"gold {i}"), Response(f"good {i}"), Response(f"bad {i}")) for i in range(3)]
    store.add_gold((c, 1.0) for c in known)
    queue = Queue(store, Rules(practice=2, gold_share=0.0), clock=Clock())
    for n in range(6):
        task = given(queue, "a")
        assert task.practice, "a skip is no answer"
        queue.save("a", task.id, f"s{n}", Answer("skip"))
    for n in range(2):
        task = given(queue, "a")
        assert task.practice
        queue.save("a", task.id, f"a{n}", Answer("a1"))
    assert not given(queue, "a").practice


class Name(str):
    """A name that counts how often it is looked up."""

    looked = 0

    def __hash__(self) -> int:
        Name.looked += 1
        return super().__hash__()


@pytest.mark.parametrize("shape", ["chain", "star", "apart", "fours"])
def test_grouping_takes_work_in_proportion_to_the_questions(shape: str) -> None:
    """One prompt, four times as many comparisons: at most five times the work."""

    def work(n: int) -> int:
        prompt = Name("p")
        names = [Name(f"r{i}") for i in range(2 * n)]
        pairs = {
            "chain": [(names[i], names[i + 1]) for i in range(n)],
            "star": [(names[0], names[i + 1]) for i in range(n)],
            "apart": [(names[2 * i], names[2 * i + 1]) for i in range(n)],
            "fours": [
                (names[4 * k + i], names[4 * k + j])
                for k in range(n // 6)
                for i in range(4)
                for j in range(i + 1, 4)
            ],
        }[shape]
        sides = [Sides(Name(f"c{i}"), prompt, a, b) for i, (a, b) in enumerate(pairs)]
        Name.looked = 0
        groups = grouped(sides, 4)
        assert sum(len(g) for g in groups) == len(sides)
        if shape == "fours":
            assert {len(g) for g in groups} == {6}
        return Name.looked

    assert work(2400) <= 5 * work(600)


def test_a_save_that_is_sent_again_changes_nothing(store: LabelStore) -> None:
    filled(store, 2)
    queue = Queue(store, Rules(), clock=Clock())
    task = given(queue, "a")
    assert not queue.save("a", task.id, "k1", Answer("a1")).repeated
    assert queue.save("a", task.id, "k1", Answer("b3")).repeated
    with pytest.raises(Refused, match="already answered") as refused:
        queue.save("a", task.id, "k2", Answer("b3"))
    assert refused.value.why == "answered"
    other = given(queue, "a")
    with pytest.raises(Refused, match="another save"):
        queue.save("a", other.id, "k1", Answer("a1"))
    queue.settle(all=True)
    assert [label.strength for label in store.labels()] == [1.0]


def test_a_key_of_before_an_answer_was_taken_back_does_not_answer_again(store: LabelStore) -> None:
    filled(store, 1)
    queue = Queue(store, Rules(), clock=Clock())
    task = given(queue, "a")
    queue.save("a", task.id, "k1", Answer("a1"))
    back = queue.undo("a")
    assert back is not None
    assert back.id == task.id
    assert queue.save("a", task.id, "k1", Answer("a1")).repeated
    queue.settle(all=True)
    assert list(store.labels()) == []
    queue.save("a", task.id, "k2", Answer("b1"))
    queue.settle(all=True)
    assert len(list(store.labels())) == 1


@pytest.mark.parametrize(
    ("who", "answer", "why"),
    [
        ("b", Answer("a1"), "not yours"),
        ("a", Answer("a9"), "bad"),
        ("a", Answer(order=[0, 1]), "bad"),
        ("a", Answer("a1", reason="x" * 2001), "bad"),
    ],
)
def test_what_cannot_be_saved_is_refused_and_the_question_stays(
    store: LabelStore, who: str, answer: Answer, why: str
) -> None:
    filled(store, 1)
    queue = Queue(store, Rules(), clock=Clock())
    task = given(queue, "a")
    with pytest.raises(Refused) as refused:
        queue.save(who, task.id, "k", answer)
    assert refused.value.why == why
    assert given(queue, "a").id == task.id
    with pytest.raises(Refused) as unknown:
        queue.save("a", "nothing", "k", Answer("a1"))
    assert unknown.value.why == "unknown"


def test_the_last_answers_can_be_taken_back_for_a_while(store: LabelStore) -> None:
    filled(store, 9)
    clock = Clock()
    queue = Queue(store, Rules(undo=100), clock=clock)
    tasks = []
    for _ in range(8):
        tasks.append(given(queue, "a"))
        queue.save("a", tasks[-1].id, tasks[-1].id, Answer("a2"))
    assert len(list(store.labels())) == 3, "all but the last five are labels"
    held = given(queue, "a")
    for task in reversed(tasks[3:]):
        back = queue.undo("a")
        assert back is not None
        assert back.id == task.id
    assert queue.undo("a") is None
    assert held.question.comparisons[0].id not in {label.comparison_id for label in store.labels()}
    task = given(queue, "a")
    queue.save("a", task.id, "again", Answer("b2"))
    assert queue.settle() == 0
    clock.now += 101
    assert queue.undo("a") is None
    assert queue.settle() == 1


def test_skipped_goes_to_others_and_flagged_to_nobody_until_it_is_put_back(store: LabelStore) -> None:
    filled(store, 2)
    queue = Queue(store, Rules(), clock=Clock())
    skipped, flagged_one = given(queue, "a"), None
    queue.save("a", skipped.id, "k1", Answer("skip"))
    flagged_one = given(queue, "a")
    queue.save("a", flagged_one.id, "k2", Answer("flag", reason="no language"))
    assert queue.next("a") is None
    assert given(queue, "b").question.comparisons == skipped.question.comparisons
    assert queue.next("c") is None
    assert queue.put_back(flagged_one.id)
    assert given(queue, "c").question.comparisons == flagged_one.question.comparisons


def test_up_to_four_answers_are_ranked_at_once(store: LabelStore) -> None:
    filled(store, 2, answers=4)
    queue = Queue(store, Rules(most=4), clock=Clock())
    task = given(queue, "a")
    assert (task.kind, len(task.question.shown), len(task.question.comparisons)) == ("rank", 4, 6)
    with pytest.raises(Refused, match="tier"):
        queue.save("a", task.id, "k", Answer(order=[0, 2, 2, 3]))
    queue.save("a", task.id, "k", Answer(order=[1, 0, 1, 2]))
    queue.settle(all=True)
    best = task.question.shown[1].text
    by_id = {c.id: c for c in task.question.comparisons}
    labels = list(store.labels())
    assert len(labels) == 6
    assert sum(label.preference == 0.5 for label in labels) == 1
    for label in labels:
        c = by_id[label.comparison_id]
        if best in (c.first.text, c.second.text):
            assert label.preference == (1.0 if c.first.text == best else 0.0)


def test_gold_comes_first_as_practice_and_later_unseen(store: LabelStore) -> None:
    filled(store, 200)
    golden = [(Comparison(Prompt(f"g{k}"), Response("good"), Response("bad")), 1.0) for k in range(40)]
    store.add_gold(golden)
    queue = Queue(store, Rules(practice=3, gold_share=0.2), clock=Clock())
    for k in range(3):
        task = given(queue, "a")
        assert task.practice
        assert task.kind == "compare"
        side = "a" if task.question.shown[0].text == "good" else "b"
        other = "b" if side == "a" else "a"
        told = queue.save("a", task.id, f"p{k}", Answer(f"{side if k else other}2"))
        assert (told.better, told.right) == (side, bool(k))
        assert queue.undo("a") is None, "who was told cannot take it back"
    assert queue.standing("a").right == 2
    assert queue.standing("a").given == 3
    later = 0
    for _ in range(100):
        task = given(queue, "a")
        assert not task.practice
        told = queue.save("a", task.id, task.id, Answer("tie"))
        assert told.better is None
        later += task.question.shown[0].text in ("good", "bad")
    assert 8 <= later <= 35
    queue.settle(all=True)
    assert len(list(store.checks())) == 3 + later
    assert len(list(store.labels())) == 100 - later


def test_gold_in_a_ranking_project_shows_as_many_answers_as_other_questions(store: LabelStore) -> None:
    answers = [Response(f"ordinary {k}") for k in range(4)]
    for p in range(3):
        pairs = [(a, b) for i, a in enumerate(answers) for b in answers[i + 1 :]]
        store.add_comparisons(Comparison(Prompt(f"p{p}"), a, b) for a, b in pairs)
    # Gold as a pair to a prompt that has other answers, and as a ranking of three to a prompt of its own.
    pair = Comparison(Prompt("p0"), Response("good"), Response("bad"))
    best, middle, worst = (Response(t) for t in ("best", "middle", "worst"))
    ranked = [Comparison(Prompt("g"), a, b) for a, b in ((best, middle), (best, worst), (middle, worst))]
    store.add_gold((c, 1.0) for c in (pair, *ranked))
    queue = Queue(store, Rules(practice=2, gold_share=0.0, most=4), clock=Clock())
    seen = {}
    for _ in range(2):
        task = given(queue, "a")
        assert (task.kind, task.practice) == ("rank", True)
        assert given(queue, "a").question.shown == task.question.shown, "the same order after a reload"
        shown = [r.text for r in task.question.shown]
        seen[task.question.prompt.text] = shown
        rank = {"best": 0, "good": 0, "middle": 1, "bad": 2, "worst": 2}
        tiers = [rank.get(t, 1) for t in shown]
        if task.question.prompt.text == "g":
            tiers = [
                {0: 1, 1: 0, 2: 2}[t] for t in tiers
            ]  # best and middle exchanged: one of three pairs is wrong
        saved = queue.save("a", task.id, task.id, Answer(order=tiers))
        assert saved.better is None
        assert saved.right is (task.question.prompt.text == "p0")
    assert len(seen["p0"]) == 4
    assert {"good", "bad"} < set(seen["p0"])
    assert sorted(seen["g"]) == ["best", "middle", "worst"]
    assert queue.standing("a").given == 2
    assert queue.standing("a").right == 1
    assert len(given(queue, "a").question.comparisons) == 6, "practice is over"
    queue.settle(all=True)
    assert len(list(store.checks())) == 4
    assert not list(store.labels())


def test_gold_shows_two_answers_where_other_questions_are_pairs(store: LabelStore) -> None:
    # Pairs of answers to one prompt, of which no three are all compared; gold of three answers to the same prompt.
    prompt = Prompt("p")
    store.add_comparisons(Comparison(prompt, Response(f"{k} a"), Response(f"{k} b")) for k in range(5))
    best, middle, worst = (Response(t) for t in ("best", "middle", "worst"))
    golden = [Comparison(prompt, a, b) for a, b in ((best, middle), (best, worst), (middle, worst))]
    store.add_gold((c, 1.0) for c in golden)
    queue = Queue(store, Rules(practice=3, gold_share=0.0, most=4), clock=Clock())
    for k in range(8):
        task = given(queue, "a")
        assert (task.kind, len(task.question.shown), task.practice) == ("compare", 2, k < 3)
        queue.save("a", task.id, task.id, Answer("a2"))
    assert queue.next("a") is None


def test_a_spent_budget_gives_nothing_more(store: LabelStore) -> None:
    filled(store, 9)
    queue = Queue(store, Rules(pay=0.25, budget=1.0), clock=Clock())
    assert answer_all(queue, "a") == 4
    queue.settle(all=True)
    assert sum(label.cost for label in store.labels()) == pytest.approx(1.0)


def test_what_was_answered_before_a_kill_is_there_after(tmp_path: Path) -> None:
    path = tmp_path / "labels.sqlite"
    with LabelStore(path) as store:
        filled(store, 4)
        task = given(queue := Queue(store, Rules(), clock=Clock()), "a")
        queue.save("a", task.id, "k", Answer("a2"))
        held = given(queue, "b")
    with LabelStore(path) as store:  # another process: nothing was handed over but the file
        again = Queue(store, Rules(), clock=Clock())
        assert again.save("a", task.id, "k", Answer("a2")).repeated
        assert given(again, "b").id == held.id
        assert settle_overdue(store) == 1
        assert [label.comparison_id for label in store.labels()] == [task.question.comparisons[0].id]


def test_two_servers_and_many_threads_lose_and_double_nothing(store: LabelStore) -> None:
    filled(store, 60)
    queues = [Queue(store, Rules()), Queue(store, Rules())]
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda k: answer_all(queues[k % 2], f"p{k}"), range(8)))
    queues[0].settle(all=True)
    people = Counter(label.comparison_id for label in store.labels())
    assert sum(done) == 60
    assert set(people.values()) == {1}
    assert len(people) == 60


def test_comparisons_that_come_later_are_asked_too(store: LabelStore) -> None:
    filled(store, 1)
    clock = Clock()
    queue = Queue(store, Rules(), clock=clock)
    assert answer_all(queue, "a") == 1
    filled(store, 3)
    clock.now += 10
    assert answer_all(queue, "a") == 2


def test_what_failed_half_way_is_asked_again(store: LabelStore, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(store, 1)
    queue = Queue(store, Rules(practice=0), clock=Clock())
    task = given(queue, "a")

    def broken(*_: object) -> None:
        raise RuntimeError("the disk is full")

    monkeypatch.setattr(queue, "_next", broken)
    with pytest.raises(RuntimeError):
        queue.save_and_next("a", task.id, "key-1", Answer("a2"))
    monkeypatch.undo()
    assert given(queue, "a").id == task.id
    saved, following = queue.save_and_next("a", task.id, "key-1", Answer("b2"))
    assert (saved.repeated, following) == (False, None)
    assert queue.settle(all=True) == 1


def test_a_gold_question_that_was_put_aside_comes_last_and_a_flag_is_no_practice(store: LabelStore) -> None:
    filled(store, 1)
    known = [Comparison(Prompt(f"gold {i}"), Response(f"good {i}"), Response(f"bad {i}")) for i in range(2)]
    store.add_gold((c, 1.0) for c in known)
    queue = Queue(store, Rules(practice=2, gold_share=0.0), clock=Clock())
    first = given(queue, "a")
    queue.save("a", first.id, "f", Answer("flag"))
    second = given(queue, "a")
    assert second.question.prompt != first.question.prompt
    queue.save("a", second.id, "s", Answer("a1"))
    again = given(queue, "a")
    assert (again.practice, again.question.prompt) == (True, first.question.prompt)


def test_ones_own_newer_lease_is_not_somebody_else(store: LabelStore) -> None:
    filled(store, 1)
    clock = Clock()
    queue = Queue(store, Rules(lease=60), clock=clock)
    old = given(queue, "a")
    clock.now += 61
    new = given(queue, "a")
    assert new.id != old.id
    queue.save("a", old.id, "k", Answer("tie"))
    queue.settle(all=True)
    assert Counter(label.annotator for label in store.labels()) == {"a": 1}


def test_two_answers_of_the_same_text_are_a_question_of_their_own() -> None:
    sides = [Sides("c1", "p", "x", "x"), Sides("c2", "p", "x", "y")]
    assert grouped(sides, 4) == [[sides[0]], [sides[1]]]
