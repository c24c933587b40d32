"""What a project has come to, and how it goes in and out."""

from __future__ import annotations

import json
from pathlib import Path

from burnish.data.store import LabelStore
from burnish.labels.tasks import Rules
from burnish.web.dashboard import by_day
from tests.web.desk import Person, comparisons, opened


def answered(app: object, n: int, names: tuple[str, ...] = ("Ada", "Bob")) -> None:
    for name in names:
        person = Person(app, name)  # type: ignore[arg-type]
        for _ in range(n):
            person.save(person.next()["task"], "a1", reason="why not")
        person.post("/label/p/finish")


def test_it_shows_labels_cost_and_agreement(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(6), Rules(each=2, practice=0, pay=0.25, budget=9.0))
    root = Person(app, "Root", "admin")
    assert "No label has come in yet" in root.get("/dashboard/p").text
    assert "no labels yet" in root.get("/dashboard/p/agreement").text
    answered(app, 6)
    page = root.get("/dashboard/p")
    assert "6 of 6" in page.text
    assert "3.00 $" in page.text
    assert "of a budget of 9.00 $" in page.text
    assert "style-src 'self' 'unsafe-inline'" in page.headers["content-security-policy"]
    assert "script-src 'self';" in page.headers["content-security-policy"]
    assert "Krippendorff" in root.get("/dashboard/p/agreement").text
    with LabelStore(tmp_path / "s.sqlite") as store:
        assert [(r["annotator"], r["labels"], r["cost"]) for r in by_day(store)] == [
            ("person:Ada", 6, 1.5),
            ("person:Bob", 6, 1.5),
        ]


def test_what_was_exported_can_be_imported_elsewhere(tmp_path: Path) -> None:
    app = opened(tmp_path / "a.sqlite", comparisons(4), Rules(each=2, practice=0))
    answered(app, 4)
    root = Person(app, "Root", "admin")
    out = {
        shape: root.get(f"/dashboard/p/export?as={shape}")
        for shape in ("labels", "pairs", "rankings", "remarks")
    }
    assert {s: len(r.text.splitlines()) for s, r in out.items()}["labels"] == 8
    assert all(json.loads(line)["reason"] == "why not" for line in out["remarks"].text.splitlines())
    assert out["labels"].headers["content-disposition"].endswith('"p-labels.jsonl"')
    other = opened(tmp_path / "b.sqlite", [])
    admin = Person(other, "Root", "admin")
    reply = admin.post("/dashboard/p/import", files={"file": ("../../x.jsonl", out["labels"].content)})
    assert reply.status_code == 200
    assert "labels: 8" in reply.text
    with LabelStore(tmp_path / "b.sqlite") as copy, LabelStore(tmp_path / "a.sqlite") as first:
        assert [x.preference for x in copy.labels()] == [x.preference for x in first.labels()]
    assert not (tmp_path.parent / "x.jsonl").exists()


def test_questions_are_imported_and_asked_at_once(tmp_path: Path) -> None:
    app = opened(tmp_path / "a.sqlite", [])
    root, ada = Person(app, "Root", "admin"), Person(app, "Ada")
    assert ada.next() is None
    rows = [{"prompt": "p", "responses": ["a", "b"]}, {"prompt": "q", "responses": ["a", "b"]}]
    content = "\n".join(map(json.dumps, rows)).encode()
    assert "comparisons: 2" in root.post("/dashboard/p/import", files={"file": ("q.jsonl", content)}).text
    assert ada.next()["prompt"][0]["content"] == "p"
    pairs = b'{"prompt": "r", "chosen": "good", "rejected": "bad"}'
    assert "comparisons: 1" in root.post("/dashboard/p/import", files={"file": ("q.jsonl", pairs)}).text
    for name, bad in (("q.jsonl", b"nonsense"), ("q.csv", pairs), ("q.jsonl", b"")):
        assert root.post("/dashboard/p/import", files={"file": (name, bad)}).status_code == 422
