"""Rewards over HTTP: the same scores as at home, many at once, every wrong request told what is wrong; and as a reward
of another run's PPO. Two reward models over the same pairs."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx2
import pytest

from burnish.config.ppo import FunctionReward
from burnish.errors import ConfigError
from burnish.records import Message, Prompt
from burnish.reward import remote
from burnish.reward.functions import load_term, token_of
from burnish.reward.remote import RemoteError, RemoteReward
from tests.command import burnish
from tests.shared_run import ARGUMENTS

PROMPT = "One day, Zoe had a red ball."
ANSWERS = [" Zoe was happy and sang.", " The ball was lost and full of fear.", " She ran.", ""]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def address(short_run: Path) -> Iterator[str]:
    """The short run's rewards, served from a thread of this process."""
    import uvicorn

    from burnish.web.reward_server import make_app

    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(make_app(short_run), host="127.0.0.1", port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(10)


def test_scores_are_those_of_the_command_line(short_run: Path, address: str) -> None:
    client = RemoteReward(address)
    assert client.about["members"] == 3
    there = client.rows([Prompt(PROMPT)] * 3, ANSWERS[:3])
    lines = "\n".join(ANSWERS[:3])
    done = burnish("reward", "score", str(short_run), "--prompt", PROMPT, "--json", stdin=lines)
    here = [json.loads(line) for line in done.stdout.splitlines()]
    for a, b in zip(there, here, strict=True):
        assert a["score"] == pytest.approx(b["score"], abs=1e-4)
        assert a["members"] == pytest.approx(b["members"], abs=1e-4)
        assert a["tokens"] == b["tokens"]
    cut = client.rows([Prompt(PROMPT)], ANSWERS[:1], [False])
    assert cut[0]["tokens"] == there[0]["tokens"] - 1
    with pytest.raises(RemoteError, match="no chat template"):
        client.scores([Prompt.from_messages([Message("user", PROMPT)])], ANSWERS[:1])


def test_many_at_once_are_each_answered(address: str) -> None:
    client = RemoteReward(address)
    alone = client.scores([Prompt(PROMPT)] * 4, ANSWERS)

    def ask(i: int) -> float:
        return client.scores([Prompt(PROMPT)], [ANSWERS[i % 4]])[0]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, range(64)))
    assert together == pytest.approx([alone[i % 4] for i in range(64)], abs=1e-4)


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "give `items`"),
        ({"items": []}, "give `items`"),
        ({"items": [{"prompt": PROMPT}]}, "item 1 is not a prompt with a response"),
        ({"items": [{"prompt": PROMPT, "response": 3}]}, "response is a number, not text"),
        ({"items": [{"prompt": [{"role": "user"}], "response": "x"}]}, "item 1"),
        ({"items": [{"prompt": PROMPT, "response": "x " * 900}]}, "row 1 has more tokens"),
        ({"items": [{"prompt": "x " * 900, "response": "x"}], "cut": True}, "row 1 has more tokens"),
        ({"items": [{"prompt": None, "response": "x"}]}, "empty prompt"),
        ({"items": [{"prompt": [], "response": "x"}]}, "empty prompt"),
        ({"items": [{"prompt": PROMPT, "response": "", "ended": False}]}, "nothing to read"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(address: str, body: object, told: str) -> None:
    answer = httpx2.post(f"{address}/score", json=body)
    assert answer.status_code == 422
    assert told in answer.text


def test_what_is_too_long_is_read_as_far_as_it_goes(address: str) -> None:
    long = RemoteReward(address).rows([Prompt(PROMPT)], [" She was happy." * 200])
    assert long[0]["tokens"] == 56


def test_a_failure_is_only_theirs_who_asked_for_it() -> None:
    """Requests that are served together: one of them cannot be scored, the others are."""
    from burnish.web.reward_server import Queue

    class Picky:
        def score(self, rows: list) -> list:
            if any(text == "bad" for _, text, _ in rows):
                raise ValueError("cannot be scored")
            return [{"score": float(len(text))} for _, text, _ in rows]

    async def ask() -> list:
        queue = Queue(Picky())  # type: ignore[arg-type]
        waiting = [
            asyncio.create_task(queue.ask([(Prompt("p"), text, True)])) for text in ("a", "bad", "ccc")
        ]
        worker = asyncio.create_task(queue.work())
        found = await asyncio.gather(*waiting, return_exceptions=True)
        worker.cancel()
        return found

    first, bad, third = asyncio.run(ask())
    assert first == [{"score": 1.0}]
    assert isinstance(bad, ValueError)
    assert third == [{"score": 3.0}]


def test_who_is_no_reward_server_is_found_out_at_once(address: str) -> None:
    with pytest.raises(ConfigError, match="does not answer as a reward server"):
        RemoteReward(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(ConfigError, match="does not answer as a reward server"):
        RemoteReward(f"{address}/nowhere")


class Failing(BaseHTTPRequestHandler):
    """A server that answers as it is told, in order."""

    answers: list[tuple[int, object]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self._say(200, {"model": "m", "members": 1})

    def do_POST(self) -> None:
        self._say(*self.answers.pop(0))

    def _say(self, status: int, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteReward]:
    monkeypatch.setattr(remote, "WAIT", 0.01)
    server = HTTPServer(("127.0.0.1", 0), Failing)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield RemoteReward(f"http://127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()


def test_a_passing_failure_is_tried_again_and_no_other(failing: RemoteReward) -> None:
    good = (200, {"scores": [{"score": 1.5}]})
    Failing.answers = [(503, {}), (502, {}), good]
    assert failing.scores([Prompt("p")], ["r"]) == [1.5]
    Failing.answers = [(422, {"detail": "too long"}), good]
    with pytest.raises(RemoteError, match="too long"):
        failing.scores([Prompt("p")], ["r"])
    assert len(Failing.answers) == 1
    Failing.answers = [(503, {})] * 9
    with pytest.raises(RemoteError, match="503"):
        failing.scores([Prompt("p")], ["r"])
    Failing.answers = [(200, {"scores": []})]
    with pytest.raises(RemoteError, match="0 scores for 1"):
        failing.scores([Prompt("p")], ["r"])
    Failing.answers = [(200, {"scores": [{"score": float("nan")}]})]
    with pytest.raises(RemoteError, match="some are not finite"):
        failing.scores([Prompt("p")], ["r"])


@pytest.mark.e2e
def test_another_runs_rewards_as_a_term_of_ppo(address: str, run_copy: Path) -> None:
    term = f"ppo.rewards=[{{url: '{address}', weight: 0.5, name: theirs}}]"
    burnish(
        *ARGUMENTS,
        *("--dir", str(run_copy), "--until", "align", "--redo"),
        *("--set", term, "--set", "ppo.updates=2", "--set", "dpo.when=never"),
    )
    rows = [json.loads(line) for line in (run_copy / "metrics" / "ppo.jsonl").read_text().splitlines()]
    assert len(rows) == 2
    assert "reward_theirs" in rows[0]
    # The same labels and seed made both: at the start they agree.
    assert rows[0]["reward_theirs"] == pytest.approx(rows[0]["reward_ensemble"], abs=0.5)


def test_a_term_is_one_of_three() -> None:
    with pytest.raises(ValueError, match="one of the three"):
        FunctionReward()
    with pytest.raises(ValueError, match="one of the three"):
        FunctionReward(function="m:f", url="http://x")
    assert FunctionReward(url="http://x").term == "remote"
    with pytest.raises(ConfigError):
        load_term(FunctionReward(url=f"http://127.0.0.1:{free_port()}"))


@pytest.mark.e2e
def test_two_reward_models_over_the_same_pairs(short_run: Path, tmp_path: Path) -> None:
    same = json.loads(burnish("reward", "compare", str(short_run), str(short_run), "--json").stdout)
    assert same["agree"] == 1
    assert same["difference"]["value"] == 0
    assert same["pairs"] > 20
    assert same["left_out"] == 0
    other = tmp_path / "other"
    burnish(*ARGUMENTS, "--dir", str(other), "--set", "seed=1", "--until", "reward")
    told = burnish("reward", "compare", str(short_run), str(other)).stdout
    assert str(other) in told
    found = json.loads(burnish("reward", "compare", str(short_run), str(other), "--json").stdout)
    assert 0.3 < found["agree"] < 1
    ours, theirs = found["accuracy"]
    assert found["difference"]["value"] == pytest.approx(ours["value"] - theirs["value"])
    assert found["apart"][0]["margins"][0] * found["apart"][0]["margins"][1] <= 0


def test_a_token_a_host_and_a_body_are_looked_at(short_run: Path) -> None:
    from fastapi.testclient import TestClient

    from burnish.web import reward_server

    app = reward_server.make_app(short_run, token="s3cret", hosts=["localhost"])
    http = TestClient(app, base_url="http://localhost")
    item = {"items": [{"prompt": PROMPT, "response": ANSWERS[0]}]}
    own = {"authorization": "Bearer s3cret"}
    with http:
        assert http.get("/health").status_code == 401
        assert http.post("/score", json=item, headers={"authorization": "Bearer other"}).status_code == 401
        assert http.post("/score", json=item, headers=own).status_code == 200
        assert http.get("/health", headers={**own, "host": "evil.example"}).status_code == 400
        assert http.get("/docs", headers=own).status_code == 404
        large = {**own, "content-length": str(reward_server.MOST_BYTES + 1)}
        assert http.post("/score", content=b"{}", headers=large).status_code == 413
    for host, more, why in (
        ("192.0.2.1", {}, "--token-env"),
        ("192.0.2.1", {"token": "t"}, "--certificate"),
        ("0.0.0.0", {"token": "t", "proxy": True}, "--public"),
    ):
        with pytest.raises(ConfigError, match=why):
            reward_server.serve(short_run, host, 0, **more)  # type: ignore[arg-type]


def test_the_token_of_a_reward_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    term = FunctionReward(url="http://127.0.0.1:1", token_env="BURNISH_TEST_TOKEN")
    with pytest.raises(ConfigError, match="BURNISH_TEST_TOKEN"):
        token_of(term)
    monkeypatch.setenv("BURNISH_TEST_TOKEN", "t")
    assert token_of(term) == "t"
