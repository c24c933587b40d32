"""Attacks that were tried, each refused: nothing runs, nothing leaks, nobody does what is not theirs to do."""

from __future__ import annotations

import asyncio
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from argon2 import PasswordHasher
from fastapi import FastAPI
from fastapi.routing import APIRoute

from burnish.data.store import LabelStore, Place
from burnish.labels.tasks import Rules
from burnish.records import Comparison, Message, Prompt, Response
from burnish.web.app import make_app
from burnish.web.app_state import LIMITS, session_cookie
from burnish.web.projects import Project, Projects
from burnish.web.request_limits import BODY, RequestLimits
from burnish.web.text import rendered
from tests.web.desk import PASSWORD, Person, accounts, comparisons, made, opened, serving

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)><script>alert(1)</script></svg>",
    "<svg><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "[x](javascript:alert(1))",
    "![x](https://elsewhere.example/p.png)",
    "[x]: javascript:alert(1)\n\n[x]",
    "<https://elsewhere.example>",
    "https://elsewhere.example/<b onmouseover=alert(1)>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "```html onload=alert(1)\n</code></pre><script>alert(1)</script>\n```",
    '```"><img src=x onerror=alert(1)>\nx\n```',
    "`<iframe srcdoc='<script>alert(1)</script>'>`",
    "| a | b |\n|---|---|\n| <script>alert(1)</script> | x |",
    "<style>body{display:none}</style>",
    "<meta http-equiv=refresh content='0;url=https://elsewhere.example'>",
    "<form action=/people/invite method=post><button>x</button></form>",
    "</textarea></article></form><script>alert(1)</script>",
    "{{ 7 * 7 }} {% include 'x' %}",
    "\u202egnp.exe \u0000"[:-1] + "x" * 40_000 + "<script>alert(1)</script>",
    "[[[[" * 2000,
    "*" * 5000 + "a",
    "> " * 3000 + "x",
]
OURS = re.compile(
    r"</?(p|br|ul|ol|li|em|strong|code|pre|blockquote|h[1-6]|hr|table|thead|tbody|tr|th|td)\b", re.I
)
KEPT = re.compile(r' (class="language-[^"<>]*"|start="\d+"|style="text-align:(left|right|center)")')


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_no_text_becomes_more_than_text(text: str) -> None:
    html = str(rendered(text))
    for tag in re.findall(r"<[^>]*>", html):
        assert OURS.match(tag), tag
        assert KEPT.sub("", tag).rstrip("/> ").count(" ") == 0, tag  # no attribute but those


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, Python's and those of C: what it takes on any machine."""
    counted = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal counted
        counted += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted


@pytest.mark.parametrize("piece", ["[[[[", "*", "> ", "<b>", "`", "| "])
def test_a_text_twice_as_long_takes_little_more_than_twice_the_work(piece: str) -> None:
    once, twice = (calls_of(lambda n=n: rendered(piece * n + "a")) for n in (1000, 2000))
    assert twice < 2.5 * once


def test_hostile_prompts_answers_reasons_and_names_stay_text_on_every_page(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    asked = Comparison(
        Prompt.from_messages([Message("user", evil), Message(evil, evil)]),
        Response(evil + "a"),
        Response(evil + "b"),
    )
    app = opened(tmp_path / "s.sqlite", [asked])
    root = Person(app, evil[:40], "admin")
    assert evil not in root.get("/label/p/next").text
    root.save(root.next()["task"], "flag", reason=evil)
    root.post("/guidelines/p", {"text": evil})
    root.post("/nowhere" + evil)
    for page in ("/dashboard/p", "/people", "/guidelines/p", "/label/p", "/projects", "/nowhere/" + evil):
        assert evil not in root.get(page).text, page


def unsafe_routes(app: FastAPI) -> list[tuple[str, str]]:
    routes = [r for r in app.routes if isinstance(r, APIRoute)]
    found = [(m, r.path) for r in _flat(app.routes) for m in r.methods if m not in ("GET", "HEAD")]
    assert len(found) >= 10, routes
    return found


def _flat(routes: Any) -> list[APIRoute]:
    found = []
    for route in routes:
        if isinstance(route, APIRoute):
            found.append(route)
        else:
            inner = getattr(route, "routes", None) or getattr(
                getattr(route, "original_router", None), "routes", []
            )
            found += _flat(inner)
    return found


def filled(path: str) -> str:
    return path.replace("{name}", "p").replace("{token}", "x" * 43)


def test_every_request_that_changes_something_needs_what_only_our_pages_know(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(3))
    root, other = Person(app, "Root", "admin"), Person(app, "Other", "admin")
    theirs = other.headers["x-csrf-token"]
    for method, path in unsafe_routes(app):
        for headers in (
            {},
            {"x-csrf-token": theirs},
            {**root.headers, "origin": "https://elsewhere.example"},
            {**root.headers, "origin": "null"},
            {**root.headers, "sec-fetch-site": "cross-site"},
            {**root.headers, "sec-fetch-site": "same-site"},
        ):
            reply = root.http.request(method, filled(path), headers=headers)
            assert reply.status_code == 403, (method, path, headers)
    assert "set-cookie" not in reply.headers


def test_nobody_is_let_in_without_an_account_and_no_page_tells_them_anything(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(3))
    nobody = Person(app, None)
    for route in _flat(app.routes):
        if "GET" not in route.methods or route.path.startswith(
            ("/login", "/join", "/health", "/plotly", "/draw")
        ):
            continue
        reply = nobody.get(filled(route.path))
        assert reply.status_code == 303, route.path
        assert reply.headers["location"].startswith("/login"), route.path
    assert nobody.get("/dashboard/nothing").headers["location"] == "/login?next=/dashboard/nothing"
    assert nobody.json("/label/p/next")["status"] == 401
    for path in ("/openapi.json", "/docs", "/redoc"):
        assert nobody.get(path).status_code == 404


def test_each_role_does_its_own_and_no_more(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(3))
    ada, eve = Person(app, "Ada", "annotator"), Person(app, "Eve", "viewer")
    for person, paths in (
        (
            ada,
            ["/dashboard/p", "/dashboard/p/export", "/dashboard/p/now", "/dashboard/p/agreement", "/people"],
        ),
        (eve, ["/label/p", "/label/p/next", "/people"]),
    ):
        for path in paths:
            assert person.get(path).status_code == 403, path
    writes = [path for _, path in unsafe_routes(app) if not path.startswith(("/login", "/join", "/logout"))]
    for path in writes:
        reply = eve.post(
            filled(path), {"task": "x", "key": "k" * 16, "text": "x", "role": "admin", "name": "Eve"}
        )
        assert reply.status_code in (403, 422), path
        if not path.startswith("/label"):
            assert ada.post(filled(path), {"text": "x", "role": "admin", "name": "Ada"}).status_code in (
                403,
                422,
            )
    assert {p.role for p in accounts(app).everybody()} == {"annotator", "viewer"}
    with LabelStore(tmp_path / "s.sqlite") as store:
        assert store.count()["labels"] == 0
    assert any(line["action"] == "refused" for line in accounts(app).log())


def test_another_annotators_question_cannot_be_answered_nor_replayed(place: Place) -> None:
    app = opened(place, comparisons(4))
    ada, eve = Person(app, "Ada"), Person(app, "Eve")
    task = ada.next()["task"]
    assert eve.save(task)["status"] == 403
    assert eve.save("0" * 24)["status"] == 404
    key = "k" * 32
    assert ada.save(task, key=key)["saved"]
    assert eve.save(task, key=key)["status"] == 403
    own = eve.next()["task"]
    assert ada.save(own, key=key)["status"] == 403
    second = ada.next()["task"]
    assert ada.save(second, key=key)["status"] == 422  # a key belongs to one save
    ada.post("/label/p/finish")
    eve.post("/label/p/finish")
    with LabelStore(place) as store:
        assert [label.annotator for label in store.labels()] == ["person:Ada"]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static//etc/passwd",
        "/static/%00",
        "/label/..%2f..%2fetc%2fpasswd",
        "/label/%2e%2e",
        "/dashboard/..%5c..%5cx",
        "/guidelines/%00",
        "/join/..%2f..%2fetc",
    ],
)
def test_paths_lead_nowhere_else(tmp_path: Path, path: str) -> None:
    root = Person(opened(tmp_path / "s.sqlite", comparisons(1)), "Root", "admin")
    reply = root.get(path)
    assert reply.status_code in (400, 404, 405), path
    assert "root:" not in reply.text
    assert "import" not in reply.text


@pytest.mark.parametrize(
    "evil", ["' OR 1=1 --", "'; DROP TABLE labels; --", '" OR ""="', "\\'; --", "%' --", "1;SELECT 1"]
)
def test_sql_is_data_in_every_field(place: Place, evil: str) -> None:
    app = opened(place, comparisons(2))
    root = Person(app, "Root", "admin")
    task = root.next()["task"]
    token = accounts(app).invite("annotator", "test", uses=9)
    root.save(task, reason=evil)
    root.save(evil, key=evil.ljust(8, "x"))
    for path, data in (
        ("/label/p/save", {"task": task, "key": "k" * 8, "choice": evil[:8]}),
        ("/label/p/save", {"task": task, "key": "k" * 8, "guidelines": evil}),
        ("/dashboard/p/put-back", {"task": evil}),
        ("/people/change", {"name": evil, "role": "viewer"}),
        ("/people/invite", {"role": evil}),
        (f"/join/{token}", {"name": evil, "password": PASSWORD}),
        ("/login", {"name": evil, "password": evil}),
        (f"/label/{evil}/save", {"task": task, "key": "k" * 8, "choice": "a1"}),
        (f"/join/{evil}", {"name": "x", "password": PASSWORD}),
    ):
        assert root.post(path, data).status_code < 500, path
    nobody = Person(app, None)
    nobody.http.cookies.set(session_cookie(accounts(app)), "x' OR '1'='1")
    assert nobody.get("/people").status_code == 303
    with LabelStore(place) as store:
        assert store.count()["comparisons"] == 2
    assert {a.role for a in accounts(app).everybody()} <= {"admin", "annotator"}


def test_nul_and_half_characters_are_refused_in_words(place: Place) -> None:
    root = Person(opened(place, comparisons(1)), "Root", "admin")
    task = root.next()["task"]
    reply = root.post("/label/p/save", {"task": task, "key": "k" * 16, "choice": "a1", "reason": "a\x00b"})
    assert (reply.status_code, "NUL" in reply.text) == (422, True)
    raw = f"task={task}&key={'k' * 16}&choice=a1&reason=%ed%a0%80"
    kind = {"content-type": "application/x-www-form-urlencoded"}
    reply = root.http.post("/label/p/save", content=raw, headers={**root.headers, **kind})
    assert reply.status_code in (200, 422)
    assert root.get("/label/p?x=%00").status_code == 400


def test_a_session_that_was_planted_is_not_taken_up(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    made(app, "Ada")
    person = Person(app, None)
    name = session_cookie(accounts(app))
    person.http.cookies.set(name, "planted")
    person.http.cookies.set(f"{name}_visit", "planted-too")
    form = person.get("/login").text
    signature = re.findall(r'name="csrf" value="([0-9a-f]+)"', form)[0]
    reply = person.post("/login", {"csrf": signature, "name": "Ada", "password": PASSWORD})
    assert reply.status_code == 303
    fresh = reply.cookies[name]
    assert fresh != "planted"
    cookie = reply.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert accounts(app).who("planted") is None
    assert accounts(app).who(fresh) is not None


def test_cookies_are_for_https_alone_where_there_is_https(tmp_path: Path) -> None:
    projects = Projects()
    project = Project.open("p", tmp_path / "s.sqlite", Rules())
    projects.add(project)
    app = make_app(project.store, projects, https=True)
    reply = Person(app, None).get("/login")
    assert "Secure" in reply.headers["set-cookie"]
    assert reply.headers["strict-transport-security"]


def test_accounts_cannot_be_counted_nor_guessed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    verify = PasswordHasher.verify

    def verifying(self: PasswordHasher, hash: str, password: str) -> bool:
        hashed.append(hash.rsplit("$", 2)[0])  # its kind and its parameters: what it costs
        return verify(self, hash, password)

    monkeypatch.setattr(PasswordHasher, "verify", verifying)
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    made(app, "Ada")
    person = Person(app, None)
    signature = re.findall(r'name="csrf" value="([0-9a-f]+)"', person.get("/login").text)[0]

    def tried(name: str) -> tuple[int, str, int]:
        hashed.clear()
        reply = person.post("/login", {"csrf": signature, "name": name, "password": "wrong password"})
        told = re.sub(r'value="[^"]*"', "", reply.text)
        return reply.status_code, told, len(hashed)

    known, unknown = [tried("Ada") for _ in range(4)], [tried("Eve") for _ in range(4)]
    assert len({*known, *unknown}) == 1
    assert known[0][0] == 403
    assert known[0][2] == 1, "a hash is worked out for both, so that neither takes longer"
    statuses = [tried("Ada")[0] for _ in range(12)]
    assert statuses[-1] == 429
    assert tried("Eve")[0] == 403  # another name is not locked out by it
    assert all(line["action"] == "sign in refused" for line in accounts(app).log())


def test_nobody_is_sent_elsewhere_after_signing_in(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    made(app, "Ada")
    for where in (
        "https://elsewhere.example",
        "//elsewhere.example",
        "/\\elsewhere.example",
        "javascript:alert(1)",
    ):
        person = Person(app, None)
        form = person.get("/login", params={"next": where}).text
        signature = re.findall(r'name="csrf" value="([0-9a-f]+)"', form)[0]
        data = {"csrf": signature, "name": "Ada", "password": PASSWORD, "next": where}
        assert person.post("/login", data).headers["location"] == "/"


def test_a_name_for_another_host_is_not_answered(tmp_path: Path) -> None:
    root = Person(opened(tmp_path / "s.sqlite", comparisons(1)), "Root", "admin")
    assert root.get("/people", headers={"host": "elsewhere.example"}).status_code == 400


def test_bodies_that_are_too_large_or_too_slow_are_refused(tmp_path: Path) -> None:
    root = Person(opened(tmp_path / "s.sqlite", comparisons(1)), "Root", "admin")
    assert root.post("/label/p/save", {"reason": "x" * (BODY + 1)}).status_code == 413
    reply = root.http.post("/label/p/save", content=iter([b"x" * BODY, b"x"]), headers=root.headers)
    assert reply.status_code == 413
    large = {"file": ("q.jsonl", b'{"prompt": "p", "responses": ["a", "b"]}\n' * 10_000)}
    assert root.post("/dashboard/p/import", files=large).status_code == 200
    for other in (Person(root.http.app, "Ada"), Person(root.http.app, None)):
        other.http.cookies.set("odd", "a b;c")
        assert other.post("/dashboard/p/import", files=large).status_code == 413

    sent: list[Any] = []

    async def never() -> Any:
        await asyncio.sleep(60)

    async def send(message: Any) -> None:
        sent.append(message)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("must not be asked")

    scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": []}
    asyncio.run(RequestLimits(app, admits=lambda cookies: False, seconds=0.05)(scope, never, send))
    assert sent[0]["status"] == 408


def test_a_request_that_is_cut_off_is_not_carried_out() -> None:
    """The client has gone in the middle of a form: its first half is no form."""
    asked: list[str] = []
    parts = [{"type": "http.request", "body": b"text=half", "more_body": True}, {"type": "http.disconnect"}]

    async def receive() -> Any:
        return parts.pop(0)

    async def send(message: Any) -> None:
        asked.append("answered")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        asked.append("carried out")

    scope = {"type": "http", "method": "POST", "path": "/x", "query_string": b"", "headers": []}
    asyncio.run(RequestLimits(app, admits=lambda cookies: False)(scope, receive, send))
    assert asked == []


def test_a_slow_sender_keeps_nobody_else_waiting(tmp_path: Path) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    with serving(app) as url:
        host, port = url.removeprefix("http://").split(":")
        slow = []
        for _ in range(30):
            slow.append(socket.create_connection((host, int(port))))
            slow[-1].sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nname=")
        assert httpx2.get(f"{url}/health", timeout=300).status_code == 200
        for s in slow:
            s.close()


def test_errors_say_nothing_of_what_is_inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(tmp_path / "s.sqlite", comparisons(1))
    root = Person(app, "Root", "admin")
    root.http._transport.raise_server_exceptions = False  # type: ignore[attr-defined]

    def broken(*_: object) -> None:
        raise RuntimeError("secret path /etc/x")

    monkeypatch.setattr("burnish.labels.queue.Queue.progress", broken)
    reply = root.get("/dashboard/p")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    assert "Traceback" not in reply.text


def test_limits_are_there_for_what_they_are_for() -> None:
    assert {name: item.amount for name, item in LIMITS.items()}["enter"] <= 10
