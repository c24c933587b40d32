"""Ten thousand pairs through the labelling page: imported, labelled by simulated people over its own interface, agreed
upon, exported.

usage: python benchmarks/page_to_pairs.py [--pairs 10000] [--annotators 12] [--overlap 0.1]

The people like glad words, each with a noise of their own, and do not think for long. Every step is what a user would
do: `burnish label serve pairs.jsonl`, the page, `burnish label agree`, the dashboard's export.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx2

sys.path.append(str(Path(__file__).parents[1]))

from benchmarks.labelling_load import page
from burnish.rehearse.annotators import GLAD
from burnish.rehearse.grammar import sample_story
from burnish.textstats import words
from burnish.web.accounts import Accounts, open_accounts
from burnish.web.app_state import session_cookie


def worth(text: str) -> float:
    """How glad it is."""
    return sum(word.casefold() in GLAD for word in words(text))


def write_pairs(file: Path, n: int) -> None:
    rng = random.Random(0)
    found: dict[tuple[str, str, str], None] = {}
    while len(found) < n:
        first, second = sample_story(rng), sample_story(rng)
        if first.continuation != second.continuation:
            found[first.prompt, first.continuation, second.continuation] = None
    rows = ({"prompt": p, "responses": [a, b]} for p, a, b in found)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


async def work(url: str, name: str, cookie: str, signature: str, told: dict[str, int]) -> None:
    """One annotator, until nothing is left."""
    rng = random.Random(name)
    noise = rng.uniform(0.5, 2.0)
    headers = {"x-csrf-token": signature, "accept": "application/json", "cookie": cookie}
    async with httpx2.AsyncClient(base_url=url, timeout=60) as http:
        task: Any = json.loads((await http.get("/label/pairs/next", headers=headers)).text)["next"]
        while task is not None:
            lean = worth(task["responses"][0]) - worth(task["responses"][1]) + rng.gauss(0, noise)
            strength = min(3, 1 + int(abs(lean)))
            choice = "tie" if abs(lean) < 0.1 else f"{'a' if lean > 0 else 'b'}{strength}"
            data = {"task": task["task"], "key": secrets.token_hex(8), "choice": choice}
            reply = await http.post("/label/pairs/save", data=data, headers=headers)
            reply.raise_for_status()
            told["saves"] += 1
            task = json.loads(reply.text)["next"]
        (await http.post("/label/pairs/finish", headers=headers)).raise_for_status()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--annotators", type=int, default=12)
    parser.add_argument("--overlap", type=float, default=0.1)
    args = parser.parse_args()
    burnish = str(Path(sys.executable).parent / "burnish")
    with tempfile.TemporaryDirectory() as room:
        file, place = Path(room) / "pairs.jsonl", Path(room) / "pairs.sqlite"
        write_pairs(file, args.pairs)
        with open_accounts(place) as store:
            accounts = Accounts(store)
            people = []
            for k in range(args.annotators + 1):
                role = "annotator" if k else "viewer"
                link = accounts.invite(role, "benchmark")
                token = accounts.enter(accounts.join(link, f"p{k}", secrets.token_hex(12)))
                people.append((f"p{k}", f"{session_cookie(accounts)}={token}", accounts.signature(token)))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{free.getsockname()[1]}"
        told = {"saves": 0}
        command = [burnish, "label", "serve", str(file), "--port", url.rsplit(":", 1)[1]]
        began = time.perf_counter()

        def passed(what: str, since: float) -> float:
            print(f"{what:<34}{time.perf_counter() - since:7.1f} s", flush=True)
            return time.perf_counter()

        with page([*command, "--overlap", str(args.overlap)], url):
            began = passed("imported, and the page up", began)

            async def all_of_them() -> None:
                await asyncio.gather(*(work(url, *person, told) for person in people[1:]))

            asyncio.run(all_of_them())
            began = passed(f"{told['saves']} answers by {args.annotators} people", began)
            looking = httpx2.Client(base_url=url, headers={"cookie": people[0][1]}, timeout=120)
            exported = looking.get("/dashboard/pairs/export?as=pairs")
            exported.raise_for_status()
            rows = [json.loads(line) for line in exported.text.splitlines()]
            began = passed(f"exported: {len(rows)} pairs", began)
            looking.get("/dashboard/pairs").raise_for_status()
            looking.get("/dashboard/pairs/agreement").raise_for_status()
            began = passed("dashboard with agreement", began)
        agreed = subprocess.run(
            [burnish, "label", "agree", str(place), "--json"], check=True, capture_output=True, text=True
        )
        found = json.loads(agreed.stdout)
        passed("burnish label agree", began)
    right = sum(worth(row["chosen"]) > worth(row["rejected"]) for row in rows)
    alike = sum(worth(row["chosen"]) == worth(row["rejected"]) for row in rows)
    print(
        f"{found['labels']} labels of {found['comparisons']} comparisons, alpha {found['alpha']['value']:.3f} "
        f"[{found['alpha']['ci_low']:.3f}, {found['alpha']['ci_high']:.3f}]; ties {found['ties']}; of {len(rows)} "
        f"pairs {right} prefer the gladder answer, {alike} are alike"
    )


if __name__ == "__main__":
    main()
