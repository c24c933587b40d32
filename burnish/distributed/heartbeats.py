"""The processes of a run, as each sees the others: how they find one another, give signs of life, wait for a word, and
take turns at what each has a part of. `burnish/distributed/collectives.py` shares work by it."""

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

HEARTBEAT = 1.0  # seconds between two signs of life
FAREWELL = 10.0  # seconds that process 0 stays for the others
NOTHING = -1  # who asks for nothing
PARTS = 1 << 20  # of anything that is lent, at most
A_TURN = 0.005  # seconds between two looks for somebody who is to take part in a turn


@dataclass
class Lent:
    """Something of which each process has a part: what puts it together, and whose it is."""

    give: Callable[[int, bool], None]
    owner: weakref.ref[Any]


@dataclass
class World:
    """What this process knows of the run that it takes part in."""

    rank: int
    size: int
    timeout: float
    store: Any  # where processes leave one another word
    group: Any  # of all processes, for what lies in the main memory
    ours: bool  # whether the process group is ours to end
    alone: int = 0  # how many blocks of `alone` are open
    broadcasts: int = 0  # of the leader so far
    lent: list[Lent | None] = field(default_factory=list)  # None: no longer needed
    broken: Exception | None = None  # what stopped this process in a turn: it cannot take part any more
    turns: int = 0  # of those who may be waited for long
    patient: bool = False  # whether another process may be at work for longer than the time-out
    word: str | None = None  # that others wait for in the store, while this one works
    stop: Event = field(default_factory=Event)
    beat: Thread | None = None


def attempt() -> str:
    """How often torchrun has begun the processes anew."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def begin(timeout: float) -> World:
    """Find the other processes. Raises PeerFailed when they do not come within `timeout` seconds."""
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
    """Write every second that this process is alive; a process that waits for it checks that."""
    count = 0
    while not world.stop.wait(HEARTBEAT):
        count += 1
        try:
            world.store.set(life(world.rank), str(count))
        except RuntimeError:  # the process with the store is gone; the next use of the store raises
            return


def life(number: int) -> str:
    return f"burnish/alive/{number}"


def end(world: World) -> None:
    """Leave the other processes, and tell them if possible."""
    import torch.distributed as dist

    take_leave(world)
    world.stop.set()
    if world.beat is not None:
        world.beat.join(timeout=2 * HEARTBEAT)
    if world.ours and dist.is_initialized():
        dist.destroy_process_group()


def take_leave(world: World) -> None:
    """Process 0 may keep the store: it leaves last, so that all have its last word; after a failure too, but then it
    does not wait for long."""
    keys = [f"burnish/leaves/{number}" for number in range(1, world.size)]
    try:
        if world.rank:
            world.store.set(keys[world.rank - 1], "")
        else:
            world.store.wait(keys, timedelta(seconds=min(world.timeout, FAREWELL)))
    except RuntimeError:
        return  # a process is gone, and a remaining one has reported it


def local() -> int:
    """The number of this process on its machine, by which it takes its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def turn(world: World, wanted: int) -> bool:
    """One round of asking and giving, by all; whether anybody asked."""
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
        # The others go on to what this process left out: nothing can be said to them any more.
        world.broken = OutOfMemory(str(error)) if ran_out(error) else error
        raise world.broken from error
    return bool(parts)


def attend(world: World) -> None:
    """Answer requests of other processes until there are no more."""
    while any(world.lent) and turn(world, NOTHING):
        pass


@contextmanager
def answers(world: World) -> Iterator[None]:
    """What a library says of a process that does not answer, in words that help."""
    try:
        yield
    except RuntimeError as error:
        raise gone(world, line(error)) from error


def gone(world: World, why: str) -> PeerFailed:
    """What to raise of a process that does not answer."""
    return PeerFailed(
        f"process {world.rank} of {world.size} on {socket.gethostname()} had no answer from another one within "
        f"{world.timeout:g} s, or it is gone ({why}); look at what the others say, then start the same command again: "
        "it goes on from the last checkpoint"
    )


@dataclass
class Listening:
    """A thread that asks the store for a word: the store may never answer, if the process that keeps it hangs."""

    world: World
    key: str
    source: int  # the process that it is to come from
    longest: float = 0.5  # seconds between two looks
    word: bytes | None = None
    failed: str | None = None
    seen: bytes = b""
    since: float = field(default_factory=time.monotonic)  # the last sign of life
    done: Event = field(default_factory=Event)

    def listen(self) -> None:
        store, sign, pause = self.world.store, life(self.source), 0.001
        try:
            while not self.done.is_set():
                # Asked for, not waited for: a wait in the store that never ends looks like any other.
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
    """The word of a process, looked for every `pause` seconds at least, as long as it gives signs of life."""
    listening = Listening(world, key, source, pause)
    Thread(target=listening.listen, daemon=True).start()
    while not listening.done.wait(min(1.0, world.timeout)):
        if time.monotonic() - listening.since > world.timeout:
            listening.done.set()
            raise gone(world, f"process {source} gives no sign of life")
    if listening.word is None:
        raise gone(world, listening.failed or "no word came")
    return listening.word


def line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
