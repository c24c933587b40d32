"""Faults that users of the pages and servers met, each with the input that showed it."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from burnish.config.label import LabelConfig, without_password
from burnish.config.loading import load_config
from burnish.config.ppo import FunctionReward
from burnish.data.guidelines import Guidelines
from burnish.data.store import LabelStore
from burnish.errors import Busy, DataError
from burnish.labels.items import Item
from burnish.labels.served import leave_note, page_of, take_note_back
from burnish.labels.vendors import VENDORS
from burnish.report.embed import in_script
from burnish.runs.directory import RunDirectory
from burnish.web import protocol
from burnish.web.accounts import Accounts, Denied, is_common, open_accounts, skeleton
from burnish.web.app import make_app
from burnish.web.app_state import session_cookie
from burnish.web.models import ModelRoom
from burnish.web.projects import Projects
from tests.web.desk import PASSWORD, Person, accounts, comparisons, made, opened


def test_a_name_cannot_end_the_script_that_it_stands_in() -> None:
    evil = "<!--<script></script>"
    assert "<" not in in_script({"name": evil})
    assert json.loads(in_script({"name": evil})) == {"name": evil}


def test_a_server_that_stops_leaves_the_note_of_another(tmp_path: Path) -> None:
    place = tmp_path / "labels.sqlite"
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        theirs = f"http://127.0.0.1:{other.getsockname()[1]}"
        leave_note(place, "http://127.0.0.1:1", "p")
        leave_note(place, theirs, "p")
        take_note_back(place, "http://127.0.0.1:1", "p")
        assert page_of(place) == f"{theirs}/label/p"
        take_note_back(place, theirs, "p")
        assert page_of(place) is None


def test_model_questions_are_turned_away_before_they_take_all_threads() -> None:
    room = ModelRoom(waiting=1)
    go_on = threading.Event()

    def slow(*_: Any) -> str:
        go_on.wait(10)
        return "said"

    room._ask = slow  # type: ignore[method-assign, assignment]
    threads = [threading.Thread(target=room.ask, args=(print,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    while room._asked < 2:
        time.sleep(0.01)
    with pytest.raises(Busy, match="2 questions are before yours"):
        room.ask(print)
    go_on.set()
    for thread in threads:
        thread.join()
    assert room.ask(print) == "said"


@pytest.mark.parametrize("sent", [b"", b"GET /health HTTP/1.1\r\nHost: loc"])
def test_a_connection_that_sends_no_whole_head_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    import uvicorn

    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        config = uvicorn.Config(app, http=protocol.Patient, log_level="warning", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            with socket.create_connection(listening.getsockname()) as client:
                client.sendall(sent)
                client.settimeout(10)
                assert client.recv(100) == b"", "closed by the server"
            with socket.create_connection(listening.getsockname()) as client:
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in client.recv(100)
        finally:
            server.should_exit = True
            thread.join()


def test_a_database_that_is_locked_and_any_failure_answer_in_words_with_all_headers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    person = Person(app, "Ada")

    def locked(*_: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("database is locked"))

    monkeypatch.setattr(app.state.desk.projects, "offered", locked)
    reply = person.get("/projects")
    assert (reply.status_code, "busy or away" in reply.text) == (503, True)
    assert "content-security-policy" in reply.headers

    def broken(*_: Any) -> None:
        raise KeyError("inside")

    monkeypatch.setattr(app.state.desk.projects, "offered", broken)
    reply = person.get("/projects")
    assert (reply.status_code, "inside" in reply.text) == (500, False)
    assert "content-security-policy" in reply.headers


# Secrets


@pytest.mark.parametrize(
    ("url", "shown", "password"),
    [
        ("postgresql+psycopg://u:p%40w@host/db", "postgresql+psycopg://u@host/db", "p@w"),
        ("postgresql+psycopg://u@host/db?password=x&sslmode=require", None, "x"),
        ("postgresql+psycopg://u@host/db", "postgresql+psycopg://u@host/db", None),
        ("postgresql+psycopg://u:p/w@host/db", "postgresql+psycopg://u@host/db", "p/w"),
    ],
)
def test_a_password_is_taken_out_of_a_url(url: str, shown: str | None, password: str | None) -> None:
    found = without_password(url)
    assert found == (shown or "postgresql+psycopg://u@host/db?sslmode=require", password)


def test_no_file_of_a_run_holds_the_password_of_its_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "")  # so that it is put back afterwards
    monkeypatch.delenv("PGPASSWORD")
    config = load_config(None, ["label.store=postgresql+psycopg://u:hunter22@host/db"])
    run = RunDirectory.create_or_open(tmp_path / "run", config)
    run.freeze()
    assert "hunter22" not in (tmp_path / "run" / "run.yaml").read_text()
    assert os.environ["PGPASSWORD"] == "hunter22", "PostgreSQL's clients read it there"
    assert LabelConfig(store="a.sqlite").store == "a.sqlite"


def test_an_address_with_a_password_is_refused() -> None:
    with pytest.raises(ValueError, match="token_env"):
        FunctionReward(url="http://user:secret@host:8765")


# Accounts


def test_accounts_lie_in_a_file_of_their_own_that_its_user_alone_may_read(tmp_path: Path) -> None:
    place = tmp_path / "labels.sqlite"
    with LabelStore(place) as store:
        old = Accounts(store)
        old.join(old.invite("admin", "test"), "Ada", PASSWORD)
    with open_accounts(place) as store:
        assert [a.name for a in Accounts(store).everybody()] == ["Ada"], "those of an older version move"
        Accounts(store).check("Ada", PASSWORD)
    file = tmp_path / "labels.accounts.sqlite"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with LabelStore(place) as store:
        assert Accounts(store).everybody() == []
    with open_accounts(place) as store:
        assert len(Accounts(store).everybody()) == 1


def test_accounts_in_postgresql_have_a_schema_of_their_own(place: Any) -> None:
    with open_accounts(place) as store:
        made_there = Accounts(store)
        made_there.join(made_there.invite("admin", "test"), "Ada", PASSWORD)
    with LabelStore(place) as store:
        assert Accounts(store).everybody() == []
    with open_accounts(place) as store:
        assert [a.name for a in Accounts(store).everybody()] == ["Ada"]


def test_invitations_are_listed_and_revoked_and_end_with_their_maker(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    root = Person(app, "Root", "admin")
    made(app, "Eve", "admin")
    token = accounts(app).invite("annotator", "Eve", uses=3)
    page = root.get("/people").text
    assert "Valid invitations" in page
    (found,) = [i for i in accounts(app).invitations() if i["by"] == "Eve"]
    assert token not in page
    assert root.post("/people/revoke", {"invitation": found["id"]}).status_code == 200
    assert accounts(app).invited(token) is None
    again = accounts(app).invite("annotator", "Eve")
    accounts(app).change("Eve", state="disabled")
    with pytest.raises(Denied):
        accounts(app).join(again, "Zoe", PASSWORD)


@pytest.mark.parametrize("name", ["ada", "\u0410d\u0430", "\uff21da", "\u00c1da", "A.d.a"])
def test_a_name_that_looks_like_another_is_refused(tmp_path: Path, name: str) -> None:
    with open_accounts(tmp_path / "s.sqlite") as store:
        people = Accounts(store)
        people.join(people.invite("annotator", "t"), "Ada", PASSWORD)
        with pytest.raises(DataError, match="looks like a name that is taken"):
            people.join(people.invite("annotator", "t"), name, PASSWORD)
        people.join(people.invite("annotator", "t"), "Adam", PASSWORD)
    assert skeleton("Ann0") == skeleton("Anno")


def test_common_passwords_are_refused_and_long_ones_are_not() -> None:
    for common in (
        "password123",
        "P4ssw0rd!!",
        "qwertyuiop",
        "1234567890",
        "iloveyou2024",
        "abcabcabcabc",
        "letmein1234",
    ):
        assert is_common(common), common
    for good in (PASSWORD, "correct horse battery", "Xk4!fq9-zt"):
        assert not is_common(good), good


def test_sign_in_is_limited_by_account_whatever_the_address_and_spelling(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    made(app, "Ada")
    desk = app.state.desk
    for _ in range(30):
        desk.limit("account", "ada")
    person = Person(app, None)
    form = person.get("/login").text
    signature = re.findall(r'name="csrf" value="([0-9a-f]+)"', form)[0]
    reply = person.post("/login", {"csrf": signature, "name": "\uff21DA", "password": PASSWORD})
    assert reply.status_code == 429


def test_two_servers_on_one_host_have_cookies_of_their_own(tmp_path: Path) -> None:
    first, second = (opened(tmp_path / f"{n}.sqlite", comparisons(1)) for n in "ab")
    assert session_cookie(accounts(first)) != session_cookie(accounts(second))


def test_the_address_that_is_listened_on_is_a_name_of_the_page(tmp_path: Path) -> None:
    store = LabelStore(tmp_path / "s.sqlite")
    app = make_app(store, Projects(), host="192.0.2.7", public="labels.example", https=True)
    from fastapi.testclient import TestClient

    for name, status in (("192.0.2.7:8300", 200), ("labels.example", 200), ("evil.example", 400)):
        assert TestClient(app).get("/health", headers={"host": name}).status_code == status
    root = Person(app, "Root", "admin")
    link = root.post("/people/invite", {"role": "annotator"}).text
    assert "https://labels.example/join/" in link, "a proxy may not hand the name on"
    store.close()


def test_cells_that_begin_a_formula_are_text(tmp_path: Path) -> None:
    item = Item("i1", "=cmd|' /C calc'!A0", "+1", "a plain one", "c", False)
    sheet = VENDORS["mturk"]().write([item], Guidelines("g"), 1)["tasks.csv"]
    cells = sheet.splitlines()[1]
    assert "&#61;cmd" in cells
    assert "&#43;1" in cells
    assert not any(cell.lstrip('"').startswith(("=", "+", "-", "@")) for cell in cells.split(","))
