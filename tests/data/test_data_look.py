"""`burnish data look`: what data were recognised as, what is dropped, and pairs as the model reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from burnish.config.loading import load_config
from burnish.data.store import LabelStore
from burnish.models.load import load_model
from burnish.records import Comparison, Label, Prompt, Response
from tests.command import burnish


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [
        {
            "prompt": "Once upon a time",
            "response_1": " She sang.",
            "response_2": " No.",
            "preference_strength": -3,
        },
        {
            "prompt": "Tom had a dog",
            "response_1": " It " + "ran " * 300,
            "response_2": " Yes.",
            "preference_strength": 1,
        },
        {"prompt": "Lily saw a cat", "response_1": " Up.", "response_2": " Down.", "preference_strength": 0},
        {"prompt": "The old man", "response_1": " He slept.", "response_2": None, "preference_strength": 1},
    ]
    path = tmp_path / "graded.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_what_a_file_is_and_what_is_dropped(file: Path) -> None:
    found = json.loads(burnish("data", "look", str(file), "--json").stdout)
    assert [(f["name"], f["rows"]) for f in found["formats"]] == [("HelpSteer2 preferences", 4)]
    assert (found["pairs"], found["prompts"], found["graded"]) == (2, 2, 2)
    assert {d["reason"]: d["first_line"] for d in found["dropped"]} == {
        "all tied": 3,
        "response_2 is null, not text": 4,
    }
    assert [pair["strength"] for pair in found["shown"]] == [1.0, pytest.approx(1 / 3)]
    shown = burnish("data", "look", str(file)).stdout
    assert "4 rows of the format HelpSteer2 preferences" in shown
    assert "dropped 1: all tied (first: line 3)" in shown


def test_with_a_configuration_pairs_are_as_the_model_reads_them(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(f"label: {{source: imported, preferences: {file}}}\ndata: {{prompts: preferences}}\n")
    found = json.loads(burnish("data", "look", "--config", str(config), "--json").stdout)
    (pair,) = found["shown"]
    codec = load_model(load_config(config).model, weights=False)[1]
    ids = codec.encode_response(" She sang.", to=Prompt("Once upon a time"))
    assert pair["chosen"] == codec.tokenizer.decode(ids)
    assert pair["chosen"] != " She sang.", "the end-of-sequence token is shown"
    assert pair["tokens"]["chosen"] == len(ids)
    assert {d["reason"] for d in found["dropped"]} >= {"too long"}


def test_line_separators_in_a_dropped_row(tmp_path: Path) -> None:
    file = tmp_path / "odd.jsonl"
    rows = [{"prompt": "a\u2028b\u0085c", "chosen": "x", "rejected": "x"}]
    rows.append({"prompt": "p", "chosen": "x", "rejected": "y"})
    file.write_text("\n".join(map(json.dumps, rows)))
    found = json.loads(burnish("data", "look", str(file), "--json").stdout)
    assert found["dropped"] == [{"reason": "identical sides", "count": 1, "first_line": 1}]


def test_without_a_file_it_says_what_to_name() -> None:
    done = burnish("data", "look", check=False)
    assert done.returncode == 3
    assert "label.preferences" in done.stderr


def test_strengths_of_labels_are_shares_of_the_largest_of_their_source(tmp_path: Path) -> None:
    compared = [Comparison(Prompt(f"p{i}"), Response("a"), Response("b")) for i in range(3)]
    with LabelStore(tmp_path / "s.sqlite") as store:
        store.add_comparisons(compared)
        store.add_labels(
            [
                Label(compared[0].id, "ann", 1.0, "human", strength=3.0),
                Label(compared[0].id, "bob", 1.0, "human", strength=1.0),
                Label(compared[1].id, "file", 1.0, "imported", strength=0.5),
                Label(compared[2].id, "ann", 1.0, "human"),
            ]
        )
        found = {p.prompt.text: p.strength for p in store.preferences()}
    assert found == {"p0": pytest.approx(2 / 3), "p1": 1.0, "p2": None}
