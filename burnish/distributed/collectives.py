"""Collectives for several processes that carry out one run together.

Every process carries out the whole run, shares out large work, and comes to the same decisions.

Rows are dealt in turn (row i belongs to process i % size), the values read from them are gathered,
and gradients are summed. Whole jobs (a reward model to train) go to one process each. All processes
have every value that a decision depends on. A process that fails makes all fail, before any of them
waits for it. A process that hangs or dies ends the others within `timeout` seconds. In a single
process, these functions do nothing.

The processes are started by torchrun, by `burnish run --workers`, or by Ray Train; all set the same
variables.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from burnish.distributed.heartbeats import (
    PARTS,
    Lent,
    World,
    answers,
    attend,
    begin,
    end,
    local,
    turn,
    wait_for,
)
from burnish.errors import BurnishError, PeerFailed, Waiting, from_words, in_words

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
P = ParamSpec("P")

ATTEND = b"attend"  # the leader's message, if it asks for a part before it finishes
TIMEOUT = 600.0  # seconds without an answer of another process after which this one gives up


_world: World | None = None


def launched() -> bool:
    """Check whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def first() -> bool:
    """Check whether this process was started as the first, or alone."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def together(timeout: float = TIMEOUT) -> Iterator[None]:
    """Take part in this process's run for a block; do nothing if alone or already in such a block."""
    global _world
    if _world is not None or not launched():
        yield
        return
    _world = begin(timeout)
    try:
        yield
    finally:
        world, _world = _world, None
        end(world)


def neighbours() -> int:
    """Return how many processes of the run share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def size() -> int:
    """Return how many processes share the current work."""
    return 1 if _world is None or _world.alone else _world.size


def rank() -> int:
    """Return the number of this process among those that share the current work."""
    return 0 if _world is None or _world.alone else _world.rank


def leads() -> bool:
    """Check whether this process writes files and prints: process 0, also within `alone`."""
    return _world is None or _world.rank == 0


def processes() -> int:
    """Return how many processes carry out the run."""
    return 1 if _world is None else _world.size


def mine(rows: Sequence[int]) -> list[int]:
    """Return the row numbers among `rows` that belong to this process."""
    return [row for row in rows if row % size() == rank()]


@contextmanager
def alone() -> Iterator[None]:
    """Run a block in this process by itself; nothing in it is shared."""
    if _world is None:
        yield
        return
    _world.alone += 1
    try:
        yield
    finally:
        _world.alone -= 1


def each(work: Callable[[], T]) -> list[T]:
    """Return the results of `work` in all processes, in their order.

    If it fails in one of them, all raise that error (the first one's), so that no process waits for
    a failed one.
    """
    if size() == 1:
        return [work()]
    error: Exception | None = None
    try:
        word: tuple[Any, Any] = (None, work())
    except Exception as failed:  # noqa: BLE001 - sent to all, then raised
        error, word = failed, (in_words(failed), None)
    words = _exchange(word)
    first = next((i for i, (failed, _) in enumerate(words) if failed is not None), None)
    if first is None:
        return [value for _, value in words]
    if error is not None and first == rank():
        raise error
    raise _from(first, words[first][0]) from error


def gather(n: int, work: Callable[[list[int]], tuple[torch.Tensor, ...]]) -> tuple[torch.Tensor, ...]:
    """Return the (n, ...) tensors that `work` makes of n rows, on every process.

    `work` is given the row numbers of its process, at least one. The tensors are on the device of
    the process's own part. A process without rows uses its own device of the kind that the others
    use.
    """
    if size() == 1:
        return work(list(range(n)))
    import torch

    own = mine(range(n))
    made: list[torch.Tensor] = []

    def part() -> list[tuple[torch.Tensor, str]]:
        made.extend(work(own) if own else ())
        return [(x.detach().cpu(), x.device.type) for x in made]

    parts = each(part)
    some = next(part for part in parts if part)
    whole = [torch.empty((n, *x.shape[1:]), dtype=x.dtype, device=x.device) for x, _ in some]
    for number, found in enumerate(parts):
        for x, (rows, _) in zip(whole, found, strict=False):
            x[number :: size()] = rows
    places = [x.device for x in made] or [torch.device(kind) for _, kind in some]
    return tuple(x.to(place) for x, place in zip(whole, places, strict=True))


def add(
    parameters: Sequence[torch.nn.Parameter], work: Callable[[], Mapping[str, float]]
) -> dict[str, float]:
    """Sum over all processes the gradients that `work` leaves in the parameters.

    Return the summed figures that `work` returns. Gradients of one dtype and device go as one
    tensor; a process without rows counts as zero.
    """
    if size() == 1:
        return dict(work())
    import torch

    figures: dict[str, float] = {}
    for part in each(lambda: dict(work())):
        for name, value in part.items():
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
    """Return the result of `work` in this process, after it has succeeded in all."""
    if size() == 1:
        return work()
    own: list[T] = []
    each(lambda: own.append(work()))
    return own[0]


def leaders(value: T) -> T:
    """Return the value of process 0, on all processes."""
    return value if size() == 1 else each(lambda: value)[0]


def deal(jobs: Sequence[T], work: Callable[[list[T]], list[Any]], *, to_lead: bool = False) -> list[Any]:
    """Return the results of whole jobs, in order, each carried out by one process alone.

    `work` is given all jobs of a process together. Results are sent to all processes, or with
    `to_lead` to process 0; the others then get an empty list.
    """
    if size() == 1:
        return work(list(jobs))

    def own() -> list[Any]:
        with alone():
            return work(taken) if taken else []

    taken = list(jobs[rank() :: size()])
    assert _world is not None
    key = _next_key(_world)
    place = _place()
    attend(_world)
    _world.patient = True
    try:
        done, failed = own(), None
    except Exception as error:  # noqa: BLE001 - sent to all, then raised
        done, failed = [], error
    attend(_world)
    _world.patient = False
    found = _after_all(_world, key, place, done, failed, to_lead=to_lead)
    return found and [found[i % size()][i // size()] for i in range(len(jobs))]


def in_turns(work: Callable[[], T]) -> T:
    """Return this process's result of `work`, run by a machine's processes one after the other.

    Each may take any time. If it fails in one, all raise that error.
    """
    if size() == 1:
        return work()
    assert _world is not None
    attend(_world)
    key, place = _next_key(_world), _place()
    done: list[T] = []
    failed: Exception | None = None
    if local():
        wait_for(_world, f"{key}/{_world.rank - 1}", _world.rank - 1)
    try:
        done.append(work())
    except Exception as error:  # noqa: BLE001 - sent to all, then raised
        failed = error
    _after_all(_world, key, place, None, failed)
    return done[0]


def _after_all(
    world: World, key: str, place: str, done: T, failed: Exception | None, *, to_lead: bool = False
) -> list[T]:
    """Return the results of all processes once all have finished.

    They may differ by more than the time-out of a collective. With `to_lead` only process 0 gets
    the results, and the others get an empty list.
    """
    world.store.set(f"{key}/{world.rank}", pickle.dumps(place))
    for number in range(world.size):
        _same_way(world, pickle.loads(wait_for(world, f"{key}/{number}", number)), place, number)

    def outcome() -> T | None:
        if failed is not None:
            raise failed
        return None if to_lead else done

    found: list[Any] = each(outcome)
    return _to_lead(done) if to_lead else found


def _to_lead(value: T) -> list[T]:
    """Return the values of all processes on process 0, and an empty list on the others."""
    import torch.distributed as dist

    assert _world is not None
    values: list[Any] | None = None if rank() else [None] * _world.size
    attend(_world)
    with answers(_world):
        dist.gather_object(value, values, dst=0, group=_world.group)
    return values or []


def _next_key(world: World) -> str:
    """Return the store key of the next message, the same in all processes."""
    world.broadcasts += 1
    return f"burnish/word/{world.broadcasts}"


def _place() -> str:
    """Return the line outside this file that shares the current work, for reports of divergence."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}, line {frame.f_lineno}"


def _same_way(world: World, theirs: str, ours: str, number: int) -> None:
    if theirs != ours:
        raise PeerFailed(
            f"process {number} shares work at {theirs}, process {world.rank} at {ours}: they took different "
            "paths, which is a bug; please report it, and continue with one process (scale.workers: 1)"
        )


def from_lead(work: Callable[[], T]) -> T:
    """Return the result of `work` in process 0, which carries it out alone.

    All others wait for its message, however long it takes, as long as process 0 lives. All raise an
    error that occurs there.
    """
    if _world is None or _world.alone:
        return work()
    world, place = _world, _place()
    attend(world)
    key = _next_key(world)
    if world.rank:
        word = wait_for(world, key, 0)
        if word == ATTEND:
            attend(world)
            world.patient = True
            attend(world)
            world.patient = False
            word = wait_for(world, f"{key}/after", 0)
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


def _say(world: World, key: str, word: tuple[Any, ...]) -> None:
    """Send the message that others wait for in the store, or wait for after `attend`."""
    attended, world.word = world.word is None, None
    if attended:
        attend(world)
        world.patient = False
    world.store.set(f"{key}/after" if attended else key, pickle.dumps(word))


def by_lead(work: Callable[P, None]) -> Callable[P, None]:
    """Wrap a function that writes files: process 0 runs it, and all others wait for it."""

    @wraps(work)
    def done(*args: P.args, **kwargs: P.kwargs) -> None:
        if leads():
            from_lead(lambda: work(*args, **kwargs))
        else:
            from_lead(lambda: None)

    return done


def lend(give: Callable[[int, bool], None], owner: object) -> int:
    """Have all processes take part when one of them asks for a part of a shared object.

    `give` gathers the part with a number, and keeps it in this process on request. All processes
    must call this, with no other collective in between. Return the number to ask by. The loan ends
    (`tidy`) some time after its owner is gone everywhere.
    """
    assert _world is not None
    _world.lent.append(Lent(give, weakref.ref(owner)))
    return len(_world.lent) - 1


def tidy() -> None:
    """Drop lent objects whose owners are gone in all processes."""
    if size() == 1:
        return
    assert _world is not None
    lent = _world.lent
    gone = each(lambda: {i for i, x in enumerate(lent) if x is not None and x.owner() is None})
    for number in set.intersection(*gone):
        lent[number] = None


def ask(number: int, part: int) -> None:
    """Have all processes gather a part; those that wait, or ask for another part, take part.

    Raise PeerFailed when a process does not answer within the time-out, or, during whole jobs,
    gives no heartbeat.
    """
    assert _world is not None
    world = _world
    if world.word is not None:
        world.store.set(world.word, ATTEND)
        world.word = None
        attend(world)  # until all others know of the request
        world.patient = True
    turn(world, number * PARTS + part)


def put_together(own: torch.Tensor, whole: torch.Tensor) -> None:
    """Fill `whole` (N * n) with the parts (n) of all N processes; only `give` may call this."""
    import torch.distributed as dist

    assert _world is not None
    gather_parts = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    with answers(_world):
        gather_parts(_bytes(whole), _bytes(own), group=_world.group if own.device.type == "cpu" else None)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Return the bytes of a tensor, since gloo supports few dtypes."""
    import torch

    return x.view(torch.uint8)


def settled() -> None:
    """Wait until all processes are here, so that they may read the files of process 0."""
    each(lambda: None)


def check_replicas(parameters: Sequence[torch.Tensor], what: str) -> None:
    """Raise PeerFailed unless all processes hold the same values."""
    if size() == 1:
        return
    found = each(lambda: _digest(parameters))
    if len(set(found)) > 1:
        differ = [i for i, value in enumerate(found) if value != found[0]]
        raise PeerFailed(
            f"the weights of {what} differ between process 0 and {', '.join(map(str, differ))}: machines that round "
            "differently cannot share a run; use machines of one kind, and continue from the last checkpoint"
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
    attend(_world)
    with answers(_world):
        dist.all_gather_object(words, word, group=_world.group)
    return words


def _reduce(joined: torch.Tensor) -> None:
    import torch.distributed as dist

    assert _world is not None
    with answers(_world):
        # Always a sum: gloo silently returns a sum for a mean.
        dist.all_reduce(
            joined, dist.ReduceOp.SUM, group=_world.group if joined.device.type == "cpu" else None
        )


def _from(source: int, words: tuple[list[str], str]) -> BurnishError:
    """Return the error of another process."""
    kinds, text = words
    error = from_words(kinds, text if Waiting.__name__ in kinds else f"{text} (process {source})")
    error.of_process = source
    return error
