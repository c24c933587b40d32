"""State that all pages share (accounts, projects, templates, limits), and access by role."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from fastapi import Depends, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, Response
from jinja2 import Environment, PackageLoader
from limits import RateLimitItem, parse
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from burnish.web.accounts import Account, Accounts, Role
from burnish.web.projects import Projects
from burnish.web.request_limits import SAFE
from burnish.web.text import rendered

if TYPE_CHECKING:
    from burnish.web.models import ModelRoom

STATIC = Path(__file__).parent / "static"
LIMITS = {
    "account": parse("30/minute"),  # sign-in attempts for a name, from any address
    "enter": parse("10/minute"),  # sign-in attempts for a name, from one address
    "address": parse("60/minute"),  # attempts to sign in or to join, from one address
    "write": parse("1200/minute"),  # state-changing requests of an account
    "ask": parse("60/minute"),  # questions of an account to models
}


@dataclass
class AppState:
    """Shared state of the application's pages."""

    accounts: Accounts
    projects: Projects
    runs: Path | None
    https: bool
    public: str | None = None
    limiter: MovingWindowRateLimiter = field(default_factory=lambda: MovingWindowRateLimiter(MemoryStorage()))
    models: ModelRoom | None = None

    def __post_init__(self) -> None:
        self.templates = Environment(
            loader=PackageLoader("burnish.web"), autoescape=True, trim_blocks=True, lstrip_blocks=True
        )
        self.templates.filters["rendered"] = rendered
        self.templates.filters["day"] = _day
        # Browsers share cookies between the ports of a host, so each server has its own cookie names.
        self.session_cookie = session_cookie(self.accounts)
        self.visit_cookie = f"{self.session_cookie}_visit"
        self.templates.globals["version"] = _version()

    def admits(self, cookies: str) -> bool:
        """Check whether the cookies belong to an admin's session."""
        try:
            found = SimpleCookie(cookies).get(self.session_cookie)
        except CookieError:  # malformed cookies, which browsers do not send
            return False
        account = None if found is None else self.accounts.who(found.value)
        return account is not None and account.role == "admin"

    def ask(self, what: Callable[..., Any], *given: Any) -> Any:
        """Return the result of a function on a run's models; see `ModelRoom.ask`."""
        assert self.models is not None, "only pages of runs ask models"
        return self.models.ask(what, *given)

    def limit(self, what: str, *who: str) -> None:
        """Raise HTTPException 429 if a client sends too many requests."""
        item: RateLimitItem = LIMITS[what]
        if not self.limiter.hit(item, what, *who):
            raise HTTPException(429, "too many requests; wait a minute")


def session_cookie(accounts: Accounts) -> str:
    """Return the name of the session cookie for these accounts."""
    return f"burnish_{accounts.signature('cookie')[:8]}"


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")


def _version() -> str:
    newest = max(file.stat().st_mtime_ns for file in STATIC.iterdir())
    return f"{newest:x}"


def app_state_of(request: Request) -> AppState:
    """Return the state of the application that serves a request."""
    desk: AppState = request.app.state.desk
    return desk


def address(request: Request) -> str:
    """Return the client's address, or "-" if it is unknown."""
    return request.client.host if request.client else "-"


def token_of(request: Request) -> str:
    """Return the secret that signs this browser's forms: its session cookie, else its visit cookie."""
    desk = app_state_of(request)
    return request.cookies.get(desk.session_cookie) or request.cookies.get(desk.visit_cookie) or ""


async def signed(request: Request) -> None:
    """Reject a state-changing request that another site could have made (CSRF).

    The request must come from a page of this site and carry its CSRF token. Raises HTTPException 403,
    or 422 for text with NUL characters or lone surrogates.
    """
    if request.method in SAFE:
        return
    origin = request.headers.get("origin")
    ours = (request.headers.get("host"), app_state_of(request).public)  # a proxy may change the Host header
    foreign = origin is not None and urlsplit(origin).netloc not in ours
    if foreign or request.headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        raise HTTPException(403, "this request comes from another site")
    given = request.headers.get("x-csrf-token", "")
    kind = request.headers.get("content-type", "")
    if kind.startswith(("application/x-www-form-urlencoded", "multipart/form-data")):
        form = await request.form()
        if any(isinstance(v, str) and not _sound(v) for pair in form.multi_items() for v in pair):
            raise HTTPException(422, "a text contains a NUL character or half of a surrogate pair")
        given = given or str(form.get("csrf", ""))
    token = token_of(request)
    if not token or not app_state_of(request).accounts.signed(token, given):
        raise HTTPException(403, "this form is out of date; reload the page")


def _sound(text: str) -> bool:
    return "\x00" not in text and not any("\ud800" <= c <= "\udfff" for c in text)


def somebody(request: Request) -> Account:
    """Return the signed-in account, or raise HTTPException 401."""
    desk = app_state_of(request)
    account = desk.accounts.who(request.cookies.get(desk.session_cookie))
    if account is None:
        raise HTTPException(401, "sign in first")
    if request.method not in SAFE:
        app_state_of(request).limit("write", account.name)
    return account


def _of_role(*roles: Role) -> Any:
    async def allowed(request: Request, account: Annotated[Account, Depends(somebody)]) -> Account:
        if account.role not in roles:
            accounts, what = app_state_of(request).accounts, f"{request.method} {request.url.path}"
            await run_in_threadpool(accounts.note, account.name, address(request), "refused", what)
            raise HTTPException(403, f"this is not for {account.role}s")
        return account

    return Depends(allowed)


Somebody = Annotated[Account, Depends(somebody)]
Labeler = Annotated[Account, _of_role("annotator", "admin")]
Watcher = Annotated[Account, _of_role("viewer", "admin")]
Admin = Annotated[Account, _of_role("admin")]


def wants_json(request: Request) -> bool:
    """Check whether the client asks for JSON."""
    return "application/json" in request.headers.get("accept", "")


def page(
    request: Request, template: str, account: Account | None = None, status: int = 200, **values: Any
) -> Response:
    """Render a template as a page or a part of one."""
    desk = app_state_of(request)
    token = token_of(request)
    text = desk.templates.get_template(template).render(
        account=account,
        csrf=desk.accounts.signature(token) if token else "",
        path=request.url.path,
        desk=desk,
        **values,
    )
    return HTMLResponse(text, status)
