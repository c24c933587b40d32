"""One process at a time works on a run. Its claim is a lease (filelock): renewed while it lives, free to take when its
process is dead on this machine, or when it was not renewed for a while on another machine."""

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

LEASE = 60.0  # seconds without a renewal after which a claim of another machine may be taken


def owner(path: Path) -> OwnerRecord | None:
    """The living process that holds the lock, or None. This only looks; `hold` takes the lock."""
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
    """Hold the lock for a block; `still_held` says whether it still is. Raises RunError naming the owner when another
    process has it; that of a dead process is taken over, after LEASE seconds of silence when it ran elsewhere."""
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
    """Raises RunError when the claim was lost: this process slept for so long that another took the run over."""
    if lease.compromise is not None:
        raise RunError(
            f"{Path(lease.lock_file).parent} was taken over by another process while this one did not answer "
            f"({lease.compromise.reason}); nothing more is written by this one"
        )


def _in_use(path: Path, held: OwnerRecord | None) -> RunError:
    who = f"process {held.pid} on {_host(held)}" if held is not None else "another process"
    return RunError(
        f"{who} works on {path.parent}; wait for it to end or stop it, then start this command again"
    )


def _host(held: OwnerRecord) -> str:
    return held.hostname.split("?")[0]  # what follows tells containers of one machine apart


def _is_here(held: OwnerRecord) -> bool:
    return held.hostname == _here()


@cache
def _here() -> str:
    """This machine (and container) as filelock writes it down."""
    with TemporaryDirectory() as room, SoftFileLease(Path(room) / "lock") as mine:
        me = mine.owner
    assert me is not None, "just written"
    return me.hostname


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
