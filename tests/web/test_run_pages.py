"""Runs in a browser: live to their end, what the models say, and people who label and examine."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from burnish.data.store import LabelStore
from burnish.labels.served import EXAMINATION
from burnish.report.timeline import tick_of, timeline
from burnish.runs.directory import RunDirectory
from burnish.runs.files import read_json
from burnish.web.app import make_app
from burnish.web.models import ModelRoom
from burnish.web.projects import Projects
from burnish.web.waiting import project_for, waiting_in
from tests.command import begun
from tests.killing import wait_until
from tests.shared_run import ARGUMENTS
from tests.small_run import SMALL
from tests.web.desk import Person, Watched, joins, serving
from tests.web.test_browser import violations

EXAMINED = ["evaluate.examiner=people", "evaluate.n_selection=10", "evaluate.n_test=10", "ppo.updates=3"]


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, told = process.communicate()
    return process.returncode, told


@pytest.fixture
def runs(short_run: Path, tmp_path: Path) -> Path:
    """A folder with a copy of the short run."""
    shutil.copytree(short_run, tmp_path / "runs" / "short")
    return tmp_path / "runs"


def pages(root: Path) -> FastAPI:
    root.mkdir(exist_ok=True)
    return make_app(
        LabelStore(root / "accounts.sqlite"),
        Projects(lambda name: project_for(root, name), lambda: waiting_in(root)),
        runs=root,
    )


def test_the_list_and_a_runs_page(runs: Path) -> None:
    (runs / "broken").mkdir()
    (runs / "broken" / "manifest.json").write_text("{")
    (runs / "no-run").mkdir()
    root = Person(pages(runs), "Root", "admin")
    table = root.get("/runs").text
    assert "/runs/short" in table
    assert 'class="state done"' in table
    assert "unreadable" in table
    assert "no-run" not in table
    page = root.get("/runs/short").text
    for told in ("Alerts and decisions", "Stress tests of the reward", "Calibration", "KL target", "Samples"):
        assert told in page
    assert "Update 1" in root.get("/runs/short/samples?of=ppo&step=99").text
    assert root.get("/runs/short/samples?of=nothing").status_code == 404
    assert root.get("/compare?a=short&b=short").status_code == 200
    assert Person(pages(runs), "Ada", "annotator").get("/runs").status_code == 403


@pytest.mark.parametrize(
    "name", ["%2e%2e", "..%2fshort", "short%2f..", "no-run", "%2fetc", "accounts.sqlite"]
)
def test_no_name_of_a_run_leads_elsewhere(runs: Path, name: str) -> None:
    (runs / "no-run").mkdir()
    (runs.parent / "manifest.json").write_text("{}")
    root = Person(pages(runs), "Root", "admin")
    for path in ("", "/now", "/live", "/samples", "/inspect", "/chat"):
        assert root.get(f"/runs/{name}{path}").status_code == 404
    assert root.get(f"/compare?a={name}&b=short").status_code == 404
    assert root.get(f"/label/{name}.examination").status_code == 404


def test_hostile_text_in_a_run_stays_text(runs: Path) -> None:
    evil = "<script>alert(1)</script>"
    with (runs / "short" / "events.jsonl").open("a") as file:
        file.write(
            json.dumps({"kind": "alert", "stage": evil, "step": 1, "name": evil, "message": evil}) + "\n"
        )
    file_ = next((runs / "short" / "samples").glob("ppo-*.jsonl"))
    row = json.loads(file_.read_text().splitlines()[0])
    file_.write_text(json.dumps({**row, "prompt": evil, "response": evil}) + "\n")
    stress = read_json(runs / "short" / "stress.json")
    stress["changes"][0]["why"] = stress["changes"][0]["what"] = evil
    (runs / "short" / "stress.json").write_text(json.dumps(stress))
    root = Person(pages(runs), "Root", "admin")
    assert evil not in root.get("/runs/short").text
    assert evil not in root.get("/runs/short/samples").text


def test_events_stand_at_the_update_that_they_belong_to() -> None:
    rows = [
        {"step": s, "attempt": a, "kl": 1.0, "score": 0.1}
        for s, a in ((1, 0), (2, 0), (3, 0), (2, 1), (3, 1))
    ]
    assert tick_of(rows, {"stage": "align", "step": 1}) == 1
    assert tick_of(rows, {"stage": "align", "step": 9}) == 5
    assert tick_of(rows, {"stage": "align", "step": 2, "evidence": {"attempt": 0}}) == 2, "rolled back later"
    assert tick_of(rows, {"stage": "align", "step": 2, "evidence": {"attempt": 1}}) == 4
    assert tick_of(rows, {"stage": "align", "step": 0}) is None
    assert tick_of(rows, {"stage": "reward", "step": 2}) is None
    events = [{"kind": "alert", "stage": "align", "step": 2, "name": "kl", "message": "rose"}]
    drawn = timeline(rows, 2.0, events)
    assert {t["name"] for t in drawn["data"]} == {"reward", "KL", "KL target", "alerts"}
    assert len(drawn["layout"]["shapes"]) == 2  # a roll-back and an alert


@pytest.mark.slow("pages")
@pytest.mark.e2e
@pytest.mark.browser
def test_a_browser_follows_a_run_to_its_end(tmp_path: Path, browser: Any) -> None:
    smaller = [a for s in (*SMALL, "ppo.updates=6", "collect.n_pairs=96") for a in ("--set", s)]
    root = tmp_path / "runs"
    app = pages(root)
    process = begun(*ARGUMENTS, *smaller, "--dir", str(root / "live"))
    with serving(app) as url:
        watched = Watched(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = watched.page
        joins(page, app, url, "Root", "admin")
        wait_until((root / "live" / "manifest.json").exists, process)
        page.goto(f"{url}/runs/live")
        seen = set()
        while page.locator("#now[data-over]").count() == 0:
            seen.add(page.locator("#now .state").first.inner_text())
            page.wait_for_timeout(200)
        code, told = ended(process)
        assert code in (0, 10), told
        page.get_by_text("Done", exact=True).wait_for()
        page.locator("#now .main-svg").first.wait_for()
        assert "Running" in seen
        assert "6 updates" in page.inner_text("#now figcaption")
        assert page.locator("#now .timeline li").count() > 3
        page.reload()
        page.locator("#samples .sample").first.wait_for()
        assert violations(page) == []
    assert watched.problems == []
    assert watched.hosts == {url.removeprefix("http://")}


@pytest.mark.browser
def test_the_inspector_and_the_chat_whose_votes_are_comparisons(runs: Path, browser: Any) -> None:
    app = pages(runs)
    with serving(app) as url:
        watched = Watched(browser.new_context(viewport={"width": 1280, "height": 900}))
        page = watched.page
        joins(page, app, url, "Root", "admin")
        page.goto(f"{url}/runs/short/inspect")
        page.get_by_label("Prompt").fill("One day, Zoe had a red ball.")
        page.get_by_label("Answer").first.fill("She was happy <b>and</b> laughed.")
        page.get_by_label("Another").fill("The ball was bleak.")
        page.get_by_role("button", name="Score").click()
        page.locator("#found section").nth(1).wait_for()
        assert page.locator("#found .tokens").count() == 2
        assert page.locator("#found .tokens span").count() > 10
        assert page.locator("#found b").count() == 0
        assert violations(page) == []
        page.goto(f"{url}/runs/short/chat")
        page.get_by_label("Ask both").fill("One day, Zoe had a red ball.")
        page.get_by_role("button", name="Send").click()
        page.get_by_role("button", name="A is better").wait_for()
        assert not re.search(r"SFT\b|PPO|DPO", page.inner_text("#chat"))
        first = page.inner_text("#chat article .text >> nth=0")
        page.get_by_role("button", name="A is better").click()
        page.get_by_text("Your vote is saved").wait_for()
        assert "SFT" in page.inner_text("#chat")
        assert violations(page) == []
    assert watched.problems == []
    with LabelStore(runs / "short" / "votes.sqlite") as store:
        (label,) = store.labels()
        (asked,) = store.comparisons()
    assert {asked.first.source, asked.second.source} > {"sft"}
    winner = asked.first if label.preference == 1 else asked.second
    assert " ".join(winner.text.split()) == " ".join(first.split())
    assert label.annotator == "person:Root"


def test_a_vote_counts_once_and_is_theirs_alone(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"sft": "one", "ppo": "two"}
    monkeypatch.setattr(ModelRoom, "ask", lambda self, what, *given: said)
    app = pages(runs)
    ada, eve, viewer = Person(app, "Ada"), Person(app, "Eve"), Person(app, "Vera", "viewer")
    page = ada.post("/runs/short/chat", {"text": "hello"}).text
    token = re.findall(r'name="token" value="([^"]+)"', page)[0]
    assert 'name="token"' not in viewer.post("/runs/short/chat", {"text": "hello"}).text
    vote = {"token": token, "choice": "b"}
    assert eve.post("/runs/short/vote", vote).status_code == 409
    assert viewer.post("/runs/short/vote", vote).status_code == 403
    assert ada.post("/runs/short/vote", vote).status_code == 200
    assert ada.post("/runs/short/vote", vote).status_code == 409
    for history in (
        "x",
        '[{"role": "system", "content": "x"}]',
        "{}",
        '["x"]',
        json.dumps([{"role": "user", "content": "x"}] * 50),
    ):
        assert ada.post("/runs/short/chat", {"text": "x", "history": history}).status_code == 422
    monkeypatch.setitem(said, "ppo", said["sft"])
    monkeypatch.delitem(said, "sft")
    assert ada.post("/runs/short/chat", {"text": "x"}).status_code == 422


def _dies() -> None:
    os._exit(1)


def test_a_models_process_that_dies_or_hangs_is_replaced() -> None:
    room = ModelRoom(patience=600.0)
    try:
        with pytest.raises(Exception, match="process died"):
            room.ask(_dies)
        assert room.ask(len, "abc") == 3
        room.patience = 0.2
        with pytest.raises(Exception, match="did not answer"):
            room.ask(time.sleep, 30)
        room.patience = 600.0
        assert room.ask(len, "ab") == 2
        with pytest.raises(ValueError, match="invalid literal"):
            room.ask(int, "x")
    finally:
        room.close()


@pytest.mark.slow("pages")
@pytest.mark.e2e
def test_a_run_that_people_examine_waits_names_its_page_and_goes_on_by_itself(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    app = pages(root)
    path = root / "people"
    sets = [a for s in EXAMINED for a in ("--set", s)]
    first = begun(*ARGUMENTS, *sets, "--dir", str(path))
    code, told = ended(first)
    assert code == 12, told
    assert f"`burnish serve {root}` has a page" in told
    frozen = (path / "examination_answers.json").read_bytes()
    with serving(app) as url:
        app.state.desk.projects.announce(url)
        ada = Person(app, "Ada")
        root_ = Person(app, "Root", "admin")
        assert "/label/people.examination" in ada.get("/projects").text
        assert ada.get("/").headers["location"] == "/label/people.examination"
        waiting = begun(*ARGUMENTS, *sets, "--dir", str(path), "--wait")
        assert waiting.stderr is not None
        asked_at = f"They are asked at {url}/label/people.examination"
        assert any(asked_at in line for line in waiting.stderr)
        assert RunDirectory.open(path).stage_state("evaluate") == "waiting"
        page = root_.get("/runs/people").text
        assert "/label/people.examination" in page
        seen = ""
        n = 0
        while (task := ada.json("/label/people.examination/next")["next"]) is not None:
            seen += json.dumps(task)
            choice = (
                "flag" if n == 0 else "b2" if len(task["responses"][0]) > len(task["responses"][1]) else "a2"
            )
            data = {"task": task["task"], "key": f"key-{n:08d}", "choice": choice}
            assert ada.json("/label/people.examination/save", data)["saved"]
            n += 1
        ada.post("/label/people.examination/finish")
        code, told = ended(waiting)
    assert code in (0, 10), told
    assert not re.search(r"\b(sft|ppo|dpo)\b", seen, re.I)
    assert (path / "examination_answers.json").read_bytes() == frozen
    evaluation = read_json(path / "evaluation.json")
    assert evaluation["examiner"] == "blind panel of 1 person"
    assert evaluation["judge"] == {"people": 1, "answers": n - 1, "flagged": 1}
    assert evaluation["provisional"] is False
    assert sum(p["abstained"] for p in evaluation["policies"].values() if "abstained" in p) == 1
    with LabelStore(path / EXAMINATION) as store:
        assert {label.annotator for label in store.labels()} == {"person:Ada"}
        votes = {c.id: c for c in store.comparisons()}
        wins = [
            (votes[x.comparison_id].first if x.preference == 1 else votes[x.comparison_id].second)
            for x in store.labels()
        ]
    ours = sum(w.source != "sft" for w in wins)
    policies = [p for name, p in evaluation["policies"].items() if name != "sft"]
    told_wins = sum(p[s]["win_rate"] * p[s]["n"] - 0.0 for p in policies for s in ("selection", "test"))
    same = sum(p[s]["n"] for p in policies for s in ("selection", "test")) - len(wins)
    assert told_wins == pytest.approx(ours + same / 2)
