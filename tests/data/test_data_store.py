"""The label store: content ids, append-only labels, stored orientation, consensus."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from hypothesis import given, strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.orm import Session

from burnish.data import migrate as migrate_module
from burnish.data.guidelines import load_guidelines
from burnish.data.store import LabelStore, Place, beside, shown
from burnish.errors import DataError
from burnish.records import Comparison, Label, Message, Prompt, Response


def comparison(n: int = 0) -> Comparison:
    return Comparison(
        Prompt(f"prompt {n}"), Response("one", "policy", True), Response("two", "policy", False)
    )


@given(st.text(min_size=1), st.text(min_size=1), st.text(min_size=1))
def test_ids_depend_on_content_and_not_on_sides(prompt: str, a: str, b: str) -> None:
    one = Comparison(Prompt(prompt), Response(a), Response(b))
    assert one.id == Comparison(Prompt(prompt), Response(b, "other"), Response(a), round=3).id
    assert one.id != Comparison(Prompt(prompt + "!"), Response(a), Response(b)).id


def test_round_trip_keeps_everything(tmp_path: Path, place: Place) -> None:
    chat = Prompt.from_messages(
        [Message("user", "hello"), Message("assistant", "hé"), Message("user", "日本")]
    )
    given_ = [comparison(), Comparison(chat, Response("x"), Response("y", "b", None), round=2)]
    with LabelStore(place) as store:
        assert store.add_comparisons(given_) == 2
    with LabelStore(place) as store:
        assert list(store.comparisons()) == given_
        assert list(store.comparisons(round=2)) == given_[1:]


def test_adding_twice_adds_once(store: LabelStore) -> None:
    c = comparison()
    label = Label(c.id, "ann", 1.0, "human", strength=2.0, seconds=3.0, cost=0.1)
    assert store.add_comparisons([c, c]) == 1
    assert store.add_comparisons([c]) == 0
    assert store.add_labels([label]) == 1
    assert store.add_labels([label, Label(c.id, "ann", 0.0, "human")]) == 0
    assert store.add_labels([label], round=1) == 1
    assert next(store.labels([c.id])) == label


def test_the_stored_order_stays(store: LabelStore) -> None:
    c = comparison()
    store.add_comparisons([c])
    swapped = Comparison(c.prompt, c.second, c.first)
    assert store.add_comparisons([swapped]) == 0
    assert store.stored(swapped).first == c.first
    assert store.stored(comparison(9)) == comparison(9)


@pytest.mark.parametrize("statement", ["UPDATE labels SET preference = 0", "DELETE FROM labels"])
def test_labels_cannot_be_changed_or_deleted(store: LabelStore, statement: str) -> None:
    c = comparison()
    store.add_comparisons([c])
    store.add_labels([Label(c.id, "a", 1.0, "human")])
    with pytest.raises(DBAPIError, match="append-only"), store.engine.begin() as connection:
        connection.execute(text(statement))
    assert store.count()["labels"] == 1


def test_a_label_needs_a_comparison_and_a_probability(store: LabelStore) -> None:
    store.add_comparisons([comparison()])
    with pytest.raises(IntegrityError):
        store.add_labels([Label("nowhere", "a", 1.0, "human")])
    with pytest.raises(IntegrityError):
        store.add_labels([Label(comparison().id, "a", 1.5, "human")])
    assert store.count()["labels"] == 0


def test_consensus_counts_ties_and_the_unlabelled(store: LabelStore) -> None:
    cs = [comparison(n) for n in range(4)]
    store.add_comparisons(cs)
    votes = {0: [1, 1, 0], 1: [0], 2: [1, 0]}
    store.add_labels(
        [Label(cs[n].id, f"a{i}", float(v), "human") for n, vs in votes.items() for i, v in enumerate(vs)]
    )
    first, second = store.preferences()
    assert (first.chosen, first.rejected, first.confidence) == ("one", "two", pytest.approx(2 / 3))
    assert (second.chosen, second.confidence) == ("two", 1.0)
    report = store.consensus_report()
    assert (report["labelled"], report["ties"], report["unlabelled"]) == (3, 1, 1)


def test_what_annotators_disagree_about_and_what_was_cut_off_is_known(store: LabelStore) -> None:
    c = comparison()
    store.add_comparisons([c, comparison(1)])
    store.add_labels([Label(c.id, name, vote, "human") for name, vote in (("a", 1), ("b", 0.5), ("c", 1))])
    assert store.consensus_report()["contradicted"] == 0
    (pair,) = store.preferences()
    assert (pair.chosen, pair.chosen_ended, pair.rejected_ended) == ("one", True, False)
    store.add_labels([Label(c.id, "d", 0.0, "human")])
    assert store.consensus_report()["contradicted"] == 1


def test_sqlite_runs_in_wal_mode(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "l.sqlite")
    with store.engine.connect() as connection:
        assert connection.execute(text("PRAGMA journal_mode")).scalar() == "wal"
        assert connection.execute(text("PRAGMA foreign_keys")).scalar() == 1


def test_a_question_that_stands_the_other_way_round_keeps_its_meaning(tmp_path: Path, place: Place) -> None:
    """Another run stored it first, with the sides swapped."""
    with LabelStore(place) as store:
        c = comparison()
        store.add_comparisons([c])
        swapped = Comparison(c.prompt, c.second, c.first)
        assert store.swapped([swapped, comparison(1), c]) == [True, False, False]


def test_other_answers_of_the_same_annotator_are_seen(tmp_path: Path, place: Place) -> None:
    with LabelStore(place) as store:
        store.add_comparisons([comparison(0), comparison(1)])
        given = [Label(comparison(i).id, "ann", 1.0, "human") for i in range(2)]
        store.add_labels(given)
        assert store.differing(given) == 0
        changed = [
            given[0],
            Label(comparison(1).id, "ann", 0.0, "human"),
            Label(comparison(1).id, "b", 0.0, "human"),
        ]
        assert store.differing(changed) == 1


def test_an_older_store_keeps_its_labels_and_learns_of_guidelines(tmp_path: Path) -> None:
    """From the first schema, as an older version left it."""
    engine = create_engine(f"sqlite:///{tmp_path / 'old.sqlite'}")
    config = Config()
    config.set_main_option("script_location", str(Path(migrate_module.__file__).parent / "migrations"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        connection.execute(text("INSERT INTO prompts VALUES ('p', 'prompt', '[]')"))
        for side in ("a", "b"):
            connection.execute(text(f"INSERT INTO responses VALUES ('{side}', 'p', '{side}', 'policy', 1)"))
        connection.execute(text("INSERT INTO comparisons VALUES (1, 'c', 'p', 'a', 'b', 0)"))
        connection.execute(
            text("INSERT INTO labels VALUES (1, 'l', 'c', 'ann', 'human', 1.0, NULL, NULL, 0.1, 0, 'then')")
        )
    with LabelStore(tmp_path / "old.sqlite") as store:
        assert [(label.annotator, label.guidelines) for label in store.labels()] == [("ann", None)]
        told = store.add_guidelines(load_guidelines())
        store.add_labels([Label("c", "new", 0.0, "human", guidelines=told)])
        assert [label.guidelines for label in store.labels()] == [None, told]
        with pytest.raises(IntegrityError, match="append-only"), Session(store.engine) as session:
            session.execute(text("DELETE FROM labels"))


def test_the_newest_schema_is_the_one_that_is_asked_for() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate_module.__file__).parent / "migrations"))
    assert ScriptDirectory.from_config(config).get_current_head() == migrate_module.HEAD


def test_gold_questions_are_no_comparisons(store: LabelStore) -> None:
    c = comparison(1)
    swapped = Comparison(c.prompt, c.second, c.first)
    assert store.add_gold([(c, 1.0), (comparison(2), 0.0)]) == 2
    assert store.add_gold([(swapped, 0.0)]) == 0
    assert store.swapped([swapped, c], gold=True) == [True, False]
    assert [(q.first.text, p) for q, p in store.gold()] == [("one", 1.0), ("one", 0.0)]
    answer = Label(c.id, "ann", 0.0, "human", seconds=3.0, cost=0.1, swapped=True, at="2026-11-26T00:00:00")
    assert store.add_checks([answer, answer]) == 1
    (kept,) = store.checks()
    assert kept == answer
    assert kept.at == answer.at
    assert store.known([c.id, "x"], gold=True) == {c.id}
    assert store.known([c.id]) == set()
    assert list(store.comparisons()) == []
    assert store.preferences() == []
    with pytest.raises(IntegrityError):
        store.add_checks([Label("nowhere", "ann", 1.0, "human")])


def test_a_label_keeps_which_side_was_shown_first_and_when(store: LabelStore) -> None:
    c = comparison()
    store.add_comparisons([c])
    told = [
        Label(c.id, n, 1.0, "human", swapped=s, at="2026-01-02T03:04:05")
        for n, s in (("a", True), ("b", None))
    ]
    store.add_labels(told)
    assert list(store.labels()) == told
    assert [label.at for label in store.labels()] == ["2026-01-02T03:04:05"] * 2
    other_way = Comparison(c.prompt, c.second, c.first)
    assert store.as_stored([(c, told[0]), (other_way, told[0]), (other_way, told[1])]) == [
        told[0],
        replace(told[0], preference=0.0, swapped=False),
        replace(told[1], preference=0.0),
    ]


def test_a_store_is_taken_over_as_it_was(store: LabelStore, tmp_path: Path) -> None:
    """Into one that has a question the other way round."""
    c, new = comparison(), comparison(1)
    store.add_comparisons([Comparison(c.prompt, c.second, c.first)])
    with LabelStore(tmp_path / "other.sqlite") as other:
        other.add_comparisons([c, new])
        other.add_labels([Label(i, "a", 1.0, "human", swapped=False) for i in (c.id, new.id)])
        store.take_over(other, other.snapshot())
    assert [(label.preference, label.swapped) for label in store.labels()] == [(0.0, True), (1.0, False)]


def test_a_consensus_of_ones_own_takes_the_place_of_the_mean(store: LabelStore) -> None:
    cs = [comparison(n) for n in range(3)]
    store.add_comparisons(cs)
    store.add_labels([Label(c.id, "a", 1.0, "human") for c in cs])
    pairs = store.preferences(consensus={cs[0].id: 0.2, cs[1].id: 0.5})
    assert [(p.chosen, p.confidence) for p in pairs] == [("two", pytest.approx(0.8))]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("mysql://u:secret@h/d", "cannot be opened"),
        ("postgresql+psycopg://u:secret@127.0.0.1:1/d", "cannot be reached"),
        ("postgresql+psycopg://u:secret@word:more@h/d", "cannot be opened"),
        ("postgresql+psycopg:/u:secret@h/d", "cannot be opened"),
        ("postgresql+psycopg://u@127.0.0.1:1/d?sslpassword=secret", "cannot be reached"),
        ("nonsense://", "cannot be opened"),
    ],
)
def test_a_url_that_leads_nowhere_is_said_without_its_password(url: str, why: str) -> None:
    with pytest.raises(DataError, match=why) as error:
        LabelStore(url)
    assert "secret" not in str(error.value)


def test_files_of_a_store_lie_beside_it() -> None:
    assert beside(Path("a/b.sqlite"), ".judge.jsonl") == Path("a/b.judge.jsonl")
    assert beside("postgresql+psycopg://u:secret@h/team", ".judge.jsonl") == Path("team.judge.jsonl")
    assert shown("postgresql+psycopg://u:secret@h/team") == "postgresql+psycopg://u:***@h/team"


def test_guidelines_are_known_by_their_words(tmp_path: Path, place: Place) -> None:
    ours = load_guidelines()
    assert "prefer the shorter" in ours.text
    file = tmp_path / "mine.md"
    file.write_text("Prefer what is true.\n")
    mine = load_guidelines(str(file))
    file.write_text("Prefer what is true!\n")
    assert len({ours.id, mine.id, load_guidelines(str(file)).id}) == 3
    with LabelStore(place) as store:
        assert store.add_guidelines(mine) == store.add_guidelines(mine) == mine.id
        assert store.guidelines() == {mine.id: "Prefer what is true.\n"}
    file.write_text(" \n")
    with pytest.raises(DataError, match="is empty; write instructions"):
        load_guidelines(str(file))
    with pytest.raises(DataError, match=r"did you mean mine.md"):
        load_guidelines(str(tmp_path / "mime.md"))
