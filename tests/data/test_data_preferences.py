"""Preference formats: what goes in comes out, and every row that does not is counted with its line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from burnish.data.preferences import read_demonstrations, read_preferences, write_preferences
from burnish.data.prompts import read_prompts, split_pairs, split_prompts
from burnish.errors import DataError
from burnish.records import Message, Preference, Prompt

REAL = Path(__file__).parents[2] / "examples" / "data" / "hh_harmless_500.jsonl.gz"
CHAT = Prompt.from_messages([Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Why?")])


def write(path: Path, rows: list[object]) -> Path:
    path.write_text(
        "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n", encoding="utf-8"
    )
    return path


@pytest.mark.parametrize("name", ["p.jsonl", "p.jsonl.gz", "p.parquet"])
@pytest.mark.parametrize("prompt", [Prompt("Say é"), CHAT])
def test_round_trip(tmp_path: Path, name: str, prompt: Prompt) -> None:
    pairs = [Preference(prompt, "good", "bad"), Preference(prompt, "fine 日本", "poor")]
    write_preferences(pairs, tmp_path / name)
    assert read_preferences(tmp_path / name).pairs == pairs


@pytest.mark.parametrize(("name", "kind"), [("p.jsonl", "json"), ("p.parquet", "parquet")])
def test_exports_load_with_datasets(tmp_path: Path, name: str, kind: str) -> None:
    import datasets

    write_preferences([Preference(CHAT, "good", "bad")], tmp_path / name)
    loaded = datasets.load_dataset(
        kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert loaded[0]["chosen"] == [{"role": "assistant", "content": "good"}]
    assert [m["content"] for m in loaded[0]["prompt"]] == ["Hi", "Yes?", "Why?"]


def test_formats_mean_the_same(tmp_path: Path) -> None:
    turns = [{"role": m.role, "content": m.content} for m in CHAT.messages]
    answer = {"role": "assistant", "content": "Because."}
    other = {"role": "assistant", "content": "No."}
    rows = [
        {"prompt": turns, "chosen": [answer], "rejected": [other]},
        {"chosen": [*turns, answer], "rejected": [*turns, other]},
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: Because.",
            "rejected": "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Why?\n\nAssistant: No.",
        },
    ]
    for row in rows:
        result = read_preferences(write(tmp_path / "x.jsonl", [row]))
        assert result.pairs == [Preference(CHAT, "Because.", "No.")]


YES = {"role": "assistant", "content": "Yes?"}
WHY = {"role": "user", "content": "Why?"}
HI = {"role": "user", "content": "Hi"}
BECAUSE, NO = ({"role": "assistant", "content": text} for text in ("Because.", "No."))
BRIEF = {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize("prompt", ["Hi", [HI]])
@pytest.mark.parametrize(
    ("shared", "expected"),
    [
        ([HI, YES, WHY], [HI, YES, WHY]),  # the prompt is repeated
        ([YES, WHY], [HI, YES, WHY]),  # the turns go on from it
        ([BRIEF, HI, YES, WHY], [BRIEF, HI, YES, WHY]),  # it comes after a system turn
        ([], [HI]),
    ],
)
def test_turns_between_prompt_and_reply_are_kept(
    tmp_path: Path, prompt: object, shared: list[object], expected: list[dict[str, str]]
) -> None:
    row = {"prompt": prompt, "chosen": [*shared, BECAUSE], "rejected": [*shared, NO]}
    (pair,) = read_preferences(write(tmp_path / "x.jsonl", [row])).pairs
    assert pair.prompt == Prompt.from_messages([Message(**m) for m in expected])
    assert (pair.chosen, pair.rejected) == ("Because.", "No.")


def test_sides_that_part_before_their_last_reply_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "Hi", "chosen": [YES, WHY, BECAUSE], "rejected": [NO, WHY, NO]}
    good = {"prompt": "Hi", "chosen": [BECAUSE], "rejected": [NO]}
    result = read_preferences(write(tmp_path / "x.jsonl", [row, good]))
    assert result.rejected == {"no shared prompt": 1}


@pytest.mark.parametrize("name", ["p.jsonl", "p.parquet"])
def test_answers_that_were_cut_off_stay_so(tmp_path: Path, name: str) -> None:
    pairs = [Preference(Prompt("p"), "a", "b", chosen_ended=False), Preference(Prompt("q"), "a", "b")]
    write_preferences(pairs, tmp_path / name)
    assert read_preferences(tmp_path / name).pairs == pairs
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "rejected_ended": "no"}, {**ROW, "chosen": "c"}]
    result = read_preferences(write(tmp_path / "x.jsonl", rows))
    assert result.rejected == {"ended is neither true nor false": 1}


ROW = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("name", ["pairs-v1.5", "owner/pairs-v1.5"])
def test_a_data_sets_name_may_have_a_dot(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda asked, split: [ROW] if asked == name else [])
    assert read_preferences(name).pairs == [Preference(Prompt("p"), "a", "b")]


@pytest.mark.parametrize("name", ["pairs.csv", "data/of/mine/pairs.v2", "/nowhere/pairs"])
def test_what_can_only_be_a_file_is_asked_of_no_hub(name: str) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_preferences(name)


def test_every_unusable_row_is_counted_with_line_and_reason(tmp_path: Path) -> None:
    good = {"prompt": "p", "chosen": "a", "rejected": "b"}
    rows: list[object] = [
        good,
        {"prompt": "p", "chosen": "same", "rejected": "same "},
        {"prompt": "p", "chosen": "", "rejected": "b"},
        "{broken",
        good,
        {"prompt": " ", "chosen": "a", "rejected": "b"},
        {"prompt": "p", "chosen": 3, "rejected": "b"},
        {"prompt": "long", "chosen": "x" * 50, "rejected": "b"},
        "[1, 2]",
    ]
    out = tmp_path / "rejected.jsonl"
    result = read_preferences(
        write(tmp_path / "x.jsonl", rows),
        limit=0.95,
        rejected_to=out,
        misfit=lambda pair: "too long" if max(len(pair.chosen), len(pair.rejected)) > 20 else None,
    )
    assert (result.rows, len(result.pairs)) == (9, 1)
    found = {(r["line"], r["reason"]) for r in map(json.loads, out.read_text().splitlines())}
    assert found == {
        (2, "identical sides"),
        (3, "empty answer"),
        (4, "malformed JSON"),
        (5, "duplicate"),
        (6, "empty prompt"),
        (7, "chosen is a number, not text"),
        (8, "too long"),
        (9, "not an object"),
    }
    assert result.rejected.total() == 8


def test_too_many_unusable_rows_stop_the_import_and_the_file_of_them_stays(tmp_path: Path) -> None:
    rows: list[object] = [{"prompt": "p", "chosen": "a", "rejected": "a"}] * 3
    rows.append({"prompt": "p", "chosen": "a", "rejected": "b"})
    out = tmp_path / "rejected.jsonl"
    with pytest.raises(DataError, match=r"3 of 4 rows.*identical sides: 3 \(e.g. line 1\)"):
        read_preferences(write(tmp_path / "x.jsonl", rows), limit=0.5, rejected_to=out)
    assert len(out.read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"prompt": "p", "choosen": "a", "rejected": "b"}\n', "rename column 'choosen' to 'chosen'"),
        (b'{"prompt": "p", "chosen": "a"}\n', "no column 'rejected'"),
        (
            b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt": "\xe9"}\n',
            "line 2: byte 13 is not UTF-8",
        ),
        (b"\n\n", "no rows"),
    ],
)
def test_bad_files_say_what_and_where(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_preferences(file)


def test_missing_file_names_its_neighbours(tmp_path: Path) -> None:
    write(tmp_path / "preferences.jsonl", [])
    with pytest.raises(DataError, match=r"did you mean preferences\.jsonl"):
        read_preferences(tmp_path / "preference.jsonl")


def test_a_truncated_gzip_file_is_said_to_be_one(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 50)
    (tmp_path / "x.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_preferences(tmp_path / "x.jsonl.gz")


def test_an_unknown_data_set_name_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(DataError, match="neither a file"):
        read_preferences("no-such/data-set-at-all")


def test_demonstrations(tmp_path: Path) -> None:
    rows: list[object] = [
        {"prompt": "p", "completion": "c"},
        {"messages": [{"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}]},
    ]
    first, second = read_demonstrations(write(tmp_path / "d.jsonl", rows))
    assert first == (Prompt("p"), "c")
    assert second == (Prompt.from_messages([Message("user", "u")]), "a")
    with pytest.raises(DataError, match="line 2"):
        read_demonstrations(write(tmp_path / "d.jsonl", [rows[0], {"prompt": "p"}]))


def test_prompts_from_text_and_json(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("one\ntwo\none\n\n")
    assert read_prompts(tmp_path / "p.txt") == [Prompt("one"), Prompt("two")]
    rows: list[object] = [{"turns": ["first", "second"]}, {"prompt": "x"}, {"instruction": "y"}]
    prompts = read_prompts(write(tmp_path / "p.jsonl", rows))
    assert [p.text for p in prompts] == ["User: first", "x", "y"]
    with pytest.raises(DataError, match=r"line 1: no prompt in \['other'\]"):
        read_prompts(write(tmp_path / "p.jsonl", [{"other": 1}]))


def test_a_prompt_never_changes_sides() -> None:
    prompts = [Prompt(f"prompt number {i}") for i in range(600)]
    whole = split_prompts(prompts, selection_share=0.15, test_share=0.3)
    part = split_prompts(prompts[100:300], selection_share=0.15, test_share=0.3)
    assert set(part.test) == set(whole.test) & set(prompts[100:300])
    assert 0.25 < len(whole.test) / 600 < 0.35
    assert 0.1 < len(whole.selection) / 600 < 0.2
    alike = split_prompts([Prompt("Prompt  NUMBER 7!")], selection_share=0.15, test_share=0.3)
    sides = [
        bool(whole.__getattribute__(s) and prompts[7] in getattr(whole, s))
        for s in ("train", "selection", "test")
    ]
    assert sides == [bool(alike.train), bool(alike.selection), bool(alike.test)]


def test_dialogues_that_begin_alike_share_a_side() -> None:
    """By the first thing a user says, as plain text or as a dialogue of any length, with a system turn or without."""
    for i in range(40):
        first = f"What is question {i} about?"
        alike = [
            Prompt(f"what is  Question {i} about"),
            Prompt.from_messages([Message("user", first)]),
            Prompt.from_messages([Message("system", "Be brief."), Message("user", first)]),
            Prompt.from_messages(
                [Message("user", first), Message("assistant", "x"), Message("user", str(i))]
            ),
        ]
        splits = split_prompts(alike, selection_share=0.3, test_share=0.4)
        assert sorted(map(len, (splits.train, splits.selection, splits.test))) == [0, 0, 4]
        parts = split_pairs([Preference(p, "a", "b") for p in alike], {"members": 0.5, "watcher": 0.5})
        assert sorted(map(len, parts.values())) == [0, 4]
    assert Prompt("?!").group != Prompt("…").group, "a prompt of punctuation alone is a prompt of its own"


def test_pairs_of_a_prompt_stay_together() -> None:
    pairs = [Preference(Prompt(f"p{i % 40}"), f"a{i}", f"b{i}") for i in range(200)]
    parts = split_pairs(pairs, {"members": 0.6, "watcher": 0.4})
    owners = {name: {p.prompt.text for p in part} for name, part in parts.items()}
    assert owners["members"].isdisjoint(owners["watcher"])
    assert sum(map(len, parts.values())) == 200
    with pytest.raises(ValueError, match="must add up to 1"):
        split_pairs(pairs, {"a": 0.5})


def test_every_row_of_the_real_pairs_is_accounted_for() -> None:
    result = read_preferences(REAL)
    assert (result.rows, len(result.pairs), result.rejected.total()) == (500, 500, 0)
    dialogues = [p for p in result.pairs if len(p.prompt.messages) > 1]
    assert 50 < len(dialogues) < 450
    assert all(p.prompt.messages[-1].role == "user" for p in dialogues)


RANKED: dict[str, Any] = {
    "prompt": "Say a colour.",
    "responses": ["blue", "green", "seven", "red, and also"],
    "ended": [True, True, True, False],
    "ranking": [[1], [0, 3], [2]],
}


def test_a_ranking_is_a_pair_for_every_two_answers_of_different_tiers(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(RANKED) + "\n")
    result = read_preferences(file)
    assert [(p.chosen, p.rejected) for p in result.pairs] == [
        ("green", "blue"),
        ("green", "red, and also"),
        ("green", "seven"),
        ("blue", "seven"),
        ("red, and also", "seven"),
    ]
    assert [(p.chosen_ended, p.rejected_ended) for p in result.pairs][1] == (True, False)
    assert result.pairs[4].chosen_ended is False
    assert {p.prompt.text for p in result.pairs} == {"Say a colour."}
    assert result.rows == 5


def test_a_ranking_of_messages_and_pairs_of_it_that_do_not_fit(tmp_path: Path) -> None:
    row = {**RANKED, "prompt": [{"role": "user", "content": "Say a colour."}]}
    del row["ended"]
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(row) + "\n")
    result = read_preferences(file, misfit=lambda p: "too long" if "red" in p.chosen + p.rejected else None)
    assert len(result.pairs) == 3
    assert all(p.prompt.messages and p.chosen_ended and p.rejected_ended for p in result.pairs)
    assert result.rejected == {"too long": 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ranking": [[1], [0, 4], [2]]}, "ranking does not fit the responses"),
        ({"ranking": [[1], [0, 1], [2]]}, "ranking does not fit the responses"),
        ({"ranking": [1, 0, 2]}, "ranking does not fit the responses"),
        ({"ranking": [["a"], ["b"]]}, "ranking does not fit the responses"),
        ({"ranking": []}, "ranking does not fit the responses"),
        ({"ended": [True]}, "ranking does not fit the responses"),
        ({"ended": ["yes"] * 4}, "ended is neither true nor false"),
        ({"ranking": [[0, 1, 2, 3]]}, "all tied"),
        ({"responses": ["a", 1, "b", "c"]}, "a response is a number, not text"),
        ({"prompt": None}, "empty prompt"),
    ],
)
def test_a_ranking_that_cannot_be_used_says_why(tmp_path: Path, change: dict, reason: str) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps(RANKED) + "\n" + json.dumps(RANKED | change) + "\n")
    result = read_preferences(file, rejected_to=tmp_path / "no.jsonl")
    assert result.rejected == {reason: 1}
    assert json.loads((tmp_path / "no.jsonl").read_text())["line"] == 2


def test_rankings_without_responses_name_what_is_there(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({"prompt": "x", "response": [], "ranking": []}) + "\n")
    with pytest.raises(DataError, match=r"no column 'responses'.* rename column 'response' to 'responses'"):
        read_preferences(file)


def test_a_limit_of_pairs_holds_within_a_ranking(tmp_path: Path) -> None:
    file = tmp_path / "rankings.jsonl"
    row = {"prompt": "q", "responses": ["a", "b", "c"], "ranking": [[0], [1], [2]]}
    file.write_text(json.dumps(row) + "\n")
    assert len(read_preferences(file).pairs) == 3
    assert len(read_preferences(file, max_pairs=2).pairs) == 2
