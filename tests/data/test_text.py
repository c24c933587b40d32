"""Text from outside: every file that brings some, against every oddity that files really have."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.commands.chat import parse
from burnish.commands.reward_score import read_answers
from burnish.data.exchange import load_labels, load_questions
from burnish.data.guidelines import load_guidelines
from burnish.data.lines import read_lines, read_text
from burnish.data.preferences import read_demonstrations, read_preferences
from burnish.data.prompts import read_prompts, read_references
from burnish.data.rankings import read_rankings
from burnish.data.store import LabelStore
from burnish.data.text import (
    Rejected,
    Unusable,
    content_of,
    json_rows,
    message_of,
    number_of,
    parse_json,
    prompt_of,
    reply_of,
)
from burnish.errors import DataError
from burnish.labels.vendors import VENDORS
from burnish.monitor.callback import plain
from burnish.monitor.logs import read_log

HALF = "half a \ud83d character"
PARTS = [{"type": "text", "text": "What is "}, {"type": "text", "text": "two?"}]
Read = Callable[[Path], tuple[int, int]]  # how many rows are used, how many are counted as rejected


def prompts(path: Path) -> tuple[int, int]:
    bad = Rejected()
    return len(read_prompts(path, rejected=bad)), len(bad.notes)


def demonstrations(path: Path) -> tuple[int, int]:
    bad = Rejected()
    return len(read_demonstrations(path, rejected=bad)), len(bad.notes)


def preferences(path: Path) -> tuple[int, int]:
    found = read_preferences(path)
    return len(found.pairs), found.rejected.total()


def labels(path: Path) -> tuple[int, int]:
    path.with_suffix(".sqlite").unlink(missing_ok=True)
    with LabelStore(path.with_suffix(".sqlite")) as store:
        found = load_labels(store, path)
    return found.labels, found.rejected.total()


def questions(path: Path) -> tuple[int, int]:
    path.with_suffix(".sqlite").unlink(missing_ok=True)
    with LabelStore(path.with_suffix(".sqlite")) as store:
        found = load_questions(store, path)
    return found["comparisons"], sum(int(str(n).split(",")[0]) for n in found["rejected"].values())


def rankings(path: Path) -> tuple[int, int]:
    found, bad = read_rankings(path)
    return len(found), sum(bad.values())


ENTRIES: dict[str, tuple[Read, Callable[[Any, int], dict[str, Any]]]] = {
    "prompts": (prompts, lambda prompt, n: {"prompt": prompt}),
    "demonstrations": (demonstrations, lambda prompt, n: {"prompt": prompt, "completion": f"c {n}"}),
    "preferences": (preferences, lambda prompt, n: {"prompt": prompt, "chosen": "good", "rejected": "bad"}),
    "labels": (
        labels,
        lambda prompt, n: {
            "prompt": prompt,
            "responses": ["a", "b"],
            "preference": 1.0,
            "annotator": "ann",
        },
    ),
    "questions": (questions, lambda prompt, n: {"prompt": prompt, "responses": ["a", "b"]}),
    "rankings": (
        rankings,
        lambda prompt, n: {"prompt": prompt, "responses": ["a", "b"], "ranking": [[0], [1]]},
    ),
}


def rows_of(make: Callable[[Any, int], dict[str, Any]], odd: Any) -> list[dict[str, Any]]:
    """Four plain rows, the odd one third."""
    return [make(odd if i == 2 else f"question {i}", i) for i in range(4)]


def turns(**more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": "Why?", **more}]


ODD_PROMPTS: list[tuple[str, Any, int]] = [
    ("half a character", HALF, 1),
    ("half a character in a turn", turns(content=HALF), 1),
    ("a NUL character", "a\x00b", 1),
    ("null", None, 1),
    ("a number", 7, 1),
    ("an object", {"a": 1}, 1),
    ("an empty list", [], 1),
    ("a turn that is text", ["Why?", 3], 1),
    ("content of null", turns(content=None), 1),
    ("an image", turns(content=[{"type": "image", "image": "x.png"}]), 1),
    ("calls of tools", turns(tool_calls=[{"name": "weather"}]), 1),
    ("no role", [{"content": "Why?"}], 1),
    ("content parts", turns(content=PARTS), 0),
    ("from and value", [{"from": "human", "value": "Why?"}], 0),
    ("keys that say nothing", turns(id="7", weight=1.0, tool_calls=None), 0),
    ("white space at the edges", "  Why?\n", 0),
    ("control tokens as text", "<|pad|><|eos|> Why?", 0),
]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize(("odd", "rejected"), [o[1:] for o in ODD_PROMPTS], ids=[o[0] for o in ODD_PROMPTS])
def test_an_odd_row_is_read_or_counted(tmp_path: Path, entry: str, odd: Any, rejected: int) -> None:
    read, make = ENTRIES[entry]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows_of(make, odd)))
    assert read(file) == (4 - rejected, rejected)


FORMS: dict[str, Callable[[str], bytes]] = {
    "a byte order mark": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "UTF-16 of the other order": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "Windows line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "empty lines": lambda text: ("\n\n" + text.replace("\n", "\n\n")).encode(),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("array", [False, True])
def test_a_file_is_read_whatever_program_saved_it(tmp_path: Path, entry: str, form: str, array: bool) -> None:
    read, make = ENTRIES[entry]
    rows = rows_of(make, "caf\u00e9 \u65e5\u672c")
    text = (
        json.dumps(rows, indent=1, ensure_ascii=False)
        if array
        else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    )
    file = tmp_path / ("rows.json" if array else "rows.jsonl")
    file.write_bytes(FORMS[form](text))
    assert read(file) == (4, 0)


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_broken_line_is_counted_and_another_encoding_names_line_byte_and_remedy(
    tmp_path: Path, entry: str
) -> None:
    read, make = ENTRIES[entry]
    lines = [json.dumps(row) for row in rows_of(make, "question 2")]
    file = tmp_path / "rows.jsonl"
    for broken in ('{"prompt": "cut', "[" * 100_000, "7" * 5000):
        file.write_text("\n".join([*lines, broken]))
        assert read(file) == (4, 1)
    file.write_bytes("\n".join(lines).encode() + b'\n{"prompt": "caf\xe9"}')
    with pytest.raises(DataError, match=r"line 5: byte 16 is not UTF-8; save the file as UTF-8"):
        read(file)


def test_other_files_of_text(tmp_path: Path) -> None:
    file = tmp_path / "t.txt"
    file.write_bytes(b"\xef\xbb\xbfBe brief.")
    assert load_guidelines(str(file)).text == "Be brief."
    assert list(read_lines(file)) == [(1, "Be brief.")]
    packed = tmp_path / "t.txt.gz"
    packed.write_bytes(gzip.compress("one\ntwo".encode("utf-16")))
    assert list(read_lines(packed)) == [(1, "one"), (2, "two")]
    packed.write_bytes(gzip.compress(b"one")[:-4])
    with pytest.raises(DataError, match="not a complete gzip file"):
        read_text(packed)
    with pytest.raises(DataError, match="is a folder; give a file"):
        read_text(tmp_path)
    file.write_text('{"data": [\n{"prompt": "a"}\n]}')
    (tmp_path / "o.json").write_text('{\n"data": [{"prompt": "a"}]\n}')
    with pytest.raises(DataError, match="holds one JSON object with data; give a list of rows"):
        list(json_rows(tmp_path / "o.json"))


def test_references_and_answers_to_score() -> None:
    rows = [
        {"prompt": "p", "response": "text"},
        {"prompt": turns(), "response": [{"role": "assistant", "content": PARTS}], "ended": False},
    ]
    for text in ("\n".join(json.dumps(r) for r in rows), json.dumps(rows, indent=1)):
        answers = read_answers(text, None)
        assert [(a[1], a[2]) for a in answers] == [("text", True), ("What is two?", False)]
    assert [a[1] for a in read_answers("one\n\ntwo\n", "p")] == ["one", "two"]
    for odd, why in (
        ({"prompt": "p", "response": None}, "line 2: response is null, not text"),
        ({"prompt": "p", "response": 3}, "line 2: response is a number"),
        ({"prompt": "p"}, "line 2: response is null"),
        ({"prompt": "p", "response": HALF}, "line 2: a text has half a character"),
        ({"prompt": "p", "response": "r", "ended": "no"}, "line 2: ended is neither"),
    ):
        with pytest.raises(DataError, match=why):
            read_answers(json.dumps(rows[0]) + "\n" + json.dumps(odd), None)


def test_references_name_the_row(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    file.write_text(json.dumps({"prompt": HALF, "reference": "x"}))
    with pytest.raises(DataError, match="line 1: a text has half a character in it"):
        read_references(file)


def test_a_prompt_in_chat_is_text_unless_it_is_a_dialogue() -> None:
    assert parse("[INST] hello [/INST]").text == "[INST] hello [/INST]"
    assert parse("[1, 2, 3]").text == "[1, 2, 3]"
    assert parse("[" * 5000).messages == ()
    assert parse(json.dumps(turns())).messages[0].content == "Why?"
    with pytest.raises(DataError, match="cannot be read"):
        parse(json.dumps(turns(content=None)))


def test_what_a_trainer_hands_over_is_read_as_far_as_it_is_text() -> None:
    assert plain(turns(content=PARTS)) == "What is two?"
    assert plain([{"role": "assistant", "content": None}, {"role": "assistant"}]) == "\n"
    assert plain(None) == ""
    assert plain(HALF).encode()


def test_numbers() -> None:
    import numpy as np

    assert number_of(np.float32(0.5)) == 0.5
    assert number_of(np.int64(3)) == 3.0
    assert str(number_of("NaN")) == "nan"
    assert number_of("-Infinity") == float("-inf")
    for none in (True, None, "0.5", [1], {}, np.array([1.0, 2.0]), 10**400):
        assert number_of(none) is None, none


def test_turns_and_contents() -> None:
    assert message_of({"from": "gpt", "value": "x"}).role == "assistant"
    assert content_of(PARTS) == "What is two?"
    assert reply_of([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]) == "b"
    with pytest.raises(Unusable, match="does not end in an answer"):
        reply_of(turns())
    with pytest.raises(Unusable, match="a turn has 'tool_calls', which is not supported"):
        prompt_of(turns(tool_calls=[1]))
    with pytest.raises(Unusable, match="malformed JSON"):
        parse_json("7" * 5000)


def test_a_prompt_is_found_in_a_dialogue_whatever_white_space_is_around_it(tmp_path: Path) -> None:
    said = [{"role": "user", "content": "Why? "}, {"role": "assistant", "content": "Because."}]
    row = {"prompt": "Why?", "chosen": said, "rejected": [said[0], {"role": "assistant", "content": "No."}]}
    (tmp_path / "p.jsonl").write_text(json.dumps(row))
    (pair,) = read_preferences(tmp_path / "p.jsonl").pairs
    assert len(pair.prompt.messages) == 1


@pytest.mark.parametrize("vendor", VENDORS)
@pytest.mark.parametrize("record", [None, 7, {"responses": 3, "annotations": 3, "response": "x", "data": []}])
def test_a_vendors_record_of_another_shape_is_one_answer_that_cannot_be_used(
    tmp_path: Path, vendor: str, record: Any
) -> None:
    if vendor == "mturk":
        return
    file = tmp_path / "results.json"
    file.write_text(json.dumps([record, {"id": 1}]))
    found = list(VENDORS[vendor]().read(file))
    assert all(row.choice is None for row in found)


def test_a_sheet_is_read_as_a_spreadsheet_saves_it(tmp_path: Path) -> None:
    sheet = "Input.item_id,WorkerId,Answer.choice.a,Reward\ni1,W1,true,$0.10\ni2,W2,false,nan\n"
    file = tmp_path / "r.csv"
    for text, form in (
        (sheet, "utf-8-sig"),
        (sheet.replace(",", "\t"), "utf-16"),
        (sheet.replace(",", ";"), "utf-8"),
    ):
        file.write_bytes(text.encode(form))
        first, second = VENDORS["mturk"]().read(file)
        assert (first.item_id, first.worker, first.choice, first.cost) == ("i1", "W1", "a", 0.1)
        assert (second.choice, second.cost) == (None, 0.0)
    file.write_bytes(sheet.replace("W1", "Jos\u00e9").encode("cp1252"))
    with pytest.raises(DataError, match=r"r\.csv, line 2: byte 7 is not UTF-8; .*choose 'CSV UTF-8'"):
        list(VENDORS["mturk"]().read(file))


def test_logs(tmp_path: Path) -> None:
    rows = [{"step": 1, "reward": 0.5}, {"step": 2, "reward": 0.6}]
    file = tmp_path / "log.jsonl"
    for text in ("\n".join(json.dumps(r) for r in rows), json.dumps(rows)):
        file.write_bytes(b"\xef\xbb\xbf" + text.encode())
        assert read_log(file) == rows
    file.write_text("[" * 100_000)
    assert read_log(file) == [], "as what a process that was killed had begun"


def test_a_store_that_could_not_be_made_is_made_once_there_is_room(tmp_path: Path) -> None:
    """Files may not grow over 40 KiB in the first process: the schema is made whole or not at all."""
    code = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from burnish.data.store import LabelStore\n"
        "from burnish.errors import DataError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40 * 1024, 40 * 1024))\n"
        "try:\n"
        "    LabelStore(Path(sys.argv[1]))\n"
        "except DataError as error:\n"
        "    print(error)\n"
    )
    place = tmp_path / "s.sqlite"
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)], capture_output=True, text=True, check=True
    )
    assert "cannot be reached" in done.stdout, done.stdout + done.stderr
    with LabelStore(place) as store:
        assert store.count()["comparisons"] == 0


def test_one_annotators_second_different_answer_is_a_contradiction(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "preference": 1.0, "annotator": "ann"}
    rows = [row, row | {"preference": 0.0}, row, row | {"annotator": "bob"}]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    with LabelStore(tmp_path / "s.sqlite") as store:
        found = load_labels(store, tmp_path / "l.jsonl")
    assert (found.labels, found.contradicting) == (2, 1)


def test_odd_labels_are_counted(tmp_path: Path) -> None:
    row = {"prompt": "p", "responses": ["a", "b"], "preference": 1.0, "annotator": "ann"}
    odd: list[dict[str, Any]] = [
        {"annotator": HALF},
        {"models": [HALF, "m"]},
        {"guidelines": "g\x00"},
        {"seconds": 10**400},
        {"cost": -1},
        {"strength": float("nan")},
    ]
    rows = [row | {"prompt": f"p {i}"} | change for i, change in enumerate([*odd, *[{}] * 6])]
    (tmp_path / "l.jsonl").write_text("\n".join(json.dumps(r) for r in rows))
    assert labels(tmp_path / "l.jsonl") == (6, 6)
    tied = {"prompt": "p", "responses": ["a", "b"], "ranking": [[0, 1], []]}
    file = tmp_path / "r.jsonl"
    file.write_text("\n".join(json.dumps(r) for r in [tied, tied | {"ranking": [[0], [1]]}]))
    assert preferences(file) == (1, 1)


def test_repetitions_do_not_make_a_file_look_bad(tmp_path: Path) -> None:
    bad = Rejected()
    file = tmp_path / "p.jsonl"
    file.write_text("\n".join(json.dumps({"prompt": p}) for p in ["a"] * 9 + [None]))
    assert len(read_prompts(file, rejected=bad)) == 1
    assert (bad.read, len(bad.notes)) == (9, 1)


def test_line_ends_of_windows_make_no_other_guidelines(tmp_path: Path) -> None:
    one, other = tmp_path / "a.md", tmp_path / "b.md"
    one.write_bytes(b"Be brief.\nBe right.\n")
    other.write_bytes(b"Be brief.\r\nBe right.\r\n")
    assert load_guidelines(str(one)).id == load_guidelines(str(other)).id
