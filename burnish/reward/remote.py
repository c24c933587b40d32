"""Client of reward models served over HTTP (`burnish reward serve`); it does not need torch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import httpx2

from burnish.data.text import number_of
from burnish.errors import BurnishError, ConfigError
from burnish.records import Prompt

AT_ONCE = 256
TRIES = 4
WAIT = 0.5  # seconds before the second try; twice as long before each further one
PASSING = {429, 502, 503, 504}  # status codes that are retried


class RemoteError(BurnishError):
    """Error of a reward server that returned no scores."""


class RemoteReward:
    """Client of a reward server; scores are in standard deviations of the normalising policy.

    Raises ConfigError if no reward server answers at the address.
    """

    def __init__(self, url: str, timeout: float = 120.0, token: str | None = None) -> None:
        self.url = url.rstrip("/")
        self.timeout = timeout
        self.headers = {} if token is None else {"authorization": f"Bearer {token}"}
        try:
            self.about = (
                httpx2.get(f"{self.url}/health", timeout=timeout, headers=self.headers)
                .raise_for_status()
                .json()
            )
            self.about["model"], self.about["members"]
        except (httpx2.HTTPError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{url} does not answer as a reward server ({type(error).__name__}: {error}); start one with `burnish "
                "reward serve RUN`, and give the address it prints"
            ) from None

    def scores(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[float]:
        """Return one score for each response; the server truncates a response that is too long for it.

        `ended` says which responses were not cut off (default: all).
        """
        return [float(row["score"]) for row in self.rows(prompts, responses, ended)]

    def rows(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[dict[str, Any]]:
        """Return score, members, ensemble_std and tokens of each response, as sent by the server.

        Raises RemoteError if requests keep failing or a score is not finite.
        """
        whole = [True] * len(responses) if ended is None else list(ended)
        items = [
            {
                "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages] or prompt.text,
                "response": text,
                "ended": end,
            }
            for prompt, text, end in zip(prompts, responses, whole, strict=True)
        ]
        found: list[dict[str, Any]] = []
        with httpx2.Client(timeout=self.timeout, headers=self.headers) as client:
            for start in range(0, len(items), AT_ONCE):
                found += self._part(client, items[start : start + AT_ONCE])
        return found

    def _part(self, client: httpx2.Client, part: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        rows = self._ask(client, part)
        scores = [number_of(row.get("score")) if isinstance(row, dict) else None for row in rows]
        if len(rows) != len(part) or not all(s is not None and math.isfinite(s) for s in scores):
            raise RemoteError(
                f"{self.url} gave {len(rows)} scores for {len(part)} responses, or some are not finite"
            )
        return rows

    def _ask(self, client: httpx2.Client, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        why = ""
        for turn in range(TRIES):
            if turn:
                time.sleep(WAIT * 2 ** (turn - 1))
            try:
                answer = client.post(f"{self.url}/score", json={"items": items, "cut": True})
            except httpx2.TransportError as error:
                why = f"{type(error).__name__}: {error}"
                continue
            if answer.status_code == 200:
                try:
                    return list(answer.json()["scores"])
                except (KeyError, TypeError, ValueError) as error:
                    why = f"its answer has no scores: {type(error).__name__}: {error}"
                    break
            why = f"{answer.status_code}: {answer.text[:300]}"
            if answer.status_code not in PASSING:
                break
        raise RemoteError(f"{self.url} gave no scores ({why})")
