"""Labels with their annotators in and out: pairs, rankings, gold questions, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from burnish.data.exchange import dump_labels, dump_rankings, load_labels
from burnish.data.store import LabelStore
from burnish.errors import DataError


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def pair(n: int = 0, **more: Any) -> dict[str, Any]:
    return {"prompt": f"q{n}", "responses": ["x", "y"], "preference": 1.0, "annotator": "ann", **more}


def test_a_ranking_of_four_is_six_labels_that_share_time_and_money(store: LabelStore, tmp_path: Path) -> None:
    row = {
        "prompt": [{"role": "user", "content": "hi"}],
        "responses": ["a", "b", "c", "d"],
        "ranking": [[2], [0, 3], [1]],
        "annotator": "ann",
        "shown": [3, 2, 1, 0],
        "seconds": 60,
        "cost": 1.2,
        "at": "2026-01-02T03:04:05",
        "models": ["m", "m", "n", "n"],
        "ended": [True, True, True, False],
    }
    found = load_labels(store, written(tmp_path / "l.jsonl", [row]), "told")
    assert (found.rows, found.comparisons, found.labels) == (1, 6, 6)
    asked = {(c.first.text, c.second.text): c for c in store.comparisons()}
    said = {label.comparison_id: label for label in store.labels()}
    prefer = {sides: said[c.id].preference for sides, c in asked.items()}
    assert prefer == {
        ("a", "b"): 1.0,
        ("a", "c"): 0.0,
        ("a", "d"): 0.5,
        ("b", "c"): 0.0,
        ("b", "d"): 0.0,
        ("c", "d"): 1.0,
    }
    label = said[asked["a", "b"].id]
    assert (label.seconds, label.cost, label.swapped) == (10.0, pytest.approx(0.2), True)
    assert (label.at, label.guidelines, label.source) == ("2026-01-02T03:04:05", "told", "human")
    assert asked["b", "d"].second.ended is False
    assert asked["b", "c"].second.source == "n"
    out = tmp_path / "ranked.jsonl"
    assert dump_rankings(store, out, {c.id: prefer[sides] for sides, c in asked.items()}) == 1
    ranked = json.loads(out.read_text())
    best_first = [sorted(ranked["responses"][i] for i in tier) for tier in ranked["ranking"]]
    assert best_first == [["c"], ["a", "d"], ["b"]]
    assert ranked["prompt"] == row["prompt"]


def test_loading_again_or_what_was_dumped_changes_nothing(store: LabelStore, tmp_path: Path) -> None:
    rows = [
        {"prompt": "g", "responses": ["right", "wrong"], "preference": 1, "gold": True},
        pair(
            1,
            shown=[1, 0],
            seconds=4.0,
            cost=0.25,
            strength=2.0,
            guidelines="g",
            source="judge",
            at="2026-01-02T03:04:05",
        ),
        pair(2, preference=0.3, annotator="bea"),
        pair(3, responses=["", " "]),
        pair(2, preference=0.0, annotator="cy", responses=["y", "x"]),
        {"prompt": "g", "responses": ["wrong", "right"], "preference": 1, "annotator": "ann"},
    ]
    file = written(tmp_path / "l.jsonl", rows)
    found = load_labels(store, file)
    assert (found.gold, found.checks, found.comparisons, found.labels) == (1, 1, 3, 4)
    (check,) = store.checks()
    assert check.preference == 0.0, "as the gold question stands"
    assert [label.preference for label in store.labels()] == [1.0, 0.3, 1.0, 1.0]
    assert load_labels(store, file).labels == 0
    out = tmp_path / "dumped.jsonl.gz"
    assert dump_labels(store, out) == 6
    with LabelStore(tmp_path / "other.sqlite") as other:
        load_labels(other, out)
        assert list(other.labels()) == list(store.labels())
        assert [label.at for label in other.labels()] == [label.at for label in store.labels()]
        assert list(other.comparisons()) == list(store.comparisons())
        assert (list(other.gold()), list(other.checks())) == (list(store.gold()), list(store.checks()))


def test_a_label_that_contradicts_its_giver_is_counted_and_left_out(
    store: LabelStore, tmp_path: Path
) -> None:
    load_labels(store, written(tmp_path / "a.jsonl", [pair(1)]))
    found = load_labels(store, written(tmp_path / "b.jsonl", [pair(1, preference=0.0), pair(2)]))
    assert (found.contradicting, found.labels) == (1, 1)


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ("{", "malformed JSON"),
        ("3", "not an object"),
        ({"prompt": "q"}, "no responses"),
        (pair(annotator=" "), "no annotator"),
        (pair(preference=1.5), "neither a ranking nor a preference between 0 and 1"),
        (pair(preference=True), "neither a ranking"),
        (pair(responses=["x", "y", "z"]), "a preference is between two responses"),
        (pair(responses=["x", "x"]), "occurs twice"),
        (pair(responses=["x", "y\x00"]), "NUL character"),
        (pair(responses=["x", "\ud800"]), "half a character"),
        (pair(cost=float("nan")), "not a number of at least 0"),
        (pair(seconds=float("inf")), "not a number of at least 0"),
        (pair(models=5), "models does not fit"),
        (pair(strength="much"), "strength is no number"),
        ({"prompt": "q", "responses": ["x", "y"], "ranking": [[[0]], [1]], "annotator": "a"}, "does not fit"),
        (
            {"prompt": "q", "responses": ["x", "y"], "ranking": [[True], [False]], "annotator": "a"},
            "does not fit",
        ),
        ({"prompt": "q", "responses": ["x", "y"], "preference": 0.5, "gold": True}, "not a tie"),
        ({"prompt": "q", "responses": ["x", "y"], "ranking": [[0, 1]], "gold": True}, "not a tie"),
        (pair(source="robot"), "source is none of simulated, imported, human, judge"),
        (pair(seconds=-1), "not a number of at least 0"),
        (pair(cost="1"), "not a number of at least 0"),
        (pair(at="yesterday"), "no ISO 8601 time"),
        (pair(shown=[0, 0]), "shown does not list"),
        (pair(models=["m"]), "models does not fit"),
        ({"prompt": "q", "responses": ["x", "y"], "ranking": [[0], [2]], "annotator": "a"}, "does not fit"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted_with_its_line(tmp_path: Path, row: Any, why: str) -> None:
    file = written(tmp_path / "l.jsonl", [pair(0), row, pair(1)])
    with LabelStore(tmp_path / "s.sqlite") as store:
        found = load_labels(store, file)
        assert found.labels == 2
        ((reason, told),) = found.report()["rejected"].items()
        assert why in reason
        assert told == "1, first in line 2"
        with pytest.raises(DataError, match=r"1 of 1 rows of .* cannot be used"):
            load_labels(store, written(tmp_path / "bad.jsonl", [row]))


def test_all_tied_is_an_answer(store: LabelStore, tmp_path: Path) -> None:
    row = {"prompt": "q", "responses": ["x", "y"], "ranking": [[0, 1]], "annotator": "a"}
    assert load_labels(store, written(tmp_path / "l.jsonl", [row])).labels == 1
    assert next(iter(list(store.labels()))).preference == 0.5
