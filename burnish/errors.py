"""Errors that the user can fix: each message names the value, the rule and the next step."""

from __future__ import annotations

from collections.abc import Callable

EXIT_CODES = {
    0: "done",
    1: "other error",
    2: "mistyped command",
    3: "configuration",
    4: "data",
    5: "run directory",
    6: "model",
    7: "training",
    10: "finished, but nothing beat SFT",
    11: "finished, but nothing was aligned: the gate stopped PPO",
    12: "waiting for labels from people",
    13: "another process of the run failed, hangs or is gone",
    20: "audit: hacking suspected",
    21: "audit: too few metrics to decide",
    22: "audit: broken (a critical alert)",
    130: "interrupted (the run can be continued)",
}
"""Exit codes of the command line."""


class BurnishError(Exception):
    """Base class of errors that are shown without a traceback.

    `exit_code` is the exit code of the command line. `of_process` is the process of the run that
    raised the error, if it is another one.
    """

    exit_code = 1
    of_process: int | None = None


class Busy(BurnishError):
    """Too many requests wait for the same resource; a later retry can succeed."""


class RenamedKeyWarning(FutureWarning):
    """A configuration uses the old name of a key, which the next version does not read."""


class ConfigError(BurnishError):
    """The configuration cannot be used for a run."""

    exit_code = 3


class Waiting(BurnishError):
    """The run waits for work by people; its results so far are kept.

    `over()` returns whether the people have finished; it needs no running process.
    """

    exit_code = 12

    def __init__(self, message: str, over: Callable[[], bool]) -> None:
        super().__init__(message)
        self.over = over


class PeerFailed(BurnishError):
    """Another process of a distributed run failed, hangs or is gone, so this one must stop."""

    exit_code = 13


class DataError(BurnishError):
    """The data cannot be used; the message says which file, line and rule."""

    exit_code = 4


class RunError(BurnishError):
    """The run directory cannot be used: another process owns it, or it has other contents."""

    exit_code = 5


class ModelError(BurnishError):
    """A model or tokenizer cannot be loaded, or fails a check before training."""

    exit_code = 6


class EstimateError(ModelError):
    """A figure of a plan cannot be estimated for a model; other figures can."""


class TrainingError(BurnishError):
    """Training cannot continue; the results so far are kept."""

    exit_code = 7


class OutOfMemory(TrainingError):
    """The machine has too little memory for the batch, the lengths or the trained parameters."""


class Diverged(TrainingError):
    """A model gave non-finite figures: the guard may roll back; elsewhere the error ends the run."""


NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")  # of torch allocators


def ran_out(error: BaseException) -> bool:
    """Check whether an error means that memory ran out."""
    if (
        isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    ):  # torch's error for its devices
        return True
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in NO_MEMORY)


def in_words(error: BaseException) -> tuple[list[str], str]:
    """Return class names (narrowest first) and message of an error, to send to another process."""
    kinds = [OutOfMemory] if ran_out(error) else list[type]()
    return [kind.__name__ for kind in (*kinds, *type(error).__mro__)], str(error)


def from_words(kinds: list[str], text: str) -> BurnishError:
    """Rebuild another process's error as its narrowest class here, or else as PeerFailed."""
    found = next((globals()[kind] for kind in kinds if kind in globals()), None)
    if found is Waiting:
        return Waiting(text, lambda: False)
    if isinstance(found, type) and issubclass(found, BurnishError):
        return found(text)
    return PeerFailed(f"{kinds[0]}: {text}")
