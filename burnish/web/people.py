"""Admin pages: invitations, roles, account states and the audit log."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import Response

from burnish.web.accounts import ROLES, Account, Role, State
from burnish.web.app_state import Admin, address, app_state_of, page

router = APIRouter()


def _people(request: Request, account: Account, **values: Any) -> Response:
    accounts = app_state_of(request).accounts
    return page(
        request,
        "people.html",
        account,
        people=accounts.everybody(),
        log=accounts.log(),
        invitations=accounts.invitations(),
        roles=ROLES,
        **values,
    )


@router.get("/people")
def people(request: Request, account: Admin) -> Response:
    """Return the page with accounts, invitations and audit log."""
    return _people(request, account)


@router.post("/people/invite")
def invite(
    request: Request,
    account: Admin,
    role: Annotated[Role, Form()],
    uses: Annotated[int, Form(ge=1, le=500)] = 1,
) -> Response:
    """Create an invitation and show its link."""
    desk = app_state_of(request)
    token = desk.accounts.invite(role, account.name, uses)
    desk.accounts.note(account.name, address(request), "invited", f"{role}, {uses} time(s)")
    name = desk.public or request.headers["host"]  # a proxy may change the Host header
    link = f"{'https' if desk.https else request.url.scheme}://{name}/join/{token}"
    return _people(request, account, link=link, invited=role, uses=uses)


@router.post("/people/revoke")
def revoke(request: Request, account: Admin, invitation: Annotated[str, Form(max_length=100)]) -> Response:
    """Revoke an invitation."""
    desk = app_state_of(request)
    there = desk.accounts.revoke(invitation)
    desk.accounts.note(account.name, address(request), "revoked an invitation")
    return _people(
        request, account, note="The link is no longer valid." if there else "There is no such link."
    )


@router.post("/people/change")
def change(
    request: Request,
    account: Admin,
    name: Annotated[str, Form(max_length=200)],
    role: Annotated[Role | None, Form()] = None,
    state: Annotated[State | None, Form()] = None,
) -> Response:
    """Change the role or state of an account."""
    desk = app_state_of(request)
    changed = desk.accounts.change(name, role=role, state=state)
    desk.accounts.note(account.name, address(request), "changed", f"{name}: {changed.role}, {changed.state}")
    return _people(request, account, note=f"{name} is {changed.role}, {changed.state}.")
