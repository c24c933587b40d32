"""PostgreSQL for tests: Debian's server, started by an ordinary user, on a socket in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def server_programs() -> Path | None:
    """The folder of the newest server's programs; None where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if found:
        return found[-1].parent
    beside = shutil.which("initdb")
    return None if beside is None else Path(beside).resolve().parent


def _ordinary() -> dict[str, int]:
    """Who runs the server, which refuses root."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid}


@contextmanager
def server(programs: Path, *, fsync: bool = False) -> Iterator[str]:
    """The base URL of a running server, whose databases end with it; with `fsync` it writes as it does for others."""
    room = Path(tempfile.mkdtemp(prefix="burnish-pg-", dir="/tmp"))  # a socket's path has 107 letters at most
    who = _ordinary()
    if who:
        os.chown(room, who["user"], who["group"])
    data = room / "data"

    def call(*command: str) -> None:
        subprocess.run(command, check=True, capture_output=True, cwd=room, **who)  # type: ignore[call-overload]

    try:
        call(
            str(programs / "initdb"),
            "-D",
            str(data),
            "-A",
            "trust",
            "-U",
            "burnish",
            "--no-sync",
            "-E",
            "UTF8",
        )
        options = f"-k {room} -c listen_addresses='' -c fsync={'on' if fsync else 'off'}"
        log = str(room / "log")
        call(str(programs / "pg_ctl"), "-D", str(data), "-w", "-l", log, "-o", options, "start")
        try:
            yield f"postgresql+psycopg://burnish@/{{database}}?host={room}"
        finally:
            call(str(programs / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(room, ignore_errors=True)
