"""Labelling page: one blind question at a time; answers are durable before they count as saved."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, HTTPException, Path, Request
from fastapi.responses import JSONResponse, Response

from burnish.labels.tasks import CHOICES, LONGEST_REASON, Answer, Saved, Task
from burnish.records import Message
from burnish.web.accounts import Account
from burnish.web.app_state import Admin, AppState, Labeler, Somebody, address, app_state_of, page, wants_json
from burnish.web.projects import Project

router = APIRouter()
SCALE = {
    "a3": "A is much better",
    "a2": "A is better",
    "a1": "A is slightly better",
    "tie": "They are equally good",
    "b1": "B is slightly better",
    "b2": "B is better",
    "b3": "B is much better",
}
Name = Annotated[str, Path(max_length=200)]


def project_of(desk: AppState, name: str) -> Project:
    """Return a project by name, or raise HTTPException 404."""
    found = desk.projects.get(name)
    if found is None:
        raise HTTPException(404, "there is no such project")
    return found


def _turns(task: Task) -> list[Message]:
    prompt = task.question.prompt
    return list(prompt.messages) or [Message("user", prompt.text)]


def _as_json(task: Task) -> dict[str, Any]:
    return {
        "task": task.id,
        "kind": task.kind,
        "practice": task.practice,
        "prompt": [{"role": m.role, "content": m.content} for m in _turns(task)],
        "responses": [r.text for r in task.question.shown],
    }


def _reply(
    request: Request,
    project: Project,
    account: Account,
    saved: Saved | None = None,
    note: str = "",
    task: Task | None = None,
) -> Response:
    """Return the next question, fetched if `task` is None, and the result of the last save."""
    desk = app_state_of(request)
    account = _held_back(desk, project, account, saved)
    if task is None and account.state != "held":
        task = project.queue.next(account.annotator)
    standing = project.queue.standing(account.annotator)
    done, all_ = project.queue.progress()
    edition = project.edition()
    if wants_json(request):
        return JSONResponse(
            {
                "next": None if task is None else _as_json(task),
                "saved": saved is not None,
                "repeated": saved is not None and saved.repeated,
                "better": None if saved is None else saved.better,
                "right": None if saved is None else saved.right,
                "held": account.state == "held",
                "answers": standing.answers,
                "questions": all_,
                "done": done,
                "guidelines": edition.guidelines.id,
            }
        )
    return page(
        request,
        "task.html",
        account,
        task=task,
        turns=[] if task is None else _turns(task),
        scale=SCALE,
        saved=saved,
        note=note,
        standing=standing,
        done=done,
        all=all_,
        edition=edition,
        project=project,
        part="hx-request" in request.headers,
    )


def _held_back(desk: AppState, project: Project, account: Account, saved: Saved | None) -> Account:
    """Hold an annotator who has just failed practice, until an admin has checked."""
    if saved is None or saved.right is None or saved.repeated:
        return account
    s = project.queue.standing(account.annotator)
    if s.given < s.practice or s.right >= project.queue.rules.least * s.practice or account.role == "admin":
        return account
    desk.accounts.note(account.name, "-", "held", f"{s.right} of {s.practice} practice questions right")
    return desk.accounts.change(account.name, state="held")


@router.get("/projects")
def projects(request: Request, account: Somebody) -> Response:
    """Return the list of projects."""
    return page(request, "projects.html", account, projects=app_state_of(request).projects.offered())


@router.get("/label/{name}")
def labelling(request: Request, name: Name, account: Labeler) -> Response:
    """Return the labelling page of a project."""
    project = project_of(app_state_of(request), name)
    edition = project.edition()
    return page(request, "label.html", account, project=project, edition=edition, examines=project.examines)


@router.get("/label/{name}/next")
def following(request: Request, name: Name, account: Labeler) -> Response:
    """Return the annotator's current question."""
    return _reply(request, project_of(app_state_of(request), name), account)


@router.post("/label/{name}/save")
def save(
    request: Request,
    name: Name,
    account: Labeler,
    task: Annotated[str, Form(max_length=64)],
    key: Annotated[str, Form(min_length=8, max_length=64)],
    choice: Annotated[str | None, Form(max_length=8)] = None,
    order: Annotated[str | None, Form(max_length=32, pattern=r"^[0-9]+(,[0-9]+)*$")] = None,
    reason: Annotated[str, Form(max_length=LONGEST_REASON)] = "",
    seconds: Annotated[float | None, Form(ge=0, le=1e6, allow_inf_nan=False)] = None,
    guidelines: Annotated[str | None, Form(max_length=32)] = None,
) -> Response:
    """Save an answer, which is durable when the reply is sent.

    The client chooses `key`; a second request with the same key changes nothing.
    """
    project = project_of(app_state_of(request), name)
    if account.state == "held":
        raise HTTPException(403, "an admin must check your practice answers before you can continue")
    if guidelines is not None and not project.has_guidelines(guidelines):
        raise HTTPException(422, "there are no such guidelines; reload the page")
    answer = Answer(
        choice or None,
        [int(tier) for tier in order.split(",")] if order else None,
        reason,
        seconds,
        guidelines or project.edition().guidelines.id,
    )
    saved, following = project.queue.save_and_next(account.annotator, task, key, answer)
    return _reply(request, project, account, saved, task=following)


@router.post("/label/{name}/undo")
def undo(request: Request, name: Name, account: Labeler) -> Response:
    """Take back the last answer and ask its question again."""
    project = project_of(app_state_of(request), name)
    back = project.queue.undo(account.annotator)
    note = "Taken back: answer again." if back else "There is no answer left that can be taken back."
    return _reply(request, project, account, note=note)


@router.post("/label/{name}/finish")
def finish(request: Request, name: Name, account: Labeler) -> Response:
    """Settle the annotator's answers and release their leases."""
    project = project_of(app_state_of(request), name)
    project.queue.release(account.annotator)
    return page(request, "finished.html", account, project=project)


@router.get("/guidelines/{name}")
def guidelines(request: Request, name: Name, account: Somebody) -> Response:
    """Return the page of the guidelines with all editions."""
    project = project_of(app_state_of(request), name)
    return page(request, "guidelines.html", account, project=project, editions=project.editions())


@router.post("/guidelines/{name}")
def edit(
    request: Request, name: Name, account: Admin, text: Annotated[str, Form(max_length=100_000)]
) -> Response:
    """Publish a new edition of the guidelines."""
    desk = app_state_of(request)
    project = project_of(desk, name)
    edition = project.edit(text, account.name)
    desk.accounts.note(account.name, address(request), "guidelines", f"edition {edition.number}")
    return page(request, "guidelines.html", account, project=project, editions=project.editions(), saved=True)


assert set(SCALE) <= set(CHOICES)
