"""Fifty simulated annotators at one labelling page, which is killed meanwhile: how fast, and what is lost.

usage: python benchmarks/labelling_load.py [--store sqlite|postgresql] [--annotators 50] [--seconds 120]
           [--comparisons 100000] [--kills 2] [--think 1 3] [--overlap 0.1]

The page is `burnish label serve` in a process of its own. The annotators keep their own account of every save that was
acknowledged, send one that was not again under its own key, and hold the account against the store at the end. Times
are of requests that were answered; how long the page was away is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

sys.path.append(str(Path(__file__).parents[1]))

from burnish.data.store import LabelStore, Place
from burnish.labels.tasks import Rules
from burnish.records import Comparison, Prompt, Response
from burnish.web.accounts import Accounts, open_accounts
from burnish.web.app_state import session_cookie
from tests.databases import server, server_programs

WORDS = (
    "the",
    "a",
    "ladder",
    "river",
    "said",
    "gladly",
    "old",
    "of",
    "went",
    "kept",
    "house",
    "who",
    "never",
    "came",
)
CHOICES = ("a3", "a2", "a1", "tie", "b1", "b2", "b3")
WAITS = (0.5, 1, 2, 4, 8)  # seconds before a request that was not answered goes out again, as on the page
PREFERRED = {"a": 1.0, "t": 0.5, "b": 0.0}


@dataclass
class Account:
    """What the annotators know: times of requests, saves that were acknowledged, and what went wrong."""

    times: dict[str, list[float]] = field(default_factory=lambda: {"next": [], "save": []})
    saved: dict[str, tuple[str, str, list[str]]] = field(
        default_factory=dict
    )  # task: who, choice, what was shown
    sent_again: int = 0
    away: list[float] = field(default_factory=list)
    odd: Counter[str] = field(default_factory=Counter)


def fill(place: Place, comparisons: int, annotators: int) -> dict[str, tuple[str, str]]:
    """Comparisons and people; by name the cookie of a session and what signs its forms."""
    rng = random.Random(0)

    def text(n: int) -> str:
        return " ".join(rng.choices(WORDS, k=n))

    with LabelStore(place) as store:
        store.add_comparisons(
            Comparison(Prompt(f"{i} {text(30)}"), Response(f"{text(60)} {i}a"), Response(f"{text(60)} {i}b"))
            for i in range(comparisons)
        )
    with open_accounts(place) as kept:
        accounts = Accounts(kept)
        link = accounts.invite("annotator", "benchmark", uses=annotators)
        found = {}
        for k in range(annotators):
            token = accounts.enter(accounts.join(link, f"p{k}", secrets.token_hex(12)))
            found[f"p{k}"] = f"{session_cookie(accounts)}={token}", accounts.signature(token)
        return found


@contextmanager
def page(command: list[str], url: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The server, as a list of one that whoever kills it fills anew."""
    running = [start(command)]
    wait_until_up(url)
    try:
        yield running
    finally:
        running[0].send_signal(signal.SIGINT)
        running[0].wait(30)


def start(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})


def wait_until_up(url: str) -> float:
    began = time.perf_counter()
    while True:
        try:
            if httpx2.get(f"{url}/health", timeout=1).status_code == 200:
                return time.perf_counter() - began
        except httpx2.TransportError:
            time.sleep(0.02)


class Annotator:
    """One who thinks, chooses, and sends again what was not acknowledged."""

    def __init__(
        self, name: str, http: httpx2.AsyncClient, signature: str, account: Account, until: float
    ) -> None:
        self.name, self.http, self.account, self.until = name, http, account, until
        self.headers = {"x-csrf-token": signature, "accept": "application/json"}
        self.rng = random.Random(name)

    async def ask(self, kind: str, path: str, data: dict[str, str] | None = None) -> Any:
        tries = 0
        while True:
            began = time.perf_counter()
            try:
                method = "GET" if data is None else "POST"
                reply = await self.http.request(method, path, data=data, headers=self.headers)
            except httpx2.TransportError:
                await asyncio.sleep(WAITS[min(tries, len(WAITS) - 1)] * self.rng.uniform(0.5, 1.5))
                tries += 1
                continue
            self.account.times[kind].append(time.perf_counter() - began)
            self.account.sent_again += tries > 0 and data is not None
            if reply.status_code != 200:
                self.account.odd[f"{kind} {reply.status_code}"] += 1
                return None
            return json.loads(reply.text)

    async def work(self, think: tuple[float, float]) -> None:
        await asyncio.sleep(self.rng.uniform(0, think[1]))
        task = (await self.ask("next", "/label/load/next"))["next"]
        while task is not None and time.perf_counter() < self.until:
            thought = self.rng.uniform(*think)
            await asyncio.sleep(thought)
            choice = self.rng.choice(CHOICES)
            data = {
                "task": task["task"],
                "key": self.rng.randbytes(16).hex(),
                "choice": choice,
                "seconds": f"{thought:.1f}",
            }
            told = await self.ask("save", "/label/load/save", data)
            if told is None:
                task = (await self.ask("next", "/label/load/next"))["next"]
                continue
            if task["task"] in self.account.saved:
                self.account.odd["one task saved twice"] += 1
            self.account.saved[task["task"]] = self.name, choice, task["responses"]
            task = told["next"]
            if self.rng.random() < 0.2:  # some reload the page
                task = (await self.ask("next", "/label/load/next"))["next"]


async def load(
    url: str,
    people: dict[str, tuple[str, str]],
    account: Account,
    args: argparse.Namespace,
    running: list[subprocess.Popen[bytes]],
    command: list[str],
) -> None:
    began = time.perf_counter()
    clients = [
        httpx2.AsyncClient(base_url=url, headers={"cookie": cookie}, timeout=30)
        for cookie, _ in people.values()
    ]
    workers = [
        asyncio.create_task(
            Annotator(name, http, signature, account, began + args.seconds).work(tuple(args.think))
        )
        for http, (name, (_, signature)) in zip(clients, people.items(), strict=True)
    ]
    for k in range(args.kills):
        await asyncio.sleep(max(0.0, began + args.seconds * (k + 1) / (args.kills + 1) - time.perf_counter()))
        running[0].kill()
        killed = time.perf_counter()
        running[0].wait()
        running[0] = start(command)
        await asyncio.to_thread(wait_until_up, url)
        account.away.append(time.perf_counter() - killed)
    await asyncio.gather(*workers)
    for http in clients:
        await http.aclose()


def held_against(place: Place, account: Account, rules: Rules) -> dict[str, int]:
    """What the store has of what was acknowledged, and what it has too much of."""
    from burnish.labels.tasks import settle

    with LabelStore(place) as store:
        with store.writing() as session:
            settle(store, session, time.time() + 1e9)
        comparisons = {}
        labels = list(store.labels())
        for i in range(0, len(labels), 500):
            chunk = [label.comparison_id for label in labels[i : i + 500]]
            comparisons.update({c.id: c for c in store.find(chunk)})
        given: Counter[tuple[str, str, str, float]] = Counter()
        for label in labels:
            c = comparisons[label.comparison_id]
            given[label.annotator, c.first.text, c.second.text, label.preference] += 1
    lost = 0
    for who, choice, (a, b) in account.saved.values():
        value = PREFERRED[choice[0]]
        for first, second, preference in ((a, b, value), (b, a, 1 - value)):
            if given[f"person:{who}", first, second, preference]:
                given[f"person:{who}", first, second, preference] -= 1
                break
        else:
            lost += 1
    per = Counter(label.comparison_id for label in labels)
    twice = Counter((label.comparison_id, label.annotator) for label in labels)
    return {
        "acknowledged": len(account.saved),
        "labels": len(labels),
        "lost": lost,
        "of nobody's account": sum(given.values()),
        "twice by one person": sum(n > 1 for n in twice.values()),
        "more than were wanted": sum(n > rules.wanted(i) for i, n in per.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--store", choices=["sqlite", "postgresql"], default="sqlite")
    parser.add_argument("--annotators", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--comparisons", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=2)
    parser.add_argument("--think", type=float, nargs=2, default=[1.0, 3.0])
    parser.add_argument("--overlap", type=float, default=0.1)
    args = parser.parse_args()
    programs = server_programs()
    if args.store == "postgresql" and programs is None:
        sys.exit("PostgreSQL's server is not installed")
    database = server(programs, fsync=True) if args.store == "postgresql" and programs else nullcontext("")
    with tempfile.TemporaryDirectory() as room, database as base:
        place: Place = Path(room) / "load.sqlite"
        if base:
            place = make_database(base)
        people = fill(place, args.comparisons, args.annotators)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        burnish = str(Path(sys.executable).parent / "burnish")
        command = [burnish, "label", "serve", str(place), "--port", str(port), "--overlap", str(args.overlap)]
        account = Account()
        with page(command, url) as running:
            asyncio.run(load(url, people, account, args, running, command))
        print(
            f"{args.store}: {args.annotators} annotators, {args.seconds:.0f} s, {args.comparisons} comparisons"
        )
        for kind, times in account.times.items():
            ms = sorted(1000 * t for t in times)
            print(
                f"  {kind:<5} n {len(ms):>6}  median {statistics.median(ms):6.1f} ms  "
                f"p99 {ms[int(0.99 * (len(ms) - 1))]:6.1f} ms  most {ms[-1]:6.1f} ms"
            )
        print(
            f"  killed {args.kills} times, away for {', '.join(f'{s:.1f}' for s in account.away)} s; "
            f"{account.sent_again} saves sent again; odd: {dict(account.odd)}"
        )
        for name, n in held_against(place, account, Rules(overlap=args.overlap)).items():
            print(f"  {name}: {n}")


def make_database(base: str) -> str:
    from sqlalchemy import create_engine, text

    admin = create_engine(base.format(database="postgres"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE load"))
    admin.dispose()
    return base.format(database="load")


if __name__ == "__main__":
    main()
