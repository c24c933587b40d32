"""Pages that query a run's models: explained reward scores, and two policies side by side."""

from __future__ import annotations

import json
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Form, HTTPException, Request
from fastapi.responses import Response

from burnish.data.store import LabelStore
from burnish.data.text import Unusable, messages_of, parse_json
from burnish.errors import DataError
from burnish.records import Comparison, Label, Message, Prompt, Response as Said, content_id
from burnish.web.app_state import Labeler, Somebody, Watcher, app_state_of, page
from burnish.web.runs import Name, run_of

router = APIRouter()
Text = Annotated[str, Form(max_length=20_000)]
SHADES = 4  # steps of a contribution's colour
VOTES = "votes.sqlite"
WAITING = 1000  # pairs of answers kept for a vote
MOST_TURNS = 40
Choice = Literal["a", "b", "tie"]


@dataclass(frozen=True)
class Shown:
    """Two answers as shown to an account: run, prompt, texts in order, and the model of each text."""

    account: str
    run: str
    prompt: Prompt
    texts: tuple[str, str]
    names: tuple[str, str]


class Waiting:
    """Answers that wait for a vote, in memory: a restart loses them and nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: OrderedDict[str, Shown] = OrderedDict()
        self._asked = 0

    def keep(self, shown: Shown) -> str:
        """Keep the answers and return a token for the vote on them."""
        token = secrets.token_urlsafe(16)
        with self._lock:
            self._shown[token] = shown
            while len(self._shown) > WAITING:
                self._shown.popitem(last=False)
        return token

    def take(self, token: str, account: str) -> Shown | None:
        """Remove and return the answers of a token, or None if this account was not shown them."""
        with self._lock:
            found = self._shown.get(token)
            if found is None or found.account != account:
                return None
            return self._shown.pop(token)

    def number(self) -> int:
        """Return the next number, counted from 1."""
        with self._lock:
            self._asked += 1
            return self._asked


_waiting = Waiting()


@router.get("/runs/{name}/inspect")
def inspector(request: Request, name: Name, account: Watcher) -> Response:
    """Return the form of the reward inspector."""
    path = run_of(app_state_of(request), name)
    return page(request, "inspect.html", account, name=path.name, ready=_scored(path))


def _scored(path: Path) -> bool:
    return (path / "reward" / "ensemble.json").exists()


@router.post("/runs/{name}/inspect")
def inspect(
    request: Request,
    name: Name,
    account: Watcher,
    prompt: Text,
    first: Text,
    second: Annotated[str, Form(max_length=20_000)] = "",
) -> Response:
    """Score one or two answers token by token and show the most similar labelled answers."""
    from burnish.commands.chat import judged

    desk = app_state_of(request)
    path = run_of(desk, name)
    if not prompt.strip() or not first.strip():
        raise DataError("give a prompt and an answer at least")
    desk.limit("ask", account.name)
    given = [text.replace("\r\n", "\n") for text in (first, second) if text.strip()]
    found = desk.ask(judged, path, prompt.replace("\r\n", "\n"), given)
    for answer in found["answers"]:
        _shade(answer["why"])
    return page(request, "inspected.html", account, answers=found["answers"])


def _shade(why: dict[str, Any]) -> None:
    """Set every token's colour by its contribution relative to the largest one."""
    if "error" in why:
        return
    most = max((abs(c) for c in why["contributions"]), default=0.0) or 1.0
    why["shades"] = [
        "" if (k := round(SHADES * abs(c) / most)) == 0 else f"{'p' if c > 0 else 'm'}{k}"
        for c in why["contributions"]
    ]


@router.get("/runs/{name}/chat")
def chat(request: Request, name: Name, account: Somebody) -> Response:
    """Return the page that shows SFT and the champion side by side."""
    path = run_of(app_state_of(request), name)
    ready = (path / "evaluation.json").exists()
    return page(request, "chat.html", account, name=path.name, ready=ready)


@router.post("/runs/{name}/chat")
def ask(request: Request, name: Name, account: Somebody, text: Text, history: Text = "[]") -> Response:
    """Answer a prompt, or the next turn of a dialogue, with both models in random order."""
    from burnish.commands.chat import both

    desk = app_state_of(request)
    path = run_of(desk, name)
    if not text.strip():
        raise DataError("write something first")
    desk.limit("ask", account.name)
    turns = [*_turns(history), Message("user", text.replace("\r\n", "\n").strip())]
    prompt = Prompt(turns[0].content) if len(turns) == 1 else Prompt.from_messages(turns)
    line = prompt.text if len(turns) == 1 else _history(turns)
    said: dict[str, str] = desk.ask(both, path, line, _waiting.number())
    if len(said) < 2:
        raise DataError("this run has no policy beside SFT to compare it with")
    names = sorted(said, key=lambda n: content_id(secrets.token_hex(8), n))
    shown = Shown(account.name, path.name, prompt, (said[names[0]], said[names[1]]), (names[0], names[1]))
    may = account.role != "viewer"
    token = _waiting.keep(shown) if may else ""
    return page(
        request,
        "chatted.html",
        account,
        name=path.name,
        turns=turns,
        shown=shown,
        token=token,
        may=may,
        vote=None,
    )


def _turns(history: str) -> list[Message]:
    """Parse the dialogue so far, which the page sends back with each prompt."""
    try:
        found = parse_json(history)
        turns = [] if found == [] else messages_of(found)
    except Unusable:
        raise HTTPException(422, "history is not a list of messages; reload the page") from None
    whole = len(turns) % 2 == 0 and len(turns) <= MOST_TURNS
    if not whole or any(m.role != ("user", "assistant")[i % 2] for i, m in enumerate(turns)):
        raise HTTPException(422, f"history is not a dialogue of at most {MOST_TURNS} turns; reload the page")
    return turns


@router.post("/runs/{name}/vote")
def vote(
    request: Request,
    name: Name,
    account: Labeler,
    token: Annotated[str, Form(max_length=64)],
    choice: Annotated[Choice, Form()],
) -> Response:
    """Save a vote as a comparison with a label, then reveal which model wrote which answer."""
    path = run_of(app_state_of(request), name)
    shown = _waiting.take(token, account.name)
    if shown is None or shown.run != path.name:
        raise HTTPException(409, "these answers were voted on already or are no longer kept; ask again")
    value = {"a": 1.0, "b": 0.0, "tie": 0.5}[choice]
    if shown.texts[0] != shown.texts[1]:
        first, second = (Said(text, by) for text, by in zip(shown.texts, shown.names, strict=True))
        asked = Comparison(shown.prompt, first, second)
        with LabelStore(path / VOTES) as store:
            store.add_comparisons([asked])
            label = Label(asked.id, account.annotator, value, "human", swapped=False)
            store.add_labels(store.as_stored([(asked, label)]))
    messages = list(shown.prompt.messages) or [Message("user", shown.prompt.text)]
    return page(
        request,
        "chatted.html",
        account,
        name=path.name,
        turns=messages,
        shown=shown,
        token="",
        may=True,
        vote=choice,
        histories=[_history([*messages, Message("assistant", text)]) for text in shown.texts],
    )


def _history(turns: Sequence[Message]) -> str:
    return json.dumps([{"role": m.role, "content": m.content} for m in turns])
