"""Batch and result files of labelling vendors, each in its own format.

Every vendor has one class and one line in `VENDORS`.

Sources: Amazon Mechanical Turk, Requester UI guide (batch files, results files) and Crowd HTML
elements; Scale, API reference, text collection; Surge AI, API and Python SDK (projects, tasks,
responses); Label Studio, task format, Choices and Pairwise tags; Argilla 2, records as lists.
Scale's reference does not show the shape of a task with several responses: the reader expects a
list in `response.responses`.
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
MOST_CELL = 1 << 26  # most characters in a cell
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
    """Interface of a vendor's file formats."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        """Return the files of a batch by name."""

    def read(self, path: Path) -> Iterator[Returned]:
        """Yield the answers in a results file."""


def choice_of(value: Any) -> Choice | None:
    """Return the choice that a string, or a list around one, names; None if it names no choice."""
    while isinstance(value, list) and len(value) == 1:
        value = value[0]
    return SPOKEN.get(str(value).strip().lower()) if isinstance(value, str) else None


def _number(value: Any) -> float | None:
    """Parse a finite number of at least 0, with or without a dollar sign; else return None."""
    try:
        number = float(str(value).strip().lstrip("$"))
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None


def chosen(fields: Mapping[str, Any]) -> Choice | None:
    """Return a worker's choice on Mechanical Turk; None if there is no valid one.

    It is the field `choice`, or the one of `choice.a` ... that is true, or either inside the JSON
    of `taskAnswers`.
    """
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
    """Apply `read` to each record of a JSON list or of JSON lines and yield the answers.

    A record of an unexpected shape yields one answer that cannot be used. Raises DataError for a
    line that is not JSON.
    """
    for number, row in json_rows(path):
        if isinstance(row, str):
            raise DataError(f"{path}, line {number}: no JSON; give the file as it was downloaded")
        try:
            if not isinstance(row, dict):
                raise TypeError("no object")
            found = list(read(row))
        except (AttributeError, KeyError, TypeError, ValueError):
            found = [Returned("", "", None, rejected="a record of an unexpected shape")]
        yield from found


def read_csv(path: Path) -> tuple[list[str], Iterator[dict[str, Any]]]:
    """Read column names and rows of a CSV file, including one saved by a spreadsheet.

    The encoding is any Unicode encoding with a byte order mark, or UTF-8 without one. The separator
    is a comma, semicolon or tab. Raises DataError for malformed CSV.
    """
    text = read_text(path, line_ends=False)  # cells keep their line ends
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
    """Mechanical Turk: a CSV of variables, the HTML of a HIT, and a batch's results as CSV.

    The HTML has a `${variable}` for each column. The results have the columns `Input.VARIABLE` and
    `Answer.FIELD` beside the assignment's own.
    """

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        """Return the CSV of items and the HTML template of a HIT."""
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, ["item_id", "prompt", "answer_a", "answer_b"], lineterminator="\r\n")
        writer.writeheader()
        for item in items:
            # Mechanical Turk inserts variables without escaping, so markup in an answer is escaped here.
            writer.writerow({k: _cell(v) for k, v in item.shown.items()})
        page = (files("burnish.labels") / "mturk.html").read_text(encoding="utf-8")
        page = page.replace(
            "<!-- guidelines -->", MarkdownIt("commonmark", {"html": False}).render(guidelines.text)
        )
        return {"tasks.csv": sheet.getvalue(), "template.html": page}

    def read(self, path: Path) -> Iterator[Returned]:
        """Yield the answers in a results CSV; raise DataError if a required column is missing."""
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
    """Escape a text as HTML in one cell, and a first character that would start a formula."""
    cell = html.escape(text).replace("\n", "<br>")
    return f"&#{ord(cell[0])};{cell[1:]}" if cell[:1] in FORMULA else cell


class Scale:
    """Scale: request bodies for `POST /v1/task/textcollection`, and results as task objects."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        """Return the request bodies, one a line."""
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
        """Yield the answers in a file of task objects."""
        return read_records(path, self._read)

    def _read(self, task: dict[str, Any]) -> Iterator[Returned]:
        item = str(task.get("unique_id") or (task.get("metadata") or {}).get("item_id"))
        response = task.get("response") or {}
        # A task with several responses has a list of them, each by a different worker.
        answers = response.get("responses") or [response]
        for number, answer in enumerate(answers):
            field = (answer.get("annotations") or {}).get("choice") or {}
            value = field.get("response") if isinstance(field, dict) else field
            worker = str(answer.get("worker_id") or answer.get("worker") or f"worker-{number}")
            status = task.get("status")
            refused = None if status in (None, "completed") else f"status {status}"
            yield Returned(item, worker, choice_of(value), _number(answer.get("time_spent")), 0.0, refused)


class Surge:
    """Surge AI: a project that asks `QUESTION`, its tasks, and results as tasks with responses."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        """Return the project and its tasks."""
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
        """Yield the answers in a file of tasks with responses."""
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
    """Label Studio: tasks, the labelling configuration, and results as the JSON export."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        """Return the tasks and the labelling configuration, without guidelines and redundancy."""
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
        """Yield the answers in a JSON export."""
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
    """Return the choice of the only Choices or Pairwise control, or of `choice` among several."""
    found = {
        str(result.get("from_name")): choice_of(value.get("choices", value.get("selected")))
        for result in results
        if result.get("type") in ("choices", "pairwise") and isinstance(value := result.get("value"), dict)
    }
    return found.get("choice") if len(found) != 1 else next(iter(found.values()))


class Argilla:
    """Argilla: records, the settings of their dataset, and results as records with responses."""

    def write(self, items: Sequence[Item], guidelines: Guidelines, redundancy: int) -> dict[str, str]:
        """Return the records and the settings of their dataset."""
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
        """Yield the submitted and discarded answers in a list of records."""
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
