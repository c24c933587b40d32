"""Round trips through every vendor's shape: what workers prefer comes back as what they preferred."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from burnish.commands.label_vendors import KEY, export_batch, import_batch, unlabelled
from burnish.data.preferences import write_preferences
from burnish.data.store import LabelStore
from burnish.errors import DataError, RunError
from burnish.labels.items import read_key
from burnish.labels.vendors import QUESTION, TITLES, VENDORS, choice_of
from burnish.records import Comparison, Preference, Prompt, Response

Chooses = Callable[[dict[str, str]], str]
N = 40


def comparisons() -> list[Comparison]:
    """The better answer is the one that says so; it stands first in a third of them."""
    found = []
    for i in range(N):
        good, bad = Response(f"good {i} <b>&\nline"), Response(f'bad {i}, "quoted"')
        found.append(Comparison(Prompt(f"request {i}"), *((good, bad) if i % 3 == 0 else (bad, good))))
    return found


def shown(folder: Path, vendor: str) -> list[dict[str, str]]:
    """The items of a batch, from the vendor's own files alone."""
    if vendor == "mturk":
        rows = csv.DictReader(io.StringIO((folder / "tasks.csv").read_text(encoding="utf-8"), newline=""))
        return [{k: html.unescape(v.replace("<br>", "\n")) for k, v in row.items()} for row in rows]
    if vendor == "scale":
        tasks = [json.loads(line) for line in (folder / "tasks.jsonl").read_text().splitlines()]
        return [
            {
                "item_id": t["unique_id"],
                **dict(
                    zip(
                        ("prompt", "answer_a", "answer_b"),
                        (a["content"].split("\n\n", 1)[1] for a in t["attachments"]),
                        strict=True,
                    )
                ),
            }
            for t in tasks
        ]
    if vendor == "argilla":
        return [
            {"item_id": r["id"], **r["fields"]} for r in json.loads((folder / "records.json").read_text())
        ]
    key = {"surge": "fields", "label-studio": "data"}[vendor]
    return [task[key] for task in json.loads((folder / "tasks.json").read_text())]


def mturk(rows: list[tuple[dict[str, str], str, str]]) -> str:
    out = io.StringIO()
    fields = ["HITId", "AssignmentId", "WorkerId", "AssignmentStatus", "WorkTimeInSeconds", "Reward"]
    writer = csv.DictWriter(out, [*fields, "Input.item_id", "Answer.choice", "Approve", "Reject"])
    writer.writeheader()
    for i, (item, worker, choice) in enumerate(rows):
        writer.writerow(
            {
                "HITId": f"H{i}",
                "AssignmentId": f"A{i}",
                "WorkerId": worker,
                "AssignmentStatus": "Submitted",
                "WorkTimeInSeconds": "30",
                "Reward": "$0.05",
                "Input.item_id": item["item_id"],
                "Answer.choice": choice,
            }
        )
    return out.getvalue()


def scale(rows: list[tuple[dict[str, str], str, str]]) -> str:
    def annotated(choice: str) -> dict[str, Any]:
        return {"choice": {"type": "category", "field_id": "choice", "response": [[choice]]}}

    tasks = [
        {
            "task_id": f"t{i}",
            "type": "textcollection",
            "status": "completed",
            "unique_id": item["item_id"],
            "metadata": {"item_id": item["item_id"]},
            "response": {"responses": [{"worker_id": worker, "annotations": annotated(choice)}]},
        }
        for i, (item, worker, choice) in enumerate(rows)
    ]
    return "".join(json.dumps(t) + "\n" for t in tasks)


def surge(rows: list[tuple[dict[str, str], str, str]]) -> str:
    spoken = {str(k): v for k, v in TITLES.items()}
    tasks = [
        {
            "id": f"t{i}",
            "project_id": "p",
            "fields": item,
            "responses": [
                {
                    "id": f"r{i}",
                    "data": {QUESTION: spoken.get(choice, choice)},
                    "time_spent_in_secs": 30,
                    "completed_at": "2026-01-01T00:00:00Z",
                    "worker_id": worker,
                }
            ],
        }
        for i, (item, worker, choice) in enumerate(rows)
    ]
    return json.dumps(tasks)


def label_studio(rows: list[tuple[dict[str, str], str, str]]) -> str:
    tasks = []
    for i, (item, worker, choice) in enumerate(rows):
        if i % 2:
            value: dict[str, Any] = {"type": "choices", "value": {"choices": [choice]}}
        else:
            value = {
                "type": "pairwise",
                "value": {"selected": {"a": "left", "b": "right"}.get(choice, choice)},
            }
        result = {"id": f"x{i}", "from_name": "choice", "to_name": "prompt", **value}
        annotation = {
            "id": i,
            "completed_by": {"id": 7, "email": worker},
            "was_cancelled": choice == "skip",
            "lead_time": 30.0,
            "result": [] if choice == "skip" else [result],
        }
        tasks.append({"id": i, "data": item, "annotations": [annotation]})
    return json.dumps(tasks)


def argilla(rows: list[tuple[dict[str, str], str, str]]) -> str:
    records = []
    for item, worker, choice in rows:
        status = "discarded" if choice == "skip" else "submitted"
        answer = {"value": None if choice == "skip" else choice, "user_id": worker, "status": status}
        fields = {k: v for k, v in item.items() if k != "item_id"}
        records.append({"id": item["item_id"], "fields": fields, "responses": {"choice": [answer]}})
    return json.dumps(records)


RESULTS = {"mturk": mturk, "scale": scale, "surge": surge, "label-studio": label_studio, "argilla": argilla}
assert RESULTS.keys() == VENDORS.keys()


def prefers_good(item: dict[str, str]) -> str:
    return "a" if item["answer_a"].startswith("good") else "b"


def exported(tmp_path: Path, vendor: str, **more: Any) -> tuple[Path, Path, list[dict[str, str]]]:
    store, folder = tmp_path / "labels.sqlite", tmp_path / "batch"
    with LabelStore(store) as labels:
        labels.add_comparisons(comparisons())
    settings = {
        "n": None,
        "only": None,
        "redundancy": 2,
        "gold": None,
        "gold_share": 0.1,
        "guidelines": None,
        "seed": 0,
    }
    export_batch(store, folder, vendor, **{**settings, **more})
    return store, folder, shown(folder, vendor)


def results(tmp_path: Path, vendor: str, rows: list[tuple[dict[str, str], str, str]]) -> Path:
    file = tmp_path / f"results.{'csv' if vendor == 'mturk' else 'json'}"
    file.write_text(RESULTS[vendor](rows), encoding="utf-8", newline="")
    return file


@pytest.mark.parametrize("vendor", VENDORS)
def test_what_workers_prefer_comes_back_whichever_side_it_stood_on(tmp_path: Path, vendor: str) -> None:
    """Two workers; about half of the items are shown the other way round, so that a side that is not put back shows."""
    store, folder, items = exported(tmp_path, vendor)
    assert len(items) == N
    key, told = read_key(folder / KEY)
    swapped = sum(item.swapped for item in key.values())
    assert 10 < swapped < 30
    assert "swapped" not in "".join(p.read_text() for p in folder.iterdir() if p.name != KEY)
    originals = {r for c in comparisons() for r in (c.first.text, c.second.text)}
    assert {x for i in items for x in (i["answer_a"], i["answer_b"])} == originals, (
        "texts arrive as they were"
    )
    rows = [(item, worker, prefers_good(item)) for item in items for worker in ("w1", "w2")]
    file = results(tmp_path, vendor, rows)
    report = import_batch(store, folder, file, vendor, 0.7, 0.02)
    assert (report["rows"], report["new_labels"], report["workers"]) == (2 * N, 2 * N, 2)
    assert report["cost"] == pytest.approx(2 * N * (0.05 if vendor == "mturk" else 0.02))
    with LabelStore(store) as labels:
        first = {c.id: c.first.text for c in labels.comparisons()}
        for label in labels.labels():
            assert label.preference == float(first[label.comparison_id].startswith("good"))
            assert (label.source, label.guidelines) == ("human", told)
            assert label.annotator.startswith(f"{vendor}:w")
        assert all(p.chosen.startswith("good") for p in labels.preferences())
        assert told in labels.guidelines()
    assert import_batch(store, folder, file, vendor, 0.7, 0.02)["new_labels"] == 0


@pytest.mark.parametrize("vendor", VENDORS)
def test_ties_and_skips_and_rows_that_cannot_be_used(tmp_path: Path, vendor: str) -> None:
    store, folder, items = exported(tmp_path, vendor)
    rows = [
        (items[0], "w1", "tie"),
        (items[1], "w1", "skip"),
        (items[2], "w1", "perhaps"),
        ({**items[3], "item_id": "no-such-item"}, "w1", "a"),
        (items[4], "w1", prefers_good(items[4])),
    ]
    if vendor == "label-studio":
        rows[0], rows[1] = rows[1], rows[0]  # a tie is no choice of the Pairwise tag, which has the even rows
    file = results(tmp_path, vendor, rows)
    report = import_batch(store, folder, file, vendor, 0.7, 0.0)
    assert (report["labels"], report["skipped"]) == (2, 1)
    assert report["rejected"] == {"unreadable choice": 1, "unknown item": 1}
    kept = [json.loads(x) for x in file.with_suffix(".rejected.jsonl").read_text().splitlines()]
    assert {row["reason"] for row in kept} == {"unreadable choice", "unknown item"}
    with LabelStore(store) as labels:
        assert sorted(label.preference in (0.0, 1.0) for label in labels.labels()) == [False, True]


def test_who_fails_gold_questions_gives_no_labels(tmp_path: Path) -> None:
    gold = tmp_path / "gold.jsonl"
    write_preferences([Preference(Prompt(f"sum {i}"), f"good {i}", "bad") for i in range(12)], gold)
    store, folder, items = exported(tmp_path, "surge", gold=gold, gold_share=0.2)
    assert len(items) == N + 10, "10 of 50 are a fifth"
    assert [i["prompt"].startswith("sum") for i in items] != sorted(
        i["prompt"].startswith("sum") for i in items
    )
    rows = [(item, "careful", prefers_good(item)) for item in items]
    rows += [(item, "always-a", "a") for item in items]
    report = import_batch(store, folder, results(tmp_path, "surge", rows), "surge", 0.7, 0.0)
    assert report["rejected"] == {"worker fails gold questions": N + 10}
    assert report["labels"] == report["new_labels"] == N
    assert report["gold_answers"] == 20
    with LabelStore(store) as labels:
        assert {label.annotator for label in labels.labels()} == {"surge:careful"}


def test_a_batch_holds_only_what_has_no_label_and_what_was_selected(tmp_path: Path) -> None:
    store, folder, items = exported(tmp_path, "mturk", n=10)
    rows = [(item, "w", prefers_good(item)) for item in items]
    import_batch(store, folder, results(tmp_path, "mturk", rows), "mturk", 0.7, 0.0)
    with LabelStore(store) as labels:
        left = unlabelled(labels)
        assert len(left) == N - 10
        selection = tmp_path / "selection.jsonl"
        named = [left[5].id, left[2].id, "unknown"]
        selection.write_text("".join(json.dumps({"comparison": i}) + "\n" for i in named))
        assert [c.id for c in unlabelled(labels, selection)] == named[:2]


def test_errors_name_what_is_wrong(tmp_path: Path) -> None:
    store, folder, items = exported(tmp_path, "mturk")
    with pytest.raises(RunError, match="a batch has one key"):
        exported(tmp_path, "mturk")
    wrong = tmp_path / "other.csv"
    wrong.write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column Input\.item_id, WorkerId"):
        import_batch(store, folder, wrong, "mturk", 0.7, 0.0)
    wrong.write_text("{}\n")
    with pytest.raises(DataError, match="is not the key of a batch"):
        read_key(wrong)
    broken = tmp_path / "broken.json"
    broken.write_text('[{"id": 1},')
    with pytest.raises(DataError, match="no JSON"):
        import_batch(store, folder, broken, "surge", 0.7, 0.0)
    other = tmp_path / "other.sqlite"
    LabelStore(other).close()
    file = results(tmp_path, "mturk", [(items[0], "w", "a")])
    with pytest.raises(DataError, match="not the store that this batch came from"):
        import_batch(other, folder, file, "mturk", 0.7, 0.0)
    refused = io.StringIO(file.read_text())
    rows = list(csv.DictReader(refused))
    assert rows[0]["Answer.choice"] == "a"


def test_choices_are_read_in_every_spelling() -> None:
    assert [choice_of(v) for v in ("A", "Answer B", [["tie"]], "left", ["I cannot judge"])] == [
        "a",
        "b",
        "tie",
        "a",
        "skip",
    ]
    assert choice_of("maybe") is choice_of(None) is choice_of(["a", "b"]) is None
