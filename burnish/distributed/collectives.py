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

ATTEND = b"attend"  # the leader's word, where it asks for something before it has come to its end
TIMEOUT = 600.0  # seconds without an answer of another process after which this one gives up


_world: World | None = None


def launched() -> bool:
    """Whether this process was started as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


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
    _world = begin(timeout)
    try:
        yield
    finally:
        world, _world = _world, None
        end(world)


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
    first one's), so that no process waits for one that has failed."""
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
    """(n, ...) tensors that `work` (given its own row numbers, one at least) makes of n rows, put together from all
    processes, on every one of them, on the device where its own part was made. A process without rows uses its own
    device of the kind that the others use."""
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
    """Add up over all processes the gradients that `work` leaves in the parameters, and the figures it returns. All
    gradients of a kind go as one; a process that had no rows counts as zero."""
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
    """What `work` comes to in this process, once it is known that it fails in none."""
    if size() == 1:
        return work()
    own: list[T] = []
    each(lambda: own.append(work()))
    return own[0]


def leaders(value: T) -> T:
    """The value that process 0 has, on all."""
    return value if size() == 1 else each(lambda: value)[0]


def deal(jobs: Sequence[T], work: Callable[[list[T]], list[Any]], *, to_lead: bool = False) -> list[Any]:
    """What whole jobs come to, in their order, each carried out by one process alone; `work` is given those of a
    process together. Results are sent to all processes, or with `to_lead` to process 0; the others then get an empty
    list."""
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
    """What `work` comes to in this process, done by the processes of a machine one after the other, however long each
    takes. Where it fails in one, all raise that error."""
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
    """What all have done, once all are there: they may differ by more than the time-out of a collective. With
    `to_lead` only process 0 gets it, and an empty list the others."""
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
    """What every process has, on process 0; an empty list on the others."""
    import torch.distributed as dist

    assert _world is not None
    values: list[Any] | None = None if rank() else [None] * _world.size
    attend(_world)
    with answers(_world):
        dist.gather_object(value, values, dst=0, group=_world.group)
    return values or []


def _next_key(world: World) -> str:
    """Of the next thing that is said through the store, in all processes the same."""
    world.broadcasts += 1
    return f"burnish/word/{world.broadcasts}"


def _place() -> str:
    """The line outside this file that shares what comes now: it shows at which lines processes diverged."""
    frame = sys._getframe(1)
    while frame.f_code.co_filename == __file__ and frame.f_back is not None:
        frame = frame.f_back
    return f"{frame.f_globals.get('__name__', '?')}, line {frame.f_lineno}"


def _same_way(world: World, theirs: str, ours: str, number: int) -> None:
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
    """What others wait for in the store, or wait for after they have attended."""
    attended, world.word = world.word is None, None
    if attended:
        attend(world)
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
    _world.lent.append(Lent(give, weakref.ref(owner)))
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
        attend(world)  # to those who are on their way here
        world.patient = True
    turn(world, number * PARTS + part)


def put_together(own: torch.Tensor, whole: torch.Tensor) -> None:
    """Fill `whole` (N * n) with the parts (n) of all N processes. For `give` alone."""
    import torch.distributed as dist

    assert _world is not None
    gather_parts = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
    with answers(_world):
        gather_parts(_bytes(whole), _bytes(own), group=_world.group if own.device.type == "cpu" else None)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """Gloo knows few kinds of numbers."""
    import torch

    return x.view(torch.uint8)


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
    attend(_world)
    with answers(_world):
        dist.all_gather_object(words, word, group=_world.group)
    return words


def _reduce(joined: torch.Tensor) -> None:
    import torch.distributed as dist

    assert _world is not None
    with answers(_world):
        # Always a sum: gloo's mean is a sum, without a word.
        dist.all_reduce(
            joined, dist.ReduceOp.SUM, group=_world.group if joined.device.type == "cpu" else None
        )


def _from(source: int, words: tuple[list[str], str]) -> BurnishError:
    """The error of another process."""
    kinds, text = words
    error = from_words(kinds, text if Waiting.__name__ in kinds else f"{text} (process {source})")
    error.of_process = source
    return error
