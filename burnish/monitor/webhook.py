"""Alerts and decisions to an address, as they happen."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from burnish.errors import ConfigError

SECONDS = 5.0  # that an answer is waited for
FAILURES = 3  # in a row, after which it is left out
QUIET = 10  # updates before the same alert is told again


class Webhook:
    """Posts `{"text": ..., "event": {...}}` as JSON (Slack, Mattermost and Discord's compatible address show `text`).
    Nothing it does stops a run: what fails is told once, and after three failures in a row nothing more is sent."""

    def __init__(self, url: str, run: str, on_failure: Callable[[str], None]) -> None:
        self.url, self.run, self.on_failure = url, run, on_failure
        self.told: dict[str, int] = {}
        self.failures = 0

    def send(self, event: Mapping[str, Any]) -> None:
        """An alert that is not merely information and was not told in the last updates, or a decision."""
        if self.failures >= FAILURES:
            return
        if event["kind"] == "alert":
            step = int(event["step"])
            if event["severity"] == "info" or abs(step - self.told.get(event["name"], -2 * QUIET)) < QUIET:
                return
            self.told[event["name"]] = step
            text = f"{self.run}: {event['severity']}: {event['message']}"
        else:
            text = f"{self.run}: {event['action']}: {event['reason']}"
        import httpx2  # which the labelling page alone is installed without

        try:
            answer = httpx2.post(self.url, json={"text": text, "event": dict(event)}, timeout=SECONDS)
            answer.raise_for_status()
            self.failures = 0
        except httpx2.HTTPError as error:
            self.failures += 1
            end = "; it is left out from here on" if self.failures == FAILURES else ""
            # The address is a secret: some have their key in it.
            self.on_failure(f"the webhook could not be told ({type(error).__name__}){end}")


def open_webhook(variable: str | None, run: str, on_failure: Callable[[str], None]) -> Webhook | None:
    """The webhook whose address an environment variable holds; None without one. Raises ConfigError where it holds no
    address."""
    if variable is None:
        return None
    url = os.environ.get(variable, "")
    if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).netloc:
        raise ConfigError(
            f"monitor.webhook names the environment variable {variable!r}, which holds no http(s) address; set it, or "
            "take the setting out"
        )
    return Webhook(url, run, on_failure)
