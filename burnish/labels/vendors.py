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
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol

from markdown_it import MarkdownIt

from burnish.data.guidelines import Guidelines
from burnish.data.lines import read_text
from burnish.data.text import Unusable, json_rows, parse_json
from burnish.errors import DataError
from burnish.labels.items import CHOICES, Choice, Item, Returned

FORMULA = tuple("=+-@\t\r")
MOST_CELL = 1 << 26  # characters of a cell
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
    """A finite number from 0 up, dollar sign or not; None where there is none."""
    try:
        number = float(str(value).strip().lstrip("$"))
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def chosen(fields: Mapping[str, Any]) -> Choice | None:
    """A worker's choice on Mechanical Turk: the field `choice`, one of `choice.a` ... that is true, or either inside
    the JSON of `taskAnswers`."""
    if fields.get("taskAnswers"):
        try:
            inside = parse_json(fields["taskAnswers"])
        except Unusable:
            return None
        first = inside[0] if isinstance(inside, list) and inside else inside
        if not isinstance(first, dict):
            return None
        value = first.get("choice")
        picked = [c for c in CHOICES if isinstance(value, dict) and value.get(c) is True]
        return picked[0] if len(picked) == 1 else choice_of(value)
    picked = [c for c in CHOICES if str(fields.get(f"choice.{c}", "")).lower() == "true"]
    return picked[0] if len(picked) == 1 else choice_of(fields.get("choice"))


def read_records(path: Path, read: Callable[[dict[str, Any]], Iterator[Returned]]) -> Iterator[Returned]:
    """What `read` finds in each record of a JSON list, or of JSON lines. A record of another shape is one answer that
    cannot be used."""
    for number, row in json_rows(path):
        if isinstance(row, str):
            raise DataError(f"{path}, line {number}: no JSON; give the file as it was downloaded")
        try:
            if not isinstance(row, dict):
                raise TypeError("no object")
            found = list(read(row))
        except (AttributeError, KeyError, TypeError, ValueError):
            found = [Returned("", "", None, rejected="a record of another shape")]
        yield from found


def read_csv(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Column names and rows of a CSV file, as a spreadsheet may have saved it: any Unicode encoding with a byte order
    mark, UTF-8 without; separated by commas, semicolons or tabs."""
    text = read_text(path, line_ends=False)  # cells keep theirs
    header = text.split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    csv.field_size_limit(MOST_CELL)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        return list(rows.fieldnames or ()), iter(list(rows))
    except csv.Error as error:
        raise DataError(f"{path}, line {rows.line_num}: {error}; give the CSV as it was downloaded") from None


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
            writer.writerow({k: _cell(v) for k, v in item.shown.items()})
        page = (files("burnish.labels") / "mturk.html").read_text(encoding="utf-8")
        page = page.replace(
            "<!-- guidelines -->", MarkdownIt("commonmark", {"html": False}).render(guidelines.text)
        )
        return {"tasks.csv": sheet.getvalue(), "template.html": page}

    def read(self, path: Path) -> Iterator[Returned]:
        columns, rows = read_csv(path)
        missing = {"Input.item_id", "WorkerId"} - set(columns)
        if missing:
            raise DataError(
                f"{path} has no column {', '.join(sorted(missing))}; give the CSV that Mechanical Turk's "
                "`Download CSV` made of this batch"
            )
        for row in rows:
            fields = {
                name.removeprefix("Answer."): row[name] for name in columns if name.startswith("Answer.")
            }
            yield Returned(
                row["Input.item_id"] or "",
                row["WorkerId"] or "",
                chosen(fields),
                _number(row.get("WorkTimeInSeconds")),
                _number(row.get("Reward")) or 0.0,
                row.get("Reject") or ("rejected" if row.get("AssignmentStatus") == "Rejected" else None),
            )


def _cell(text: str) -> str:
    """A text as HTML in one cell. A first character by which a spreadsheet knows a formula is written as its entity."""
    cell = html.escape(text).replace("\n", "<br>")
    return f"&#{ord(cell[0])};{cell[1:]}" if cell[:1] in FORMULA else cell


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
        return read_records(path, self._read)

    def _read(self, task: dict[str, Any]) -> Iterator[Returned]:
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
            yield Returned(item, worker, choice_of(value), _number(answer.get("time_spent")), 0.0, refused)


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
        return read_records(path, self._read)

    def _read(self, task: dict[str, Any]) -> Iterator[Returned]:
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
        return read_records(path, self._read)

    def _read(self, task: dict[str, Any]) -> Iterator[Returned]:
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
    """The choice in an annotation's results: of the control that `write` made, or of the only one there is, a Choices
    or Pairwise tag."""
    found = {
        str(result.get("from_name")): choice_of(value.get("choices", value.get("selected")))
        for result in results
        if result.get("type") in ("choices", "pairwise") and isinstance(value := result.get("value"), dict)
    }
    return found.get("choice") if len(found) != 1 else next(iter(found.values()))


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
        return read_records(path, self._read)

    def _read(self, record: dict[str, Any]) -> Iterator[Returned]:
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
