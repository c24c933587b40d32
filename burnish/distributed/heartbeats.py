"""Connection between the processes of a run: start, heartbeats, messages and turns.

In a turn, all processes gather objects of which each has a part.
`burnish/distributed/collectives.py` is built on this file.
"""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from threading import Event, Thread
from typing import Any

from burnish.errors import OutOfMemory, PeerFailed, ran_out

HEARTBEAT = 1.0  # seconds between two heartbeats
FAREWELL = 10.0  # seconds that process 0 waits at most for the others to leave
NOTHING = -1  # request of a process that needs no part
PARTS = 1 << 20  # largest number of parts of a lent object
A_TURN = 0.005  # seconds between two checks for a process that must take part in a turn


@dataclass
class Lent:
    """An object of which each process has a part: the function that gathers it, and its owner."""

    give: Callable[[int, bool], None]
    owner: weakref.ref[Any]


@dataclass
class World:
    """State of this process in its run."""

    rank: int
    size: int
    timeout: float
    store: Any  # key-value store for messages between processes
    group: Any  # of all processes, for tensors in main memory
    ours: bool  # whether this code must destroy the process group
    alone: int = 0  # how many blocks of `alone` are open
    broadcasts: int = 0  # number of messages through the store so far
    lent: list[Lent | None] = field(default_factory=list)  # None: no longer needed
    broken: Exception | None = None  # error in a turn, after which this process cannot take part
    turns: int = 0  # number of turns in which processes may wait for long
    patient: bool = False  # whether another process may be at work for longer than the time-out
    word: str | None = None  # key in the store that others wait for, while this one works
    stop: Event = field(default_factory=Event)
    beat: Thread | None = None


def attempt() -> str:
    """Return how often torchrun has restarted the processes."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def begin(timeout: float) -> World:
    """Connect to the other processes; raise PeerFailed if this takes over `timeout` seconds."""
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    limit = timedelta(seconds=timeout)
    ours = not dist.is_initialized()
    if ours:
        if torch.cuda.is_available():
            torch.cuda.set_device(local() % torch.cuda.device_count())
        try:
            store, number, size = next(iter(rendezvous("env://", timeout=limit)))
            store.set_timeout(limit)
            # torchrun keeps its store over restarts, with the addresses of processes that are gone.
            store = dist.distributed_c10d.PrefixStore(f"burnish/{attempt()}", store)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise PeerFailed(
                f"the processes of this run did not find one another ({line(error)}); start all of them, with one "
                "MASTER_ADDR and MASTER_PORT, or by torchrun"
            ) from error
    else:
        store = dist.distributed_c10d._get_default_store()
    group = dist.new_group(backend="gloo", timeout=limit)
    world = World(dist.get_rank(), dist.get_world_size(), timeout, store, group, ours)
    world.beat = Thread(target=beat, args=(world,), daemon=True)
    world.beat.start()
    return world


def beat(world: World) -> None:
    """Write a heartbeat every second; a process that waits for this one checks it."""
    count = 0
    while not world.stop.wait(HEARTBEAT):
        count += 1
        try:
            world.store.set(life(world.rank), str(count))
        except RuntimeError:  # the process with the store is gone; the next use of the store raises
            return


def life(number: int) -> str:
    """Return the store key of a process's heartbeat."""
    return f"burnish/alive/{number}"


def end(world: World) -> None:
    """Leave the other processes, and notify them if possible."""
    import torch.distributed as dist

    take_leave(world)
    world.stop.set()
    if world.beat is not None:
        world.beat.join(timeout=2 * HEARTBEAT)
    if world.ours and dist.is_initialized():
        dist.destroy_process_group()


def take_leave(world: World) -> None:
    """Announce that this process leaves; process 0 leaves last.

    Process 0 may keep the store, so the others can read its last message. It waits at most
    `FAREWELL` seconds, also after a failure.
    """
    keys = [f"burnish/leaves/{number}" for number in range(1, world.size)]
    try:
        if world.rank:
            world.store.set(keys[world.rank - 1], "")
        else:
            world.store.wait(keys, timedelta(seconds=min(world.timeout, FAREWELL)))
    except RuntimeError:
        return  # a process is gone, and a remaining one has reported it


def local() -> int:
    """Return the number of this process on its machine, which selects its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def turn(world: World, wanted: int) -> bool:
    """Run one round of requests by all processes; return whether any process requested a part."""
    import torch
    import torch.distributed as dist

    if world.broken is not None:
        raise world.broken
    if world.patient:
        world.turns += 1
        key = f"burnish/turn/{world.turns}"
        world.store.set(f"{key}/{world.rank}", "")
        for number in range(world.size):
            if number != world.rank:
                wait_for(world, f"{key}/{number}", number, pause=A_TURN)
        world.store.delete_key(f"burnish/turn/{world.turns - 1}/{world.rank}")  # all have seen it
    asked = [torch.empty(1, dtype=torch.int64) for _ in range(world.size)]  # device: the main memory
    with answers(world):
        dist.all_gather(asked, torch.tensor([wanted]), group=world.group)
    parts = sorted({int(x) for x in asked} - {NOTHING})
    try:
        for part in parts:
            lent = world.lent[part // PARTS]
            assert lent is not None, "its owner is gone"
            lent.give(part % PARTS, part == wanted)
    except Exception as error:
        # The others go on to the collective that this process left: no message can reach them.
        world.broken = OutOfMemory(str(error)) if ran_out(error) else error
        raise world.broken from error
    return bool(parts)


def attend(world: World) -> None:
    """Answer requests of other processes until there are none."""
    while any(world.lent) and turn(world, NOTHING):
        pass


@contextmanager
def answers(world: World) -> Iterator[None]:
    """Turn a library's error about a process that does not answer into a clear PeerFailed."""
    try:
        yield
    except RuntimeError as error:
        raise gone(world, line(error)) from error


def gone(world: World, why: str) -> PeerFailed:
    """Return the error to raise for a process that does not answer."""
    return PeerFailed(
        f"process {world.rank} of {world.size} on {socket.gethostname()} had no answer from another one within "
        f"{world.timeout:g} s, or it is gone ({why}); check what the others print, then run the same command again: "
        "it continues from the last checkpoint"
    )


@dataclass
class Listening:
    """A thread's poll of the store for a message; the store may hang and never answer."""

    world: World
    key: str
    source: int  # the process that sends the message
    longest: float = 0.5  # most seconds between two checks
    word: bytes | None = None
    failed: str | None = None
    seen: bytes = b""
    since: float = field(default_factory=time.monotonic)  # time of the last heartbeat
    done: Event = field(default_factory=Event)

    def listen(self) -> None:
        """Poll the store until the message comes, the store fails or `done` is set."""
        store, sign, pause = self.world.store, life(self.source), 0.001
        try:
            while not self.done.is_set():
                # Poll, since a wait in the store that never ends looks like any other wait.
                if store.check([self.key]):
                    self.word = bytes(store.get(self.key))
                    break
                alive = store.get(sign) if store.check([sign]) else b""
                if alive != self.seen:
                    self.seen, self.since = alive, time.monotonic()
                time.sleep(pause)
                pause = min(self.longest, pause * 1.2)
        except RuntimeError as error:
            self.failed = line(error)
        self.done.set()


def wait_for(world: World, key: str, source: int, pause: float = 0.5) -> bytes:
    """Return the message of a process, as long as that process gives heartbeats.

    The store is checked every `pause` seconds at least. Raise PeerFailed when no heartbeat comes
    within the time-out.
    """
    listening = Listening(world, key, source, pause)
    Thread(target=listening.listen, daemon=True).start()
    while not listening.done.wait(min(1.0, world.timeout)):
        if time.monotonic() - listening.since > world.timeout:
            listening.done.set()
            raise gone(world, f"process {source} sends no heartbeat")
    if listening.word is None:
        raise gone(world, listening.failed or "no message came")
    return listening.word


def line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
