"""Odd replies of judges: each is a verdict or one abstention, and never the end of judging."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from burnish.labels.endpoint import alternatives, log_odds, read_reply, verdict_of
from tests.command import burnish


def reply(content: Any = "A", logprobs: Any = None, **choice: Any) -> Any:
    message = SimpleNamespace(content=content, refusal=None)
    made = {"message": message, "finish_reason": "stop", "logprobs": logprobs} | choice
    return SimpleNamespace(choices=[SimpleNamespace(**made)], usage=None)


def first_token(top: Any, token: str = "A", logprob: Any = -0.1) -> Any:
    shown = top if not isinstance(top, list) else [SimpleNamespace(token=t, logprob=p) for t, p in top]
    return SimpleNamespace(content=[SimpleNamespace(token=token, logprob=logprob, top_logprobs=shown)])


@pytest.mark.parametrize(
    "top",
    [
        [("A", 0.0), ("B", -9999.0), ("C", -9999.0)],
        [("A", 0.0), ("x", -1e30)],
        [("A", -0.01), ("B", -math.inf)],
        [("A", -0.01), ("B", math.nan)],
        [("A", -0.1), ("B", None)],
        None,
        [],
    ],
)
def test_log_probabilities_that_were_not_computed_are_left_out(top: Any) -> None:
    answer = read_reply(reply(logprobs=first_token(top)))
    assert answer.why is None
    assert answer.log_odds is not None
    assert 0 < answer.log_odds < 20


def test_an_alternative_that_is_not_there_has_no_more_than_is_left() -> None:
    odds = log_odds([("A", math.log(0.9))])
    assert odds == pytest.approx(math.log(0.9) - math.log(0.1)), "at most what the others leave"
    assert alternatives(SimpleNamespace(token="A", logprob=-0.5)) == [("A", -0.5)]


@pytest.mark.parametrize(
    "odd",
    [
        SimpleNamespace(choices=None),
        SimpleNamespace(choices=[SimpleNamespace(message=None, finish_reason="stop")]),
        SimpleNamespace(choices=[None]),
        SimpleNamespace(choices="text"),
        reply(content=3),
        reply(content=[{"type": "text"}]),
        reply(logprobs=SimpleNamespace(content=[None])),
        {"choices": []},
        None,
    ],
)
def test_a_reply_of_another_shape_is_an_abstention(odd: Any) -> None:
    answer = read_reply(odd)
    assert answer.why == "malformed reply"
    assert answer.again


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("A", "first"),
        ("<think>\nB is worse.\n</think>\n\nB", "second"),
        ("[[C]]", "tie"),
        ("Answer: A", "first"),
        ("**Verdict: B**", "second"),
        ('{"verdict": "A"}', "first"),
        ("\\boxed{B}", "second"),
        ("```\nA\n```", "first"),
        ("<think>\nLet me see both", None),
        ("A fair reading shows that B wins.", None),
        ("Answers A and B are alike.", None),
        ("", None),
    ],
)
def test_verdicts(text: str, vote: str | None) -> None:
    assert verdict_of(text) == vote
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": text}]
    assert read_reply(reply(content=parts)).vote == vote


@contextmanager
def endpoint(status: int, body: dict[str, Any]) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "code", "said"),
    [
        (402, {"error": {"message": "Insufficient credits"}}, 3, "no money left"),
        (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, 3, "no money left"),
        (200, {"choices": []}, 4, "gave no label for 2 comparisons"),
    ],
)
def test_no_money_and_no_label_at_all_are_errors(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    body: dict[str, Any],
    code: int,
    said: str,
) -> None:
    monkeypatch.setattr("burnish.labels.judge.WAIT", 0.0)  # before another try
    rows = [{"prompt": f"p {i}", "responses": ["good", "bad"]} for i in range(2)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    store = str(tmp_path / "s.sqlite")
    burnish("label", "load", store, str(tmp_path / "q.jsonl"))
    with endpoint(status, body) as url:
        done = burnish("label", "judge", store, "--model", "m", "--endpoint", url, check=False)
    assert (done.returncode, said in done.stderr) == (code, True), done.stderr
