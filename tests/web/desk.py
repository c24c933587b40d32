"""A page to test against: served by a thread, with people who are in."""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx2
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from burnish.data.store import LabelStore, Place
from burnish.labels.tasks import Rules
from burnish.records import Comparison, Prompt, Response
from burnish.web.accounts import Account, Accounts, Role
from burnish.web.app import make_app
from burnish.web.app_state import session_cookie
from burnish.web.projects import Project, Projects

PASSWORD = "a long password 42"


def comparisons(n: int, answers: int = 2, word: str = "answer") -> list[Comparison]:
    return [
        Comparison(
            Prompt(f"prompt {k}"), Response(f"{word} {k}-{i}", "m1"), Response(f"{word} {k}-{j}", "m2")
        )
        for k in range(n)
        for i in range(answers)
        for j in range(i + 1, answers)
    ]


def opened(place: Place, asked: list[Comparison], rules: Rules = Rules(practice=0)) -> FastAPI:  # noqa: B008
    """An application with one project, `p`, of these questions."""
    with LabelStore(place) as store:
        store.add_comparisons(asked)
    projects = Projects()
    project = Project.open("p", place, rules)
    projects.add(project)
    return make_app(project.store, projects)


def accounts(app: FastAPI) -> Accounts:
    found: Accounts = app.state.desk.accounts
    return found


def made(app: FastAPI, name: str, role: Role = "annotator") -> Account:
    """An account, by invitation."""
    return accounts(app).join(accounts(app).invite(role, "test"), name, PASSWORD)


class Person:
    """Somebody at a page, without a browser."""

    def __init__(self, app: FastAPI, name: str | None, role: Role = "annotator") -> None:
        self.http = TestClient(app, base_url="http://localhost", follow_redirects=False)
        self.headers: dict[str, str] = {}
        if name is not None:
            token = accounts(app).enter(made(app, name, role))
            self.http.cookies.set(session_cookie(accounts(app)), token)
            self.headers = {"x-csrf-token": accounts(app).signature(token)}

    def get(self, path: str, **more: Any) -> httpx2.Response:
        return self.http.get(path, **more)

    def post(self, path: str, data: dict[str, Any] | None = None, **more: Any) -> httpx2.Response:
        headers = {**self.headers, **more.pop("headers", {})}
        return self.http.post(path, data=data or {}, headers=headers, **more)

    def json(self, path: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
        accept = {"accept": "application/json"}
        reply = self.get(path, headers=accept) if data is None else self.post(path, data, headers=accept)
        found: dict[str, Any] = json.loads(reply.text)
        return {**found, "status": reply.status_code}

    def next(self) -> Any:
        return self.json("/label/p/next")["next"]

    def save(self, task: str, choice: str = "a2", key: str | None = None, **more: Any) -> dict[str, Any]:
        return self.json(
            "/label/p/save", {"task": task, "key": key or secrets.token_hex(8), "choice": choice, **more}
        )


@contextmanager
def serving(app: FastAPI) -> Iterator[str]:
    """The application on a port of this machine."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
        assert thread.is_alive()
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()


class Watched:
    """A browser's page, of which every problem and every request is known."""

    def __init__(self, context: Any) -> None:
        self.page = context.new_page()
        self.page.set_default_timeout(600_000)  # for a page that hangs
        self.problems: list[str] = []
        self.hosts: set[str] = set()
        self.page.on(
            "console", lambda m: self.problems.append(m.text) if m.type in ("error", "warning") else None
        )
        self.page.on("pageerror", lambda e: self.problems.append(str(e)))
        self.page.on("request", lambda r: self.hosts.update(re.findall(r"^https?://([^/]+)", r.url)))


def joins(page: Any, app: FastAPI, url: str, name: str, role: Role = "annotator") -> None:
    """Somebody makes their account in the browser, from a link."""
    page.goto(f"{url}/join/{accounts(app).invite(role, 'test')}")
    page.get_by_label("Name").fill(name)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Make the account").click()
    page.wait_for_url(lambda at: "/join/" not in at)
