"""HTTP server for a run's reward models; requests that arrive together are scored together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from burnish.commands.reward_score import Answer, Scorer, answer_of
from burnish.data.text import Unusable
from burnish.errors import BurnishError, ConfigError

MOST_ITEMS = 1024  # of a request
MOST_WAITING = 8192  # items in the queue before requests are refused
AT_ONCE = 256
MOST_BYTES = 64 << 20  # of a request's body
BODY_SECONDS = 120.0  # to receive the body
LOCAL = ("127.0.0.1", "localhost", "::1", "[::1]")


@dataclass
class Asked:
    """Request that waits for its scores."""

    rows: list[Answer]
    answer: asyncio.Future[list[dict[str, Any]]]


class Queue:
    """Requests in order of arrival; one thread scores all that wait, up to `AT_ONCE` rows together."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.waiting: list[Asked] = []
        self.woken = asyncio.Event()

    @property
    def rows(self) -> int:
        """Number of rows that wait for their scores."""
        return sum(len(asked.rows) for asked in self.waiting)

    async def ask(self, rows: list[Answer]) -> list[dict[str, Any]]:
        """Queue the rows of a request and return their scores."""
        asked = Asked(rows, asyncio.get_running_loop().create_future())
        self.waiting.append(asked)
        self.woken.set()
        return await asked.answer

    async def work(self) -> None:
        """Score waiting requests until cancelled."""
        while True:
            await self.woken.wait()
            self.woken.clear()
            while self.waiting:
                taken = [self.waiting.pop(0)]
                while self.waiting and sum(len(a.rows) for a in taken) + len(self.waiting[0].rows) <= AT_ONCE:
                    taken.append(self.waiting.pop(0))
                await self._serve(taken)

    async def _serve(self, taken: list[Asked]) -> None:
        rows = [row for asked in taken for row in asked.rows]
        try:
            scores = await asyncio.to_thread(self.scorer.score, rows)
        except Exception as error:  # noqa: BLE001 - the client gets the error
            if len(taken) > 1:  # score each alone, so that only the faulty request fails
                for asked in taken:
                    await self._serve([asked])
            elif not taken[0].answer.done():
                taken[0].answer.set_exception(error)
            return
        for asked in taken:
            own, scores = scores[: len(asked.rows)], scores[len(asked.rows) :]
            if not asked.answer.done():  # the client may have disconnected
                asked.answer.set_result(own)


def make_app(
    path: Path, *, average: bool = False, token: str | None = None, hosts: Sequence[str] = LOCAL
) -> Any:
    """Return the application that scores answers.

    It has POST /score {"items": [{"prompt", "response", "ended"}]} and GET /health; with "cut": true,
    responses that are too long are read up to the limit. With a `token`, each request must carry it
    (`Authorization: Bearer TOKEN`). Only requests for the names in `hosts` are answered, and at most
    `MOST_BYTES` of a body are read.
    """
    from fastapi import Body, FastAPI, HTTPException
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from burnish.web.request_limits import Bearer, Limited

    scorer = Scorer(path, average=average)
    queue = Queue(scorer)
    about = {
        "model": scorer.place.config.name,
        "members": len(scorer.ensemble.members),
        "unit": "standard deviations of the policy's own answers",
        "max_prompt_tokens": scorer.place.config.model.max_prompt_tokens,
        "max_response_tokens": scorer.place.config.model.max_response_tokens,
    }

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncIterator[None]:
        worker = asyncio.create_task(queue.work())
        yield
        worker.cancel()

    app = FastAPI(title="Burnish rewards", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    # The middleware added last runs first: without the token, no part of the body is read.
    app.add_middleware(Limited, most=MOST_BYTES, seconds=BODY_SECONDS)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    if token is not None:
        app.add_middleware(Bearer, token=token)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return about

    @app.post("/score")
    async def score(body: dict[str, Any] = Body()) -> dict[str, Any]:  # noqa: B008
        items = body.get("items")
        if not isinstance(items, list) or not 0 < len(items) <= MOST_ITEMS:
            raise HTTPException(422, f"give `items`, a list of 1 to {MOST_ITEMS} of prompt and response")
        if queue.rows + len(items) > MOST_WAITING:
            raise HTTPException(503, f"{queue.rows} answers wait already; ask again later")
        rows: list[Answer] = []
        for number, item in enumerate(items, 1):
            try:
                rows.append(answer_of(item))
            except Unusable as reason:
                raise HTTPException(422, f"item {number} is not a prompt with a response: {reason}") from None
        try:
            scorer.check(rows, cut=body.get("cut") is True)
        except BurnishError as error:
            raise HTTPException(422, str(error)) from None
        return {"scores": await queue.ask(rows)}

    return app


def serve(
    path: Path,
    host: str,
    port: int,
    *,
    average: bool = False,
    token: str | None = None,
    public: str | None = None,
    certificate: Path | None = None,
    key: Path | None = None,
    proxy: bool = False,
) -> None:
    """Serve scores until interrupted.

    Raises ConfigError if a network could send requests without a token, or read the token.
    """
    if host not in LOCAL and token is None:
        raise ConfigError(
            f"--host {host} lets the whole network ask: give --token-env NAME, an environment variable that "
            "holds a token"
        )
    if host not in LOCAL and certificate is None and not proxy:
        raise ConfigError(
            f"--host {host} would send token and texts over the network unencrypted: give --certificate and --key, or "
            "--behind-proxy where a proxy on this machine speaks TLS"
        )
    if host in ("0.0.0.0", "::") and public is None:
        raise ConfigError(
            f"--host {host} listens on every address: give --public NAME, the host name that clients use"
        )
    names = [*LOCAL, *(n for n in (host, public) if n and n not in ("0.0.0.0", "::"))]
    app = make_app(path, average=average, token=token, hosts=names)
    import uvicorn

    from burnish.web.protocol import Patient

    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        http=Patient,
        timeout_keep_alive=15,
        limit_concurrency=500,
        ssl_certfile=certificate,
        ssl_keyfile=key,
    )
