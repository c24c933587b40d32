"""From nothing to the first stored label: a fresh clone, one command, one answer.

usage: python benchmarks/first_label.py [--repository .]

`make label` in a new clone makes an environment of what the page needs, installs and serves; an account is made by the
link that it prints, and one comparison is answered over the page's interface. Then, with everything installed, how long
the page takes to be up.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx2

PASSWORD = "a long password 42"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repository", default=str(Path(__file__).parents[1]))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        clone = Path(room) / "burnish"
        subprocess.run(["git", "clone", "-q", args.repository, str(clone)], check=True)
        began = time.perf_counter()
        told = Path(room) / "told"
        link, server = served(["make", "label"], clone, told)
        print(f"installed and up after {time.perf_counter() - began:.1f} s")
        label(link)
        stop(server)
        with sqlite3.connect(clone / "example.sqlite") as database:
            (labels,) = database.execute("SELECT count(*) FROM labels").fetchone()
        print(f"first label stored after {time.perf_counter() - began:.1f} s ({labels} in the store)")
        burnish = str(clone / ".venv-label" / "bin" / "burnish")
        for _ in range(3):
            began = time.perf_counter()
            _, server = served([burnish, "label", "serve", "--example", "--admin-link"], clone, told)
            print(f"page up after {time.perf_counter() - began:.2f} s")
            stop(server)


def served(command: list[str], folder: Path, told: Path) -> tuple[str, subprocess.Popen[bytes]]:
    """The link that a server prints, once its page answers, and its process."""
    with told.open("wb") as file:
        server = subprocess.Popen(command, cwd=folder, stderr=file, stdout=file, start_new_session=True)
    while True:
        found = re.search(r"http://\S+/join/\S+", told.read_text())
        if found:
            try:
                url = found[0].split("/join/")[0]
                if httpx2.get(f"{url}/health", timeout=2).status_code == 200:
                    return found[0], server
            except httpx2.TransportError:
                pass
        if server.poll() is not None:
            sys.exit(told.read_text())
        time.sleep(0.02)


def stop(server: subprocess.Popen[bytes]) -> None:
    os.killpg(server.pid, signal.SIGINT)
    server.wait(20)


def label(link: str) -> None:
    """Make an account, answer what is practice and one comparison more, and finish."""
    url = link.split("/join/")[0]
    with httpx2.Client(base_url=url, follow_redirects=True, timeout=20) as http:
        form = http.get(link)
        signature = re.findall(r'name="csrf" value="([0-9a-f]+)"', form.text)[0]
        page = http.post(link, data={"csrf": signature, "name": "Ada", "password": PASSWORD})
        page.raise_for_status()
        csrf = re.findall(r'name="csrf" content="([0-9a-f]+)"', page.text)[0]
        headers = {"accept": "application/json", "x-csrf-token": csrf}
        task = json.loads(http.get("/label/example/next", headers=headers).text)["next"]
        practice = True
        while practice:
            practice = task["practice"]
            data = {"task": task["task"], "key": f"key-{task['task']}", "choice": "a2"}
            saved = json.loads(http.post("/label/example/save", data=data, headers=headers).text)
            assert saved["saved"], saved
            task = saved["next"]
        http.post("/label/example/finish", headers=headers).raise_for_status()


if __name__ == "__main__":
    main()
