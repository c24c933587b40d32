"""A run that waits for people: what counts as answered, and when it is over."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from burnish.data.store import LabelStore
from burnish.errors import Waiting
from burnish.labels.queue import Queue
from burnish.labels.served import leave_note, page_of, take_note_back
from burnish.labels.tasks import Answer, Rules
from burnish.pipeline.people import examine_by_people, wait_for_people
from burnish.records import Comparison, Label, Prompt, Response

PROMPTS = [Prompt(f"prompt {k}") for k in range(4)]
TEXTS = {"ppo": ["ours 0", "ours 1", "same 2", "ours 3"], "dpo": ["other 0", "ours 1", "other 2", "other 3"]}
BASE = ["base 0", "base 1", "same 2", "base 3"]


def answer(place: Path, choose: str, n: int, who: str = "person:ada") -> None:
    """Somebody prefers the answer with this word in it, or says that; and goes."""
    with LabelStore(place) as store:
        queue = Queue(store, Rules(each=2, practice=0))
        for _ in range(n):
            task = queue.next(who)
            assert task is not None
            first, second = (r.text for r in task.question.shown)
            said = (
                choose
                if choose in ("tie", "flag")
                else "a2"
                if choose in first
                else "b2"
                if choose in second
                else "tie"
            )
            queue.save(who, task.id, f"key-{task.id}", Answer(said))
        queue.release(who)


def examined(path: Path, each: int = 1) -> dict[str, list[float | None]]:
    return examine_by_people(path, PROMPTS, TEXTS, BASE, each, None)[1]


def test_every_different_pair_is_asked_once_and_verdicts_are_ours(tmp_path: Path) -> None:
    with pytest.raises(Waiting, match="6 of 6 comparisons"):
        examined(tmp_path)
    answer(tmp_path / "examination.sqlite", "base", 6)
    with LabelStore(tmp_path / "examination.sqlite") as store:  # a judge is none of the people
        store.add_labels(Label(c.id, "judge:x", 0.9, "judge") for c in store.comparisons())
    assert examined(tmp_path) == {"ppo": [0.0, 0.0, 0.5, 0.0], "dpo": [0.0, 0.0, 0.5, 0.0]}


def test_several_people_are_averaged_and_who_flags_abstains(tmp_path: Path) -> None:
    with pytest.raises(Waiting):
        examined(tmp_path, each=2)
    answer(tmp_path / "examination.sqlite", "ours", 6)
    with pytest.raises(Waiting, match="fewer than 2"):
        examined(tmp_path, each=2)
    answer(tmp_path / "examination.sqlite", "flag", 1, "person:bob")
    answer(tmp_path / "examination.sqlite", "base", 5, "person:bob")
    found = examined(tmp_path, each=2)
    assert found["ppo"][1:] == [0.5, 0.5, 0.5]
    assert found["ppo"][0] in (0.5, 1.0)  # whoever's question was flagged counts with what the first one said


def test_over_says_when_the_last_answer_is_in(tmp_path: Path) -> None:
    place = tmp_path / "labels.sqlite"
    asked = [Comparison(p, Response("ours"), Response("base")) for p in PROMPTS]
    with LabelStore(place) as store:
        store.add_comparisons(asked)
        with pytest.raises(Waiting) as waiting:
            wait_for_people(store, asked, tmp_path / "run", 1, 0.0)
        assert not waiting.value.over()
        answer(place, "ours", 3)
        assert not waiting.value.over()
        wait_for_people(store, asked, tmp_path / "run", 1, 0.25)
        answer(place, "flag", 1)  # what is no question is nothing to wait for
        assert waiting.value.over()
        wait_for_people(store, asked, tmp_path / "run", 1, 0.0)


def test_a_page_is_named_while_it_answers_and_no_longer(tmp_path: Path) -> None:
    place = tmp_path / "labels.sqlite"
    assert page_of(place) is None
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        leave_note(place, url, "a b")
        assert page_of(place) == f"{url}/label/a%20b"
        asked = [Comparison(PROMPTS[0], Response("ours"), Response("base"))]
        with LabelStore(place) as store:
            store.add_comparisons(asked)
            with pytest.raises(Waiting, match=f"asked at {url}"):
                wait_for_people(store, asked, tmp_path / "run", 1, 0.0)
    assert page_of(place) is None
    (tmp_path / "labels.page.json").write_text("{")
    assert page_of(place) is None
    leave_note(place, url, "a b")
    take_note_back(place, url, "a b")
    assert not list(tmp_path.glob("*.page.json"))
