"""The labelling page through its own interface: blind, one at a time, durable, nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.data.store import LabelStore, Place
from burnish.labels.tasks import Rules
from burnish.records import Comparison, Label, Prompt, Response
from tests.web.desk import Person, accounts, comparisons, opened


def labels(place: Place) -> list[tuple[str, str, float]]:
    with LabelStore(place) as store:
        return [(x.comparison_id, x.annotator, x.preference) for x in store.labels()]


def test_from_a_question_to_a_label(place: Place) -> None:
    app = opened(place, comparisons(3))
    ada = Person(app, "Ada")
    task = ada.next()
    assert set(task) == {"task", "kind", "practice", "prompt", "responses"}
    assert task["prompt"] == [{"role": "user", "content": "prompt 0"}]
    reply = ada.save(task["task"], "b3", reason="it is better", seconds="0.1")
    assert (reply["status"], reply["saved"], reply["repeated"], reply["answers"]) == (200, True, False, 1)
    assert reply["next"]["prompt"] != task["prompt"]
    assert labels(place) == []  # it can still be taken back
    ada.post("/label/p/finish")
    (found,) = labels(place)
    with LabelStore(place) as store:
        (label,) = store.labels()
        (asked,) = store.find([label.comparison_id])
    assert found[1] == "person:Ada"
    winner = asked.first if label.preference == 1 else asked.second
    assert winner.text == task["responses"][1]
    assert (label.strength, label.source) == (3.0, "human")
    assert label.guidelines


def test_a_save_that_is_sent_again_changes_nothing(place: Place) -> None:
    app = opened(place, comparisons(2))
    ada = Person(app, "Ada")
    task = ada.next()["task"]
    first = ada.save(task, "a2", key="k" * 16)
    again = ada.save(task, "b2", key="k" * 16)
    assert (first["repeated"], again["repeated"], again["answers"]) == (False, True, 1)
    assert ada.save(task, "b2")["status"] == 409
    ada.post("/label/p/finish")
    assert len(labels(place)) == 1


def test_what_was_taken_back_is_asked_again(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(2))
    ada = Person(app, "Ada")
    task = ada.next()
    ada.save(task["task"])
    assert ada.json("/label/p/undo", {})["next"] == task
    assert ada.json("/label/p/undo", {})["next"] == task  # nothing left to take back
    assert ada.save(task["task"], "tie")["answers"] == 1


def test_nothing_on_the_page_says_who_wrote_what_or_what_a_judge_thinks(tmp_path: Path) -> None:
    place = tmp_path / "s.sqlite"
    asked = Comparison(Prompt("p"), Response("one", "secret-model-a"), Response("two", "secret-model-b"))
    app = opened(place, [asked])
    with LabelStore(place) as store:
        store.add_labels([Label(asked.id, "judge:secret-judge", 0.93, "judge")])
    ada = Person(app, "Ada")
    seen = ada.get("/label/p/next").text + json.dumps(ada.next()) + ada.get("/label/p").text
    seen += ada.get("/guidelines/p").text + ada.get("/projects").text
    for word in ("secret", "0.93", asked.id):
        assert word not in seen


def test_sides_are_in_one_order_for_one_person_and_in_both_for_many(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1), Rules(each=40, practice=0))
    orders = []
    for k in range(16):
        person = Person(app, f"p{k}")
        shown = person.next()["responses"]
        assert person.next()["responses"] == shown
        orders.append(tuple(shown))
    assert set(orders) == {("answer 0-0", "answer 0-1"), ("answer 0-1", "answer 0-0")}


def test_up_to_four_answers_are_ranked(place: Place) -> None:
    app = opened(place, comparisons(1, answers=4), Rules(practice=0, most=4))
    ada = Person(app, "Ada")
    task = ada.next()
    assert (task["kind"], len(task["responses"])) == ("rank", 4)
    for wrong in ("0,1,2", "0,2,3,3", "0,1,2,3,4"):
        assert (
            ada.json("/label/p/save", {"task": task["task"], "key": "k" * 16, "order": wrong})["status"]
            == 422
        )
    assert ada.json("/label/p/save", {"task": task["task"], "key": "k" * 16, "order": "1,0,1,2"})["saved"]
    ada.post("/label/p/finish")
    assert sorted(p for *_, p in labels(place)) in ([0.0] * k + [0.5] + [1.0] * (5 - k) for k in range(6))


def test_practice_tells_the_answer_gold_does_not_and_who_fails_is_held(tmp_path: Path) -> None:
    place = tmp_path / "s.sqlite"
    with LabelStore(place) as store:
        store.add_gold(
            (Comparison(Prompt(f"g{k}"), Response("good"), Response("bad")), 1.0) for k in range(3)
        )
    app = opened(place, comparisons(4), Rules(practice=2, gold_share=1.0))
    good, bad = Person(app, "good"), Person(app, "bad")
    for _k in range(2):
        task = good.next()
        assert task["practice"]
        right = "a2" if task["responses"][0] == "good" else "b2"
        reply = good.save(task["task"], right)
        assert (reply["right"], reply["better"]) == (True, right[0])
    task = good.next()
    assert not task["practice"]
    assert set(task["responses"]) == {"good", "bad"}
    assert good.save(task["task"], "tie")["right"] is None
    for _k in range(2):
        task = bad.next()
        reply = bad.save(task["task"], "b2" if task["responses"][0] == "good" else "a2")
        assert reply["right"] is False
    assert reply["held"]
    assert bad.next() is None
    assert "An admin checks your practice" in bad.get("/label/p/next").text
    assert [p.state for p in accounts(app).everybody()] == ["active", "held"]
    assert accounts(app).log()[0]["action"] == "held"


def test_guidelines_have_editions_and_labels_keep_theirs(tmp_path: Path) -> None:
    place = tmp_path / "s.sqlite"
    app = opened(place, comparisons(2))
    admin, ada = Person(app, "Root", "admin"), Person(app, "Ada")
    ada.save(ada.next()["task"])
    first = ada.json("/label/p/next")["guidelines"]
    assert admin.post("/guidelines/p", {"text": "# Be\r\nkind"}).status_code == 200
    ada.save(ada.next()["task"])
    ada.post("/label/p/finish")
    with LabelStore(place) as store:
        given = [label.guidelines for label in store.labels()]
    assert given[0] == first
    assert given[1] == ada.json("/label/p/next")["guidelines"] != first
    page = ada.get("/guidelines/p").text
    assert "Edition 2, by Root" in page
    assert "New edition" not in page
    assert admin.post("/guidelines/p", {"text": "  "}).status_code == 422


def test_when_the_budget_is_spent_nothing_more_is_asked(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(9), Rules(practice=0, pay=0.5, budget=1.0))
    ada = Person(app, "Ada")
    assert ada.save(ada.next()["task"])["next"] is not None
    assert ada.save(ada.next()["task"])["next"] is None


@pytest.mark.parametrize("choice", ["skip", "flag"])
def test_skipped_and_flagged_ones_go_to_others_or_to_whoever_looks(tmp_path: Path, choice: str) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    ada, bob, root = Person(app, "Ada"), Person(app, "Bob"), Person(app, "Root", "admin")
    task = ada.next()["task"]
    assert ada.save(task, choice, reason="it is cut off")["next"] is None
    if choice == "flag":
        assert bob.next() is None
        assert "it is cut off" in root.get("/dashboard/p").text
        assert root.post("/dashboard/p/put-back", {"task": task}).status_code == 303
        assert root.post("/dashboard/p/put-back", {"task": task}).status_code == 404
    assert bob.next() is not None
