"""Several processes that carry out one run together: every one does the whole of it, deals out what is large, and comes
to the same decisions.

Rows are dealt one after the other (row i belongs to process i % size), what is read of them is gathered, gradients are
added up; whole jobs (a reward model to train) are dealt to one process each. Whatever any process decides by, all have.
A process that fails makes all fail, before anybody waits for it; one that hangs or dies ends the others within
`timeout` seconds. Alone, nothing here does anything.

The processes are started by torchrun, by `burnish run --workers`, or by Ray Train; all set the same variables.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import socket
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import wraps
from threading import Event, Thread
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from burnish.errors import BurnishError, OutOfMemory, PeerFailed, Waiting, from_words, in_words, ran_out

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
P = ParamSpec("P")

HEARTBEAT = 1.0  # seconds between two signs of life
FAREWELL = 10.0  # seconds that process 0 stays for the others
ATTEND = b"attend"  # the leader's word, where it asks for something before it has come to its end
NOTHING = -1  # who asks for nothing
PARTS = 1 << 20  # of anything that is lent, at most
A_TURN = 0.005  # seconds between two looks for somebody who is to take part in a turn
TIMEOUT = 600.0  # seconds without an answer of another process after which this one gives up


@dataclass
class _Lent:
    """Something of which each process has a part: what puts it together, and whose it is."""

    give: Callable[[int, bool], None]
    owner: weakref.ref[Any]


@dataclass
class _World:
    rank: int
    size: int
    timeout: float
    store: Any  # where processes leave one another word
    group: Any  # of all processes, for what lies in the main memory
    ours: bool  # whether the process group is ours to end
    alone: int = 0  # how many blocks of `alone` are open
    told: int = 0  # words of the leader so far
    lent: list[_Lent | None] = field(default_factory=list)  # None: nobody needs it any more
    broken: Exception | None = (
        None  # what stopped this process in the middle of a turn: it cannot take part any more
    )
    turns: int = 0  # of those who may be waited for long
    patient: bool = False  # whether another process may be at work for longer than the time-out
    word: str | None = None  # that others wait for in the store, while this one works
    stop: Event = field(default_factory=Event)
    beat: Thread | None = None


_world: _World | None = None


def launched() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _attempt() -> str:
    """How often torchrun has begun the processes anew."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def first() -> bool:
    """Whether this process was started as the first, or alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def together(timeout: float = TIMEOUT) -> Iterator[None]:
    """Take part in the run that this process was started for, for a block. Nothing where it was started alone, and
    nothing anew within such a block."""
    global _world
    if _world is not None or not launched():
        yield
        return
    _world = _begin(timeout)
    try:
        yield
    finally:
        world, _world = _world, None
        _end(world)


def _begin(timeout: float) -> _World:
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
            store = dist.distributed_c10d.PrefixStore(f"burnish/{_attempt()}", store)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=limit)
        except (RuntimeError, ValueError) as error:
            raise PeerFailed(
                f"the processes of this run did not find one another ({_line(error)}); start all of them, with one "
                "MASTER_ADDR and MASTER_PORT, or by torchrun"
            ) from error
    else:
        store = dist.distributed_c10d._get_default_store()
    group = dist.new_group(backend="gloo", timeout=limit)
    world = _World(dist.get_rank(), dist.get_world_size(), timeout, store, group, ours)
    world.beat = Thread(target=_beat, args=(world,), daemon=True)
    world.beat.start()
    return world


def _beat(world: _World) -> None:
    """Say every second that this process lives: whoever waits for it for long looks whether it does."""
    count = 0
    while not world.stop.wait(HEARTBEAT):
        count += 1
        try:
            world.store.set(_life(world.rank), str(count))
        except RuntimeError:  # the store has gone with whoever kept it; who needs it next will say so
            return


def _life(number: int) -> str:
    return f"burnish/alive/{number}"


def _end(world: _World) -> None:
    import torch.distributed as dist

    _take_leave(world)
    world.stop.set()
    if world.beat is not None:
        world.beat.join(timeout=2 * HEARTBEAT)
    if world.ours and dist.is_initialized():
        dist.destroy_process_group()


def _take_leave(world: _World) -> None:
    """Process 0 may keep the store: it leaves last, so that all have its last word; after a failure too, but then it
    does not wait for long."""
    keys = [f"burnish/leaves/{number}" for number in range(1, world.size)]
    try:
        if world.rank:
            world.store.set(keys[world.rank - 1], "")
        else:
            world.store.wait(keys, timedelta(seconds=min(world.timeout, FAREWELL)))
    except RuntimeError:
        return  # somebody is gone, and whoever is left has said so


def local() -> int:
    """The number of this process on its machine, by which it takes its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def neighbours() -> int:
    """How many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def size() -> int:
    """How many processes share what comes now."""
    return 1 if _world is None or _world.alone else _world.size


def rank() -> int:
    """The number of this process among those that share what comes now."""
    return 0 if _world is None or _world.alone else _world.rank


def leads() -> bool:
    """Whether this process is the one that writes files and talks to people: process 0, also within `alone`."""
    return _world is None or _world.rank == 0


def processes() -> int:
    """How many processes carry out the run."""
    return 1 if _world is None else _world.size


def mine(rows: Sequence[int]) -> list[int]:
    """Those of numbered rows that are this process's own."""
    return [row for row in rows if row % size() == rank()]


@contextmanager
def alone() -> Iterator[None]:
    """For a block that is carried out by this process for itself: nothing in it is shared."""
    if _world is None:
        yield
        return
    _world.alone += 1
    try:
        yield
    finally:
        _world.alone -= 1


def each(work: Callable[[], T]) -> list[T]:
    """What `work` comes to in every process, in their order. Where it fails in one of them, all raise that error (the
    first one's), so that nobody waits for who will not come."""
    if size() == 1:
        return [work()]
    error: Exception | None = None
    try:
        word: tuple[Any, Any] = (None, work())
    except Exception as failed:  # noqa: BLE001 - told to all, then raised
        error, word = failed, (in_words(failed), None)
    words = _exchange(word)
    first = next((i for i, (failed, _) in enumerate(words) if failed is not None), None)
    if first is None:
        return [value for _, value in words]
    if error is not None and first == rank():
        raise error
    raise _from(first, words[first][0]) from error


def gather(n: int, work: Callable[[list[int]], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """(n, ...) tensors that `work` (given its own row numbers, one at least) makes of n rows, put together from all
    processes, on every one of them, on the device where its own part was made."""
    if size() == 1:
        return work(list(range(n)))
    import torch

    own = mine(range(n))
    made: list[torch.Tensor] = []

    def part() -> list[torch.Tensor]:
        made.extend(work(own) if own else ())
        return [x.detach().cpu() for x in made]

    parts = each(part)
    some = next(part for part in parts if part)
    whole = [torch.empty((n, *x.shape[1:]), dtype=x.dtype, device=x.device) for x in some]
    for number, found in enumerate(parts):
        for x, rows in zip(whole, found, strict=False):
            x[number :: size()] = rows
    return tuple(x.to(own_x.device) for x, own_x in zip(whole, made, strict=True)) if made else tuple(whole)


def add(
    parameters: Sequence[torch.nn.Parameter], work: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """Add up over all processes the gradients that `work` leaves in the parameters, and the figures it returns. All
    gradients of a kind go as one; a process that had no rows counts as zero."""
    if size() == 1:
        return dict(work())
    import torch

    figures: dict[str, float] = {}
    for told in each(lambda: dict(work())):
        for name, value in told.items():
            figures[name] = figures.get(name, 0.0) + value
    for p in parameters:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    kinds = sorted({(str(p.dtype), str(p.device)) for p in parameters})
    for kind in kinds:
        grads = [p.grad for p in parameters if (str(p.dtype), str(p.device)) == kind and p.grad is not None]
        joined = torch.cat([g.reshape(-1) for g in grads])
        _reduce(joined)
        parts = torch.split(joined, [g.numel() for g in grads])
        for grad, summed in zip(grads, parts, strict=True):
            grad.copy_(summed.view_as(grad))
    return figures


def locally(work: Callable[[], T]) -> T:
    """What `work` comes to in this process, once it is known that it fails in none."""
    if size() == 1:
        return work()
    own: list[T] = []
    each(lambda: own.append(work()))
    return own[0]


def leaders(value: T) -> T:
    """The value that process 0 has, on all."""
    return value if size() == 1 else each(lambda: value)[0]


def deal(jobs: Sequence[T], work: Callable[[list[T]], list[Any]]) -> list[Any]:
    """What whole jobs come to, in their order, each carried out by one process alone; `work` is given those of a
    process together. What it returns is sent to all."""
    if size() == 1:
        return work(list(jobs))

    def own() -> list[Any]:
        with alone():
            return work(taken) if taken else []

    taken = list(jobs[rank() :: size()])
    assert _world is not None
    key = _next_key(_world)
    place = _place()
    _attend(_world)
    _world.patient = True
    try:
        done, failed = own(), None
    except Exception as error:  # noqa: BLE001 - told to all, then raised
        done, failed = [], error
    _attend(_world)
    _world.patient = False
    found = _after_all(_world, key, place, done, failed)
    return [found[i % size()][i // size()] for i in range(len(jobs))]


def in_turns(work: Callable[[], T]) -> T:
    """What `work` comes to in this process, done by the processes of a machine one after the other, however long each
    takes. Where it fails in one, all raise that error."""
    if size() == 1:
        return work()
    assert _world is not None
    _attend(_world)
    key, place = _next_key(_world), _place()
    done: list[T] = []
    failed: Exception | None = None
    if local():
        _wait_for(_world, f"{key}/{_world.rank - 1}", _world.rank - 1)
    try:
        done.append(work())
    except Exception as error:  # noqa: BLE001 - told to all, then raised
        failed = error
    _after_all(_world, key, place, None, failed)
    return done[0]


def _after_all(world: _World, key: str, place: str, done: T, failed: Exception | None) -> list[T]:
    """What all have done, once all are there: they may differ by more than anybody waits in a collective."""
    world.store.set(f"{key}/{world.rank}", pickle.dumps(place))
    for number in range(world.size):
        _same_way(world, pickle.loads(_wait_for(world, f"{key}/{number}", number)), place, number)

    def told() -> T:
        if failed is not None:
            raise failed
        return done

    return each(told)


def _next_key(world: _World) -> str:
    """Of the next thing that is said through the store, in all processes the same."""
    world.told += 1
    return f"burnish/word/{world.told}"


def _place() -> str:
    """The line outside this file that shares what comes now: by it processes that went different ways are told."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}, line {frame.f_lineno}"


def _same_way(world: _World, theirs: str, ours: str, number: int) -> None:
    if theirs != ours:
        raise PeerFailed(
            f"process {number} shares what is done at {theirs}, process {world.rank} at {ours}: they went different "
            "ways, which no input should bring about; please report it, and go on by one process (scale.workers: 1)"
        )


def from_lead(work: Callable[[], T]) -> T:
    """What `work` comes to in process 0, which carries it out alone; all others wait for its word, however long it
    takes, as long as it lives. An error there is raised by all."""
    if _world is None or _world.alone:
        return work()
    world, place = _world, _place()
    _attend(world)
    key = _next_key(world)
    if world.rank:
        word = _wait_for(world, key, 0)
        if word == ATTEND:
            _attend(world)
            world.patient = True
            _attend(world)
            world.patient = False
            word = _wait_for(world, f"{key}/after", 0)
        theirs, failed, value = pickle.loads(word)
        _same_way(world, theirs, place, 0)
        if failed is not None:
            raise _from(0, failed)
        return value  # type: ignore[no-any-return]
    world.word = key
    try:
        with alone():
            value = work()
    except Exception as error:
        _say(world, key, (place, in_words(error), None))
        raise
    _say(world, key, (place, None, value))
    return value


def _say(world: _World, key: str, word: tuple[Any, ...]) -> None:
    """What others wait for in the store, or wait for after they have attended."""
    attended, world.word = world.word is None, None
    if attended:
        _attend(world)
        world.patient = False
    world.store.set(f"{key}/after" if attended else key, pickle.dumps(word))


def by_lead(work: Callable[P, None]) -> Callable[P, None]:
    """For what writes files: process 0 does it, and all others wait until it is done."""

    @wraps(work)
    def done(*args: P.args, **kwargs: P.kwargs) -> None:
        if leads():
            from_lead(lambda: work(*args, **kwargs))
        else:
            from_lead(lambda: None)

    return done


def lend(give: Callable[[int, bool], None], owner: object) -> int:
    """Have all processes take part when one of them asks for something of which each has a part: `give` puts together
    the part with a number, for this process too if it is to keep it. To be called by all, with nothing between them;
    the number to ask by. It ends (`tidy`) some time after its owner is gone everywhere."""
    assert _world is not None
    _world.lent.append(_Lent(give, weakref.ref(owner)))
    return len(_world.lent) - 1


def tidy() -> None:
    """Let go of what was lent by owners that are gone in all processes."""
    if size() == 1:
        return
    assert _world is not None
    lent = _world.lent
    gone = each(lambda: {i for i, x in enumerate(lent) if x is not None and x.owner() is None})
    for number in set.intersection(*gone):
        lent[number] = None


def ask(number: int, part: int) -> None:
    """Have all processes put a part together: those that wait for others, or ask for another part, take part. Raises
    PeerFailed where one does not answer within the time-out, or, while whole jobs are done, gives no sign of life."""
    assert _world is not None
    world = _world
    if world.word is not None:
        world.store.set(world.word, ATTEND)
        world.word = None
        _attend(world)  # to those who are on their way here
        world.patient = True
    _turn(world, number * PARTS + part)


def put_together(own: torch.Tensor, whole: torch.Tensor) -> None:
    """Fill `whole` (N * n) with the parts (n) of all N processes. For `give` alone."""
    import torch.distributed as dist

    assert _world is not None
    gather_parts = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    with _answers(_world):
        gather_parts(_bytes(whole), _bytes(own), group=_world.group if own.device.type == "cpu" else None)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Gloo knows few kinds of numbers."""
    import torch

    return x.view(torch.uint8)


def _turn(world: _World, wanted: int) -> bool:
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
                _wait_for(world, f"{key}/{number}", number, pause=A_TURN)
        world.store.delete_key(f"burnish/turn/{world.turns - 1}/{world.rank}")  # all have seen it
    asked = [torch.empty(1, dtype=torch.int64) for _ in range(world.size)]  # device: the main memory
    with _answers(world):
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


def _attend(world: _World) -> None:
    """Give others what they ask for, until nobody asks any more."""
    while any(world.lent) and _turn(world, NOTHING):
        pass


def settled() -> None:
    """Wait until all processes are here: what process 0 has written, the others may read."""
    each(lambda: None)


def check_replicas(parameters: Sequence[torch.Tensor], what: str) -> None:
    """Raise PeerFailed unless all processes hold the same numbers."""
    if size() == 1:
        return
    found = each(lambda: _digest(parameters))
    if len(set(found)) > 1:
        differ = [i for i, value in enumerate(found) if value != found[0]]
        raise PeerFailed(
            f"the weights of {what} differ between process 0 and {', '.join(map(str, differ))}: machines that round "
            "differently cannot share a run; use machines of one kind, and go on from the last checkpoint"
        )


def _digest(parameters: Sequence[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for p in parameters:
        digest.update(p.detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def _exchange(word: Any) -> list[Any]:
    import torch.distributed as dist

    assert _world is not None
    words: list[Any] = [None] * _world.size
    _attend(_world)
    with _answers(_world):
        dist.all_gather_object(words, word, group=_world.group)
    return words


def _reduce(joined: torch.Tensor) -> None:
    import torch.distributed as dist

    assert _world is not None
    with _answers(_world):
        # Always a sum: gloo's mean is a sum, without a word.
        dist.all_reduce(
            joined, dist.ReduceOp.SUM, group=_world.group if joined.device.type == "cpu" else None
        )


@contextmanager
def _answers(world: _World) -> Iterator[None]:
    """What a library says of a process that does not answer, in words that help."""
    try:
        yield
    except RuntimeError as error:
        raise _gone(world, _line(error)) from error


def _gone(world: _World, why: str) -> PeerFailed:
    return PeerFailed(
        f"process {world.rank} of {world.size} on {socket.gethostname()} had no answer from another one within "
        f"{world.timeout:g} s, or it is gone ({why}); look at what the others say, then start the same command again: "
        "it goes on from the last checkpoint"
    )


@dataclass
class _Listening:
    """A thread that asks the store for a word: the store may never answer, where whoever keeps it hangs."""

    world: _World
    key: str
    source: int  # the process that it is to come from
    longest: float = 0.5  # seconds between two looks
    word: bytes | None = None
    failed: str | None = None
    seen: bytes = b""
    since: float = field(default_factory=time.monotonic)  # the last sign of life
    done: Event = field(default_factory=Event)

    def listen(self) -> None:
        store, life, pause = self.world.store, _life(self.source), 0.001
        try:
            while not self.done.is_set():
                # Asked for, not waited for: a wait in the store cannot be told from one that nobody will end.
                if store.check([self.key]):
                    self.word = bytes(store.get(self.key))
                    break
                alive = store.get(life) if store.check([life]) else b""
                if alive != self.seen:
                    self.seen, self.since = alive, time.monotonic()
                time.sleep(pause)
                pause = min(self.longest, pause * 1.2)
        except RuntimeError as error:
            self.failed = _line(error)
        self.done.set()


def _wait_for(world: _World, key: str, source: int, pause: float = 0.5) -> bytes:
    """The word of a process, looked for every `pause` seconds at least, as long as it gives signs of life."""
    listening = _Listening(world, key, source, pause)
    Thread(target=listening.listen, daemon=True).start()
    while not listening.done.wait(min(1.0, world.timeout)):
        if time.monotonic() - listening.since > world.timeout:
            listening.done.set()
            raise _gone(world, f"process {source} gives no sign of life")
    if listening.word is None:
        raise _gone(world, listening.failed or "no word came")
    return listening.word


def _line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _from(source: int, words: tuple[list[str], str]) -> BurnishError:
    """The error of another process."""
    kinds, text = words
    error = from_words(kinds, text if Waiting.__name__ in kinds else f"{text} (process {source})")
    error.of_process = source
    return error
