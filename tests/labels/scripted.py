"""A server that speaks the chat-completions protocol from a script: verdicts of known bias, and planted failures."""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Worth = Callable[[str], float]
ANSWER = re.compile(r"<answer_([ab])>\n(.*?)\n</answer_\1>", re.S)


def draw(*parts: str) -> float:
    """A number in [0, 1) that the parts decide."""
    return int(hashlib.sha256("|".join(parts).encode()).hexdigest()[:12], 16) / 16**12


class Script:
    """What the server does. `fail(question, time)` names a failure for the n-th time a question comes, or None."""

    def __init__(
        self,
        worth: Worth,
        *,
        bias: float = 0.0,
        noise: float = 0.0,
        logprobs: bool = True,
        fail: Callable[[str, int], str | None] = lambda question, times: None,
        seconds: float = 0.0,
    ) -> None:
        self.worth, self.bias, self.noise, self.logprobs = worth, bias, noise, logprobs
        self.fail, self.seconds = fail, seconds
        self.asked: Counter[str] = Counter()
        self.billed = 0  # tokens of questions that were answered
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    def odds(self, question: str) -> float:
        sides = dict(ANSWER.findall(question))
        value = self.worth(sides["a"]) - self.worth(sides["b"]) + self.bias
        # The same noise whichever stands first, and some that turns with the order.
        return value + self.noise * (2 * draw(question, "order") - 1)

    def reply(self, question: str, asks_odds: bool) -> dict[str, Any]:
        odds = self.odds(question)
        letter = "A" if odds > 0 else "B"
        choice: dict[str, Any] = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": letter},
        }
        if asks_odds and self.logprobs:
            p = 1 / (1 + math.exp(-odds))
            top = [{"token": t, "logprob": math.log(q), "bytes": None} for t, q in (("A", p), (" B", 1 - p))]
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}]}
        tokens = len(question) // 4
        usage = {"prompt_tokens": tokens, "completion_tokens": 1, "total_tokens": tokens + 1}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "scripted",
            "choices": [choice],
            "usage": usage,
        }


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The base URL of a server that follows the script."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with script.lock:
                script.asked[question] += 1
                times = script.asked[question]
                script.at_once += 1
                script.most_at_once = max(script.most_at_once, script.at_once)
            try:
                self.follow(question, times, body)
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True  # the client had gone
            finally:
                with script.lock:
                    script.at_once -= 1

        def follow(self, question: str, times: int, body: dict[str, Any]) -> None:
            time.sleep(script.seconds)
            failure = script.fail(question, times)
            if failure == "slow":
                time.sleep(3.0)
                failure = None
            if failure == "half":
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", "5000")
                self.end_headers()
                self.wfile.write(b'{"id": "x", "choi')
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
            if failure is not None and failure.isdigit():
                self.send(int(failure), {"error": {"message": "planted"}}, {"Retry-After": "0"})
                return
            reply = script.reply(question, bool(body.get("logprobs")))
            message = reply["choices"][0]["message"]
            if failure == "unreadable":
                message["content"] = "I would rather not say."
                reply["choices"][0].pop("logprobs", None)
            elif failure == "refused":
                message["refusal"] = "no"
            elif failure == "malformed":
                reply = {"detail": "not what was agreed"}
            elif failure == "no logprobs" and body.get("logprobs"):
                self.send(400, {"error": {"message": "logprobs is not supported by this model"}})
                return
            with script.lock:
                script.billed += len(question) // 4 + 1
            self.send(200, reply)

        def send(self, status: int, reply: dict[str, Any], headers: dict[str, str] | None = None) -> None:
            raw = json.dumps(reply).encode()
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Nothing is printed."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # connections that may wait: as many as are asked at once

    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
