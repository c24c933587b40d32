"""Alerts to an address: what is sent, how often, and that a run never stops for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from burnish.errors import ConfigError
from burnish.monitor.trackers import FAILURES, Webhook, open_webhook


@pytest.fixture
def address() -> Iterator[tuple[str, list[dict[str, Any]], list[int]]]:
    """A server that keeps what it is told, and answers with the code that stands in a list."""
    told: list[dict[str, Any]] = []
    code = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(code[0])
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/secret-key", told, code
    server.shutdown()
    thread.join()
    server.server_close()


def alert(step: int, severity: str = "warning") -> dict[str, Any]:
    return {"kind": "alert", "name": "kl_spike", "severity": severity, "message": "KL is high", "step": step}


def test_decisions_always_alerts_once_in_ten_updates(address: Any) -> None:
    url, told, _ = address
    hook = Webhook(url, "mine", pytest.fail)
    for step in range(1, 13):
        hook.send(alert(step))
    hook.send(alert(30, "info"))
    hook.send({"kind": "decision", "action": "roll_back", "reason": "KL is high: back"})
    assert [t["text"] for t in told] == [
        "mine: warning: KL is high",
        "mine: warning: KL is high",
        "mine: roll_back: KL is high: back",
    ]
    assert [t["event"].get("step") for t in told] == [1, 11, None]


def test_an_address_that_fails_is_told_of_without_its_key_and_left_out(address: Any) -> None:
    url, told, code = address
    notes: list[str] = []
    hook = Webhook(url, "mine", notes.append)
    code[0] = 500
    for _ in range(FAILURES + 2):
        hook.send({"kind": "decision", "action": "raise_kl", "reason": "x"})
    assert len(told) == len(notes) == FAILURES
    assert "left out" in notes[-1]
    assert not any("secret-key" in note for note in notes)
    nobody: list[str] = []
    Webhook("http://127.0.0.1:9/", "mine", nobody.append).send(
        {"kind": "decision", "action": "a", "reason": "b"}
    )
    assert len(nobody) == 1


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_webhook(None, "mine", print) is None
    with pytest.raises(ConfigError, match="holds no http"):
        open_webhook("BURNISH_TEST_HOOK", "mine", print)
    monkeypatch.setenv("BURNISH_TEST_HOOK", "https://hooks.example/abc")
    found = open_webhook("BURNISH_TEST_HOOK", "mine", print)
    assert found is not None
    assert found.url == "https://hooks.example/abc"
