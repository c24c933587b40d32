"""Pages to accept an invitation, sign in and sign out."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import RedirectResponse, Response

from burnish.errors import DataError
from burnish.web.accounts import LONGEST, LONGEST_NAME, SESSION, SHORTEST, Account, Denied, folded
from burnish.web.app_state import AppState, Somebody, address, app_state_of, page

router = APIRouter()
Name = Annotated[str, Form(max_length=4 * LONGEST_NAME)]
Password = Annotated[str, Form(max_length=4 * LONGEST)]


def _keep(response: Response, desk: AppState, name: str, value: str, seconds: float | None) -> None:
    response.set_cookie(
        name,
        value,
        max_age=None if seconds is None else int(seconds),
        httponly=True,
        secure=desk.https,
        samesite="lax",
        path="/",
    )


def _visit(request: Request, response: Response, fresh: str) -> Response:
    _keep(response, app_state_of(request), app_state_of(request).visit_cookie, fresh, None)
    return response


def _form(request: Request, template: str, status: int = 200, **values: Any) -> Response:
    """Return a form for a visitor who is not signed in, signed with a cookie of the visit."""
    desk = app_state_of(request)
    fresh = request.cookies.get(desk.visit_cookie) or secrets.token_urlsafe(32)
    session = request.cookies.get(desk.session_cookie)
    response = page(
        request, template, None, status, signature=desk.accounts.signature(session or fresh), **values
    )
    return _visit(request, response, fresh)


def _enter(request: Request, account: Account, where: str) -> Response:
    desk = app_state_of(request)
    token = desk.accounts.enter(account, leaving=request.cookies.get(desk.session_cookie))
    response = RedirectResponse(where, 303)
    _keep(response, desk, desk.session_cookie, token, SESSION)
    response.delete_cookie(desk.visit_cookie, path="/")
    return response


def _inside(where: str) -> str:
    """Return `where` if it is a path on this site, else "/"."""
    odd = where.startswith("//") or "\\" in where or not where.isprintable()
    return where if where.startswith("/") and not odd else "/"


@router.get("/login")
def login(request: Request, next: str = "/") -> Response:
    """Return the sign-in form."""
    return _form(request, "login.html", next=_inside(next))


@router.post("/login")
def log_in(request: Request, name: Name, password: Password, next: Annotated[str, Form()] = "/") -> Response:
    """Sign in with a name and password."""
    desk = app_state_of(request)
    desk.limit("address", address(request))
    desk.limit("enter", address(request), folded(name))
    desk.limit("account", folded(name))
    try:
        account = desk.accounts.check(name, password)
    except Denied as error:
        desk.accounts.note(name, address(request), "sign in refused")
        return _form(request, "login.html", 403, next=_inside(next), why=str(error), name=name)
    desk.accounts.note(account.name, address(request), "signed in")
    return _enter(request, account, _inside(next))


@router.post("/logout")
def log_out(request: Request, account: Somebody) -> Response:
    """End the session and release the account's open questions."""
    desk = app_state_of(request)
    desk.accounts.leave(request.cookies[desk.session_cookie])
    for project in desk.projects.all():
        project.queue.release(account.annotator)
    desk.accounts.note(account.name, address(request), "signed out")
    response = RedirectResponse("/login", 303)
    response.delete_cookie(desk.session_cookie, path="/")
    return response


@router.get("/join/{token}")
def join(request: Request, token: str) -> Response:
    """Return the form that creates an account with an invitation."""
    app_state_of(request).limit("address", address(request))
    role = app_state_of(request).accounts.invited(token)
    if role is None:
        return page(
            request,
            "error.html",
            status=404,
            why="This invitation is not valid or has expired; ask for another.",
        )
    return _form(request, "join.html", token=token, role=role, shortest=SHORTEST)


@router.post("/join/{token}")
def joined(request: Request, token: str, name: Name, password: Password) -> Response:
    """Create an account with an invitation and sign in."""
    desk = app_state_of(request)
    desk.limit("address", address(request))
    role = desk.accounts.invited(token)
    if role is None:
        raise Denied("this invitation is not valid or has expired; ask for another")
    try:
        account = desk.accounts.join(token, name, password)
    except DataError as error:
        return _form(
            request, "join.html", 422, token=token, role=role, shortest=SHORTEST, why=str(error), name=name
        )
    desk.accounts.note(account.name, address(request), "joined", account.role)
    return _enter(request, account, "/")
