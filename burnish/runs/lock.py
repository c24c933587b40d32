"""The lock of a run: a lease (filelock) that one process at a time holds and renews.

It is free if its process is dead here, or if another machine has not renewed it for LEASE seconds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from filelock import OwnerRecord, SoftFileLease, Timeout

from burnish.errors import RunError

LEASE = 60.0  # seconds without a renewal after which the lease of another machine may be taken


def owner(path: Path) -> OwnerRecord | None:
    """Return the living process that holds the lock, or None; this does not take the lock."""
    held = SoftFileLease(path, lease_duration=LEASE).owner
    try:
        renewed = path.stat().st_mtime
    except FileNotFoundError:
        return None
    if held is None or time.time() - renewed > LEASE or (_is_here(held) and not _lives(held.pid)):
        return None
    return held


@contextmanager
def hold(path: Path) -> Iterator[SoftFileLease]:
    """Hold the lock for a block; raise RunError naming the owner if another process has it.

    A dead process's lock is taken over, after LEASE seconds of silence if the process ran elsewhere.
    """
    lease = SoftFileLease(path, lease_duration=LEASE, thread_local=False)
    try:
        lease.acquire(blocking=False)
    except Timeout:
        held = lease.owner
        if held is not None and _is_here(held) and _lives(held.pid):
            raise _in_use(path, held) from None
        try:
            lease.acquire(timeout=1.5 * LEASE)
        except Timeout:
            raise _in_use(path, lease.owner) from None
    try:
        yield lease
    finally:
        lease.release()


def still_held(lease: SoftFileLease) -> None:
    """Raise RunError if another process took the run over while this process was suspended."""
    if lease.compromise is not None:
        raise RunError(
            f"{Path(lease.lock_file).parent} was taken over by another process while this one did not renew its lock "
            f"({lease.compromise.reason}); this process writes nothing more"
        )


def _in_use(path: Path, held: OwnerRecord | None) -> RunError:
    who = f"process {held.pid} on {_host(held)}" if held is not None else "another process"
    return RunError(
        f"{who} works on {path.parent}; wait for it to end or stop it, then start this command again"
    )


def _host(held: OwnerRecord) -> str:
    return held.hostname.split("?")[0]  # the part after `?` distinguishes containers of one machine


def _is_here(held: OwnerRecord) -> bool:
    return held.hostname == _here()


@cache
def _here() -> str:
    """Return this machine (and container) as filelock records it."""
    with TemporaryDirectory() as room, SoftFileLease(Path(room) / "lock") as mine:
        me = mine.owner
    assert me is not None, "just written"
    return me.hostname


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
