"""What vendors take and give back, each in its own shape. One class and one line in `VENDORS` a vendor.

Sources: Amazon Mechanical Turk, Requester UI guide (batch files, results files) and Crowd HTML elements; Scale, API
reference, text collection (where a task has several responses its reference does not show their shape: a list in
`response.responses` is what is read); Surge AI, API and Python SDK (projects, tasks, responses); Label Studio, task
format, Choices and Pairwise tags; Argilla 2, records as lists.
"""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from markdown_it import MarkdownIt

from burnish.data.guidelines import Guidelines
from burnish.data.lines import must_exist
from burnish.errors import DataError
from burnish.labels.items import CHOICES, Choice, Item, Returned

QUESTION = "Which answer is better?"
TITLES: dict[Choice, str] = {
    "a": "Answer A",
    "b": "Answer B",
    "tie": "No difference",
    "skip": "I cannot judge",
}
SPOKEN: dict[str, Choice] = {
    **{c: c for c in CHOICES},
    **{title.lower(): c for c, title in TITLES.items()},
    "left": "a",
    "right": "b",
}


class Vendor(Protocol):
    """`write` gives the files of a batch by name; `read` the answers in a results file."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]: ...

    def read(self, path: Path) -> Iterator[Returned]: ...


def choice_of(value: Any) -> Choice | None:
    """What a worker chose, from a string or a list around one; None where it is none of the choices."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return SPOKEN.get(str(value).strip().lower()) if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """A number, dollar sign or not; None where there is none."""
    try:
        return float(str(value).strip().lstrip("$"))
    except ValueError:
        return None


def _rows(path: Path) -> list[Any]:
    """The records of a JSON list, or of JSON lines."""
    must_exist(path)
    text = path.read_text(encoding="utf-8-sig")
    try:
        if text.lstrip().startswith("["):
            found = json.loads(text)
        else:
            found = [json.loads(line) for line in text.split("\n") if line.strip()]
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: no JSON ({error.msg}); give the file as it was downloaded"
        ) from None
    assert isinstance(found, list)
    return found


def _jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps(rows, ensure_ascii=False, indent=1) + "\n"


class MechanicalTurk:
    """A CSV with a column a variable, the HTML of a HIT with `${variable}` in it; results as a batch's CSV, whose
    columns are `Input.VARIABLE` and `Answer.FIELD` beside the assignment's own."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, ["item_id", "prompt", "answer_a", "answer_b"], lineterminator="\r\n")
        writer.writeheader()
        for item in items:
            # Variables are put into the page as they are: markup in an answer must not become the page's.
            writer.writerow({k: html.escape(v).replace("\n", "<br>") for k, v in item.shown.items()})
        page = (files("burnish.labels") / "mturk.html").read_text(encoding="utf-8")
        page = page.replace(
            "<!-- guidelines -->", MarkdownIt("commonmark", {"html": False}).render(guidelines.text)
        )
        return {"tasks.csv": sheet.getvalue(), "template.html": page}

    def read(self, path: Path) -> Iterator[Returned]:
        must_exist(path)
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file)
            needed = {"Input.item_id", "WorkerId"}
            missing = needed - set(rows.fieldnames or ())
            if missing:
                raise DataError(
                    f"{path} has no column {', '.join(sorted(missing))}; give the CSV that Mechanical Turk's "
                    "`Download CSV` made of this batch"
                )
            for row in rows:
                picked = [c for c in CHOICES if str(row.get(f"Answer.choice.{c}")).lower() == "true"]
                yield Returned(
                    row["Input.item_id"],
                    row["WorkerId"] or "",
                    picked[0] if len(picked) == 1 else choice_of(row.get("Answer.choice")),
                    _number(row.get("WorkTimeInSeconds")),
                    _number(row.get("Reward")) or 0.0,
                    row.get("Reject") or ("rejected" if row.get("AssignmentStatus") == "Rejected" else None),
                )


class Scale:
    """Bodies for `POST /v1/task/textcollection`, one a line; results as task objects."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        choices = [{"label": TITLES[c], "value": c} for c in CHOICES]
        field = {
            "type": "category",
            "field_id": "choice",
            "title": QUESTION,
            "required": True,
            "choices": choices,
        }
        rows = [
            {
                "unique_id": item.id,
                "instruction": guidelines.text,
                "attachments": [
                    {"type": "text", "content": f"## Request\n\n{item.prompt}"},
                    {"type": "text", "content": f"## Answer A\n\n{item.answer_a}"},
                    {"type": "text", "content": f"## Answer B\n\n{item.answer_b}"},
                ],
                "fields": [field],
                "responses_required": redundancy,
                "metadata": {"item_id": item.id},
            }
            for item in items
        ]
        return {"tasks.jsonl": _jsonl(rows)}

    def read(self, path: Path) -> Iterator[Returned]:
        for task in _rows(path):
            item = str(task.get("unique_id") or (task.get("metadata") or {}).get("item_id"))
            response = task.get("response") or {}
            # With several responses a task holds a list of them, each by a worker of its own.
            answers = response.get("responses") or [response]
            for number, answer in enumerate(answers):
                field = (answer.get("annotations") or {}).get("choice") or {}
                value = field.get("response") if isinstance(field, dict) else field
                worker = str(answer.get("worker_id") or answer.get("worker") or f"worker-{number}")
                status = task.get("status")
                refused = None if status in (None, "completed") else f"status {status}"
                yield Returned(
                    item, worker, choice_of(value), _number(answer.get("time_spent")), 0.0, refused
                )


class Surge:
    """Tasks of a project whose question is `QUESTION`, by their fields; results as tasks with responses."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        project = {
            "name": "Compare two answers",
            "instructions": guidelines.text,
            "num_workers_per_task": redundancy,
            "questions": [
                {"type": "multiple_choice", "text": QUESTION, "options": [TITLES[c] for c in CHOICES]}
            ],
            "fields_template": "{{prompt}}\n\nAnswer A:\n{{answer_a}}\n\nAnswer B:\n{{answer_b}}",
        }
        return {
            "project.json": json.dumps(project, ensure_ascii=False, indent=1) + "\n",
            "tasks.json": _json([{"fields": item.shown} for item in items]),
        }

    def read(self, path: Path) -> Iterator[Returned]:
        for task in _rows(path):
            item = str((task.get("fields") or {}).get("item_id"))
            for answer in task.get("responses") or []:
                yield Returned(
                    item,
                    str(answer.get("worker_id") or ""),
                    choice_of((answer.get("data") or {}).get(QUESTION)),
                    _number(answer.get("time_spent_in_secs")),
                )


class LabelStudio:
    """Tasks with their data, and the labelling configuration; results as the JSON export."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        choices = "\n    ".join(f'<Choice value="{c}" alias="{c}" html="{TITLES[c]}"/>' for c in CHOICES)
        config = f"""<View>
  <Header value="{QUESTION}"/>
  <Text name="prompt" value="$prompt"/>
  <Text name="answer_a" value="$answer_a"/>
  <Text name="answer_b" value="$answer_b"/>
  <Choices name="choice" toName="prompt" choice="single-radio" required="true">
    {choices}
  </Choices>
</View>
"""
        return {"tasks.json": _json([{"data": item.shown} for item in items]), "labeling.xml": config}

    def read(self, path: Path) -> Iterator[Returned]:
        for task in _rows(path):
            item = str((task.get("data") or {}).get("item_id"))
            for annotation in task.get("annotations") or []:
                by = annotation.get("completed_by")
                worker = str(by.get("email") or by.get("id") if isinstance(by, dict) else by or "")
                yield Returned(
                    item,
                    worker,
                    "skip" if annotation.get("was_cancelled") else _pairwise(annotation.get("result") or []),
                    _number(annotation.get("lead_time")),
                )


def _pairwise(results: Sequence[Mapping[str, Any]]) -> Choice | None:
    """The choice in an annotation's results: of a Choices tag, or of a Pairwise tag."""
    for result in results:
        value = result.get("value") or {}
        if result.get("type") == "choices":
            return choice_of(value.get("choices"))
        if result.get("type") == "pairwise":
            return choice_of(value.get("selected"))
    return None


class Argilla:
    """Records with fields, and the settings of their dataset; results as a list of records with responses."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        settings = {
            "guidelines": guidelines.text,
            "fields": [{"name": name, "type": "text"} for name in ("prompt", "answer_a", "answer_b")],
            "questions": [{"name": "choice", "title": QUESTION, "type": "label", "labels": TITLES}],
            "distribution": {"min_submitted": redundancy},
        }
        rows = [
            {"id": item.id, "fields": {k: v for k, v in item.shown.items() if k != "item_id"}}
            for item in items
        ]
        return {
            "records.json": _json(rows),
            "settings.json": json.dumps(settings, ensure_ascii=False, indent=1) + "\n",
        }

    def read(self, path: Path) -> Iterator[Returned]:
        for record in _rows(path):
            for answer in (record.get("responses") or {}).get("choice") or []:
                if answer.get("status") in (None, "submitted", "discarded"):
                    discarded = answer.get("status") == "discarded"
                    yield Returned(
                        str(record.get("id")),
                        str(answer.get("user_id") or ""),
                        "skip" if discarded else choice_of(answer.get("value")),
                    )


VENDORS: dict[str, Callable[[], Vendor]] = {
    "mturk": MechanicalTurk,
    "scale": Scale,
    "surge": Surge,
    "label-studio": LabelStudio,
    "argilla": Argilla,
}
