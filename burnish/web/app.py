"""The web application, built from its pages, and the server that runs it."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import anyio.to_thread
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

from burnish.data.store import LabelStore
from burnish.errors import BurnishError, Busy, ConfigError
from burnish.labels.tasks import Refused
from burnish.web import auth_pages, charts, dashboard, label, people
from burnish.web.accounts import Accounts, Denied
from burnish.web.app_state import STATIC, AppState, page, signed, somebody, wants_json
from burnish.web.projects import Projects
from burnish.web.request_limits import RequestLimits

THREADS = 16  # requests handled at once; the database pool has as many connections
EVERYWHERE = ("0.0.0.0", "::")
SWITCH = 0.0001  # seconds until a busy thread yields; each request passes between threads
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")
REFUSED = {"unknown": 404, "not yours": 403, "answered": 409, "late": 409, "bad": 422}


class _Static(StaticFiles):
    """Static files; their URLs change with their content, so that browsers may cache them."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "public, max-age=86400"
        return response


def make_app(
    store: LabelStore,
    projects: Projects,
    *,
    runs: Path | None = None,
    public: str | None = None,
    host: str | None = None,
    https: bool = False,
    body_seconds: float | None = None,
) -> FastAPI:
    """Return the web application.

    `store` keeps the accounts. Besides this machine's own names, the application answers to `public`
    (a name, or name:port) and to `host`, the address that it listens on.
    """
    desk = AppState(Accounts(store), projects, runs, https, public)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        sys.setswitchinterval(SWITCH)
        projects.start()
        yield
        projects.close()
        if desk.models is not None:
            desk.models.close()

    app = FastAPI(
        title="Burnish",
        lifespan=lifespan,
        dependencies=[Depends(signed)],
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
    )
    app.state.desk = desk
    for part in (auth_pages, label, people, dashboard, charts):
        app.include_router(part.router)
    if runs is not None:  # a server for labels only starts without these modules
        from burnish.web import inspector, runs as run_pages
        from burnish.web.models import ModelRoom

        desk.models = ModelRoom()
        app.include_router(run_pages.router)
        app.include_router(inspector.router)
    app.mount("/static", _Static(directory=STATIC), name="static")

    @app.get("/")
    def start(request: Request) -> Response:
        account = somebody(request)
        if runs is not None and account.role != "annotator":
            return RedirectResponse("/runs", 303)
        open_ = projects.offered()
        if account.role == "viewer" and open_:
            return RedirectResponse(f"/dashboard/{quote(open_[0].name)}", 303)
        return RedirectResponse(f"/label/{quote(open_[0].name)}" if len(open_) == 1 else "/projects", 303)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"burnish": "ready"}

    names = [_host(name) for name in (public, host) if name and name not in EVERYWHERE]
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*LOCAL, *names])
    shield: dict[str, Any] = {"https": https, "admits": desk.admits}
    if body_seconds is not None:
        shield["seconds"] = body_seconds
    app.add_middleware(RequestLimits, **shield)
    _errors(app)
    return app


def _host(public: str) -> str:
    """Return a host name without its port."""
    return urlsplit(f"//{public}").hostname or public


def _errors(app: FastAPI) -> None:
    """Report errors in plain words, without internals, as a page, part of a page or JSON."""

    def answer(request: Request, status: int, why: str) -> Response:
        if wants_json(request):
            return JSONResponse({"error": why}, status)
        whole = "hx-request" not in request.headers
        if status == 401 and whole and request.method == "GET":
            return RedirectResponse(f"/login?next={quote(request.url.path)}", 303)
        return page(request, "error.html" if whole else "error_part.html", status=status, why=why)

    @app.exception_handler(StarletteHTTPException)
    def http(request: Request, error: HTTPException) -> Response:
        return answer(request, error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return answer(request, 422, f"{field}: {first['msg']}")

    @app.exception_handler(Denied)
    def denied(request: Request, error: Denied) -> Response:
        return answer(request, 403, str(error))

    @app.exception_handler(Refused)
    def refused(request: Request, error: Refused) -> Response:
        return answer(request, REFUSED[error.why], str(error))

    @app.exception_handler(SQLAlchemyError)
    def away(request: Request, error: SQLAlchemyError) -> Response:
        logging.error("the database failed: %s", error)
        return answer(request, 503, "the database is busy or away; try again in a moment")

    @app.exception_handler(Busy)
    def busy(request: Request, error: Busy) -> Response:
        return answer(request, 503, str(error))

    @app.exception_handler(BurnishError)
    def mistaken(request: Request, error: BurnishError) -> Response:
        return answer(request, 422, str(error))


def serve(
    app: FastAPI,
    host: str,
    port: int,
    *,
    on_ready: Callable[[str], None],
    certificate: Path | None = None,
    key: Path | None = None,
    proxy: bool = False,
    public: str | None = None,
) -> None:
    """Serve until interrupted.

    `on_ready` is called with the address when the page is up; the address is also written beside the
    stores. Raises ConfigError if the port is unavailable, or if passwords would cross a network
    unencrypted.
    """
    import uvicorn

    if host in EVERYWHERE and public is None:
        raise ConfigError(
            f"--host {host} listens on every address: give --public NAME, the host name that browsers use"
        )
    if proxy and public is None:
        raise ConfigError(
            "--behind-proxy needs --public NAME: the page's links must name the proxy, not this server"
        )
    if host not in LOCAL and certificate is None and not proxy:
        raise ConfigError(
            f"--host {host} would send passwords over the network unencrypted: give --certificate and --key, or "
            "--behind-proxy where a proxy on this machine speaks TLS"
        )
    for file in (certificate, key):
        if file is not None and not file.is_file():
            raise ConfigError(f"{file} does not exist; give the certificate and its key as PEM files")
    from burnish.web.protocol import Patient

    config = uvicorn.Config(
        app,
        http=Patient,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=500,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=3,
        h11_max_incomplete_event_size=32 * 1024,
        proxy_headers=proxy,
        forwarded_allow_ips="127.0.0.1",
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
    listening = _listen(host, port)
    name = public or (f"[{host}]" if ":" in host else host) + f":{listening.getsockname()[1]}"
    url = f"{'https' if certificate is not None or proxy else 'http'}://{name}"
    on_ready(url)
    desk: AppState = app.state.desk
    desk.projects.announce(url)
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, at = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host} is not an address ({error.strerror}); give another") from None
    # Without its protocol, asyncio keeps Nagle's algorithm on and replies wait 40 ms for an ACK.
    listening = socket.socket(family, kind, protocol)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(at)
        listening.listen(256)
    except OSError as error:
        listening.close()
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror}); give another --port"
        ) from None
    return listening
