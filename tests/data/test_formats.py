"""Formats of public preference data: each is recognised by its columns and gives the pairs that it means."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from burnish.data.formats import FORMATS
from burnish.data.preferences import ImportResult, read_preferences
from burnish.errors import DataError

HELPFUL = {"correctness": 3, "coherence": 4, "complexity": 1, "verbosity": 2}
TREE = {"deleted": False, "lang": "en", "review_result": True}


def message(name: str, parent: str | None, role: str, text: str, rank: float | None) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "role": role, "text": text, "rank": rank, **TREE}


ROWS: dict[str, tuple[list[dict[str, Any]], dict[str, str], list[tuple[str, str, str]]]] = {
    "UltraFeedback": (
        [
            {
                "instruction": "Name a bird.",
                "source": "mine",
                "completions": [
                    {
                        "response": "Rain",
                        "annotations": {"helpfulness": {"Rating": "1"}, "honesty": {"Rating": "N/A"}},
                    },
                    {
                        "response": "A wren",
                        "annotations": {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "4"}},
                    },
                    {
                        "response": "A bat",
                        "annotations": {"helpfulness": {"Rating": "2"}, "honesty": {"Rating": "2"}},
                    },
                ],
            }
        ],
        {},
        [
            ("Name a bird.", "A wren", "Rain"),
            ("Name a bird.", "A bat", "Rain"),
            ("Name a bird.", "A wren", "A bat"),
        ],
    ),
    "HelpSteer2": (
        [
            {"prompt": "Say hi.", "response": "Go.", "helpfulness": 0, **HELPFUL},
            {"prompt": "Say bye.", "response": "Bye.", "helpfulness": 4, **HELPFUL},
            {"prompt": "Say hi.", "response": "Hi!", "helpfulness": 4, **HELPFUL},
        ],
        {},
        [("Say hi.", "Hi!", "Go.")],
    ),
    "HelpSteer2 preferences": (
        [
            {"prompt": "Sum?", "response_1": "4", "response_2": "5", "preference_strength": -3},
            {"prompt": "Product?", "response_1": "4", "response_2": "6", "preference_strength": 1},
            {"prompt": "Root?", "response_1": "4", "response_2": "6", "preference_strength": 0},
        ],
        {},
        [("Sum?", "4", "5"), ("Product?", "6", "4")],
    ),
    "HelpSteer3": (
        [
            {
                "domain": "general",
                "context": [{"role": "user", "content": "Which sea?"}],
                "response1": "A lake",
                "response2": "The North Sea",
                "overall_preference": 2,
            }
        ],
        {},
        [("User: Which sea?", "The North Sea", "A lake")],
    ),
    "PKU-SafeRLHF": (
        [
            {
                "prompt": "How do I open a lock?",
                "response_0": "Use a pick.",
                "response_1": "Ask its owner.",
                "is_response_0_safe": False,
                "is_response_1_safe": True,
                "better_response_id": 0,
                "safer_response_id": 1,
            }
        ],
        {"decided_by": "safer"},
        [("How do I open a lock?", "Ask its owner.", "Use a pick.")],
    ),
    "Nectar": (
        [
            {
                "prompt": "\n\nHuman: Name a tree.\n\nAssistant: ",
                "answers": [
                    {"answer": "A stone", "model": "a", "rank": 3.0},
                    {"answer": "An oak", "model": "b", "rank": 1.0},
                    {"answer": "A bush", "model": "c", "rank": 2.0},
                ],
                "turns": 1,
            }
        ],
        {},
        [
            ("Name a tree.", "An oak", "A stone"),
            ("Name a tree.", "A bush", "A stone"),
            ("Name a tree.", "An oak", "A bush"),
        ],
    ),
    "SHP": (
        [
            {
                "history": "Why rain?",
                "human_ref_A": "Clouds.",
                "human_ref_B": "No idea.",
                "labels": 1,
                "score_ratio": 2.0,
            },
            {
                "history": "Why snow?",
                "human_ref_A": "Hm.",
                "human_ref_B": "It is cold.",
                "labels": 0,
                "score_ratio": 3.0,
            },
        ],
        {},
        [("Why rain?", "Clouds.", "No idea."), ("Why snow?", "It is cold.", "Hm.")],
    ),
    "OpenAssistant": (
        [
            message("a", None, "prompter", "Hello", None),
            message("b", "a", "assistant", "Hi, how are you?", 0.0),
            message("c", "a", "assistant", "What", 1.0),
            message("d", "b", "prompter", "Well. Which day is it?", None),
            message("e", "d", "assistant", "No day", 1.0),
            message("f", "d", "assistant", "Monday", 0.0),
        ],
        {},
        [
            ("Hello", "Hi, how are you?", "What"),
            (
                "User: Hello\n\nAssistant: Hi, how are you?\n\nUser: Well. Which day is it?",
                "Monday",
                "No day",
            ),
        ],
    ),
    "unpaired": (
        [
            {"prompt": "Sing.", "completion": "La la", "label": True},
            {"prompt": [{"role": "user", "content": "Draw."}], "completion": "A line", "label": True},
            {"prompt": "Sing.", "completion": "Brr", "label": False},
        ],
        {},
        [("Sing.", "La la", "Brr")],
    ),
    "pairs": (
        [
            {
                "prompt": "Two colours?",
                "chosen": ["Red, blue", "Green, red"],
                "rejected": ["Cat", "Dog"],
                "subset": "Ties",
                "total_completions": 4,
            }
        ],
        {},
        [
            ("Two colours?", "Red, blue", "Cat"),
            ("Two colours?", "Red, blue", "Dog"),
            ("Two colours?", "Green, red", "Cat"),
            ("Two colours?", "Green, red", "Dog"),
        ],
    ),
    "rankings": (
        [{"prompt": "A number?", "responses": ["x", "1"], "ranking": [[1], [0]]}],
        {},
        [("A number?", "1", "x")],
    ),
}


def read(tmp_path: Path, rows: list[dict[str, Any]], **how: Any) -> ImportResult:
    file = tmp_path / "data.jsonl.gz"
    file.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return read_preferences(file, limit=1.0, **how)


def test_every_format_has_an_example() -> None:
    assert ROWS.keys() == {f.name for f in FORMATS}


@pytest.mark.parametrize("name", ROWS)
def test_a_format_gives_the_pairs_that_it_means(name: str, tmp_path: Path) -> None:
    rows, how, wanted = ROWS[name]
    found = read(tmp_path, rows, **how)
    assert list(found.formats) == [name]
    assert sorted((p.prompt.text.strip(), p.chosen, p.rejected) for p in found.pairs) == sorted(wanted)
    assert found.rows == len(found.pairs) + found.rejected.total(), "every row or pair is counted"


def test_strengths_are_shares_of_the_largest_grade(tmp_path: Path) -> None:
    strengths = [p.strength for p in read(tmp_path, ROWS["HelpSteer2 preferences"][0]).pairs]
    assert strengths == [1.0, pytest.approx(1 / 3)]
    assert {p.strength for p in read(tmp_path, ROWS["SHP"][0]).pairs} == {None}
    rows = [
        {"prompt": "p", "chosen": "a", "rejected": f"{n}", "score_chosen": n, "score_rejected": 0}
        for n in (2, 8)
    ]
    assert [p.strength for p in read(tmp_path, rows).pairs] == [0.25, 1.0]


def test_what_decides_is_chosen_or_must_be(tmp_path: Path) -> None:
    safe = ROWS["PKU-SafeRLHF"][0]
    (pair,) = read(tmp_path, safe, decided_by="better").pairs
    assert pair.chosen == "Use a pick."
    with pytest.raises(DataError, match=r"set data\.decided_by to one of better, safer"):
        read(tmp_path, safe)
    with pytest.raises(DataError, match=r"'helpfulness', but .* PKU-SafeRLHF with one of better, safer"):
        read(tmp_path, safe, decided_by="helpfulness")
    with pytest.raises(DataError, match="nothing to choose from"):
        read(tmp_path, ROWS["SHP"][0], decided_by="labels")
    graded = [dict(row, verbosity=v) for row, v in zip(ROWS["HelpSteer2"][0], (4, 2, 0), strict=True)]
    (by_verbosity,) = read(tmp_path, graded, decided_by="verbosity").pairs
    assert by_verbosity.chosen == "Go."


def test_rows_that_give_no_pair_are_counted_with_their_line(tmp_path: Path) -> None:
    found = read(tmp_path, ROWS["HelpSteer2"][0])
    assert dict(found.rejected) == {"the only response to its prompt": 1}
    found = read(tmp_path, ROWS["unpaired"][0])
    assert dict(found.rejected) == {"no response to its prompt has the other label": 1}
    rows = [*ROWS["unpaired"][0], {"prompt": "Sing.", "completion": "x", "label": "yes"}]
    assert read(tmp_path, rows).rejected["`label` is neither 0 nor 1"] == 1
    lost = [row for row in ROWS["OpenAssistant"][0] if row["message_id"] != "a"]
    with pytest.raises(DataError, match="the message that it replies to is missing: 2"):
        read(tmp_path, lost)
    tied = [dict(ROWS["SHP"][0][0], labels=2)]
    with pytest.raises(DataError, match="`labels` is neither 0 nor 1"):
        read(tmp_path, tied)


def test_a_cycle_of_messages_ends(tmp_path: Path) -> None:
    rows = [
        message("a", "d", "prompter", "Hello", None),
        message("b", "a", "assistant", "Hi", 0.0),
        message("c", "a", "assistant", "What", 1.0),
        message("d", "b", "prompter", "More", None),
    ]
    with pytest.raises(DataError, match="the message that it replies to is missing"):
        read(tmp_path, rows)


def test_columns_under_other_names(tmp_path: Path) -> None:
    rows = [{"question": "Why?", "best": "So.", "worst": "No.", "chosen": "an old column"}]
    columns = {"prompt": "question", "chosen": "best", "rejected": "worst"}
    (pair,) = read(tmp_path, rows, columns=columns).pairs
    assert (pair.prompt.text, pair.chosen, pair.rejected) == ("Why?", "So.", "No.")
    with pytest.raises(DataError, match=r"data.columns: .* has no column 'wurst'.*'worst'"):
        read(tmp_path, rows, columns={"rejected": "wurst"})


def test_rows_that_can_be_read_in_two_ways_are_refused_but_pairs_are_pairs(tmp_path: Path) -> None:
    both = {"prompt": "p", "completion": "a", "label": True, "responses": ["a", "b"], "ranking": [[0], [1]]}
    with pytest.raises(DataError, match=r"rankings \(responses, ranking\) or unpaired"):
        read(tmp_path, [both])
    (pair,) = read(tmp_path, [{**both, "chosen": "x", "rejected": "y", "answers": []}]).pairs
    assert (pair.chosen, pair.rejected) == ("x", "y")


def test_turns_of_helpsteer_are_messages(tmp_path: Path) -> None:
    asked = "Hi\n\n<extra_id_1>Assistant\n\nHello!\n\n<extra_id_1>User\n\nWhich sea?"
    rows = [{"prompt": asked, "response_1": "None", "response_2": "The Baltic", "preference_strength": 2}]
    (pair,) = read(tmp_path, rows).pairs
    assert [(m.role, m.content) for m in pair.prompt.messages] == [
        ("user", "Hi"),
        ("assistant", "Hello!"),
        ("user", "Which sea?"),
    ]


def test_a_tie_or_a_contradiction_of_scores_has_no_strength_and_no_number_spoils_the_others(
    tmp_path: Path,
) -> None:
    scores = [(5, 5), (2, 9), ("4.5", 0.5), (float("nan"), 1), (float("inf"), 1)]
    rows = [
        {"prompt": f"p{i}", "chosen": "a", "rejected": "b", "score_chosen": a, "score_rejected": b}
        for i, (a, b) in enumerate(scores)
    ]
    assert [p.strength for p in read(tmp_path, rows).pairs] == [0.0, 0.0, 1.0, None, None]


def test_ties_are_counted_and_are_not_unusable_rows(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "response": f"{k}", "helpfulness": min(k, i), **HELPFUL}
        for i in range(3)
        for k in (0, 1)
    ]
    file = tmp_path / "ties.jsonl"
    file.write_text("\n".join(map(json.dumps, [rows[0], rows[1], *rows[:2], *rows[2:4]])))
    found = read_preferences(file, limit=0.1)
    assert len(found.pairs) == 1
    assert found.rejected["all tied"] > 1
    file.write_text("\n".join(map(json.dumps, rows[:2])))
    with pytest.raises(DataError, match="all tied: 1"):
        read_preferences(file)


def test_rows_are_counted_once_and_pairs_keep_the_order_of_the_file(tmp_path: Path) -> None:
    found = read(tmp_path, ROWS["HelpSteer2"][0])
    assert found.formats == {"HelpSteer2": 3}
    poor = [message(f"x{i}", "a", "assistant", f"unranked {i}", None) for i in range(9)]
    found = read(tmp_path, [*ROWS["OpenAssistant"][0], *poor], max_pairs=1)
    assert (len(found.pairs), found.rejected.total()) == (1, 0), "what is read later is not counted"


def test_nulls_may_be_left_out_of_a_tree(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if v is not None} for row in ROWS["OpenAssistant"][0]]
    assert len(read(tmp_path, rows).pairs) == 2


@pytest.mark.parametrize(
    "value", [None, [], ["x"], {}, {"a": 1}, 3, "x", True, float("nan"), [["x"]], [{"a": None}]]
)
@pytest.mark.parametrize("name", ROWS)
def test_any_value_in_any_column_is_a_counted_row_or_a_clear_error(
    name: str, value: Any, tmp_path: Path
) -> None:
    rows, how, _ = ROWS[name]
    form = next(f for f in FORMATS if f.name == name)
    for column in form.columns:
        for spoilt in range(len(rows)):
            bad = [{**row, column: value} if i == spoilt else row for i, row in enumerate(rows)]
            try:
                found = read(tmp_path, bad, **how)
            except DataError:
                continue
            assert found.pairs


def test_a_missing_column_is_named_by_the_nearest_format(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'rejected'"):
        read(tmp_path, [{"prompt": "p", "chosen": "a", "reject": "b"}])
    with pytest.raises(DataError, match="no column 'safer_response_id'"):
        read(tmp_path, [{k: v for k, v in ROWS["PKU-SafeRLHF"][0][0].items() if k != "safer_response_id"}])
    with pytest.raises(DataError, match="no column 'chosen'"):
        read(tmp_path, [{"text": "a"}])
