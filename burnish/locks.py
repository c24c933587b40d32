"""One process at a time works on a run; a dead owner's lock is taken over."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from burnish.errors import RunError


def owner(path: Path) -> dict[str, Any] | None:
    """The living process that holds the lock, or None. The same pid with another start time is another process."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        if held["host"] != socket.gethostname():
            return dict(held)
        process = psutil.Process(held["pid"])
        alive = (
            process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - held["started"]) < 1.0
        )
    except (FileNotFoundError, json.JSONDecodeError, KeyError, psutil.NoSuchProcess):
        return None
    return dict(held) if alive else None


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock for a block. Raises RunError naming the owner when a living process has it.

    The lock file is created with its content by a hard link, which fails when the name exists; a dead owner's
    file is first moved aside by rename, which only one of two racing processes can do.
    """
    me = {
        "pid": os.getpid(),
        "started": psutil.Process().create_time(),
        "host": socket.gethostname(),
    }
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    aside.write_text(json.dumps(me), encoding="utf-8")
    try:
        while True:
            try:
                os.link(aside, path)
                break
            except FileExistsError:
                held = owner(path)
                if held is not None:
                    raise RunError(
                        f"process {held['pid']} on {held['host']} works on {path.parent}; wait for it to end or "
                        "stop it, then start this command again"
                    ) from None
                _remove_dead(path)
    finally:
        aside.unlink(missing_ok=True)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _remove_dead(path: Path) -> None:
    grave = path.with_name(f"{path.name}.dead-{os.getpid()}")
    try:
        path.rename(grave)
    except FileNotFoundError:
        return  # another process was faster; the next link decides
    if owner(grave) is not None:
        # Between our look and our rename another process had taken the lock over: give it back.
        os.link(grave, path)
    grave.unlink(missing_ok=True)
