"""Rewards from Python functions, with columns of the prompts' data, added to the ensemble's score with weights."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from burnish.config.ppo import FunctionReward
from burnish.data.text import number_of
from burnish.distributed import collectives
from burnish.errors import ConfigError, TrainingError
from burnish.models.load import find_device
from burnish.records import Prompt, Rollout, Scores
from burnish.reward.published import PublishedReward
from burnish.reward.remote import RemoteReward

Columns = Mapping[str, Mapping[str, Any]]
"""Columns of the rows of prompts by prompt id, and their values by name."""
GIVEN = {"prompts", "completions", "completion_ids"}
Function = Callable[[list[str], list[str], list[int]], Sequence[float]]
"""Maps (prompts, responses, response lengths with the end token) of a batch to one number each."""


class LocalReward:
    """A reward function in this process: (prompts, responses) of a batch to a number for each response.

    A conversational prompt is given as its list of messages, other prompts as text.
    """

    def __init__(self, function: Callable[[list[Any], list[str]], Sequence[float]]) -> None:
        self.function = function

    def scores(
        self, prompts: Sequence[Prompt], responses: Sequence[str], ended: Sequence[bool] | None = None
    ) -> list[float]:
        """Return one score for each response."""
        return list(self.function([as_given(p) for p in prompts], list(responses)))


class ColumnReward:
    """A reward function in TRL's signature, `f(prompts, completions, **columns) -> list[float | None]`.

    A column is a list with one value for each response, that of its prompt's row. Prompts and completions
    are text, or lists of messages if the prompt is a conversation. `arguments` are passed as they are.
    None means that a response has no such reward. Raises ConfigError if the function needs a parameter
    that is neither a column nor an argument.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Sequence[float | None]],
        columns: Callable[[], Columns],
        arguments: Mapping[str, Any],
    ) -> None:
        self.function, self.arguments = function, dict(arguments)
        parameters = inspect.signature(function).parameters.values()
        whole = any(p.kind is p.VAR_KEYWORD for p in parameters)
        own = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - GIVEN
        needed = {
            p.name for p in parameters if p.name in own and p.default is p.empty
        } - self.arguments.keys()
        unknown = self.arguments.keys() - own
        if unknown and not whole:
            raise ConfigError(
                f"ppo.rewards: {name} has no parameter {min(unknown)!r}; its own are {sorted(own)}"
            )
        # Process 0 alone calls the function, so the others need no columns.
        reads = collectives.leads() and (whole or own - self.arguments.keys())
        self.columns: Columns = columns() if reads else {}
        there = {column for row in self.columns.values() for column in row}
        missing = needed - there
        if missing and collectives.leads():
            raise ConfigError(
                f"ppo.rewards: {name} needs {min(missing)!r}, which is no column of the prompts (they have "
                f"{', '.join(sorted(there)) or 'no columns'}); add it to their file, or set it in `arguments`"
            )
        self.passed = sorted((there if whole else there & own) - self.arguments.keys() - GIVEN)

    def scores(self, rollout: Rollout) -> list[float | None]:
        """Return one reward for each response, or None."""
        prompts = [as_given(p) for p in rollout.prompts]
        completions = [
            [{"role": "assistant", "content": text}] if p.messages else text
            for p, text in zip(rollout.prompts, rollout.texts, strict=True)
        ]
        rows = [self.columns.get(p.id, {}) for p in rollout.prompts]
        given: dict[str, Any] = {"prompts": prompts, "completions": completions}
        given["completion_ids"] = [list(ids) for ids in rollout.response_ids]
        own = inspect.signature(self.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            given = {name: value for name, value in given.items() if name in own}
        columns = {name: [row.get(name) for row in rows] for name in self.passed}
        return list(self.function(**given, **columns, **self.arguments))


Term = Function | RemoteReward | LocalReward | PublishedReward | ColumnReward


def as_given(prompt: Prompt) -> str | list[dict[str, str]]:
    """Return a prompt as users write it: text, or a list of messages."""
    return [{"role": m.role, "content": m.content} for m in prompt.messages] or prompt.text


class SummedRewards:
    """Scorer for PPO: weighted sum of the ensemble's score and the user's functions, minus `shift`.

    Members and spread are the ensemble's; the mean of each term is logged under its name. A term that a
    response does not have (None) adds 0, as in TRL.

    The shift is the mean of the sum on reference responses. A constant changes no optimum, but without
    the shift PPO fails to start where the mean is far below 0. While the value function has not learned
    the mean, it weighs most on a response's last token. The policy then first learns not to end.
    """

    def __init__(
        self,
        ensemble: Callable[[Rollout], Scores],
        weight: float,
        functions: Sequence[tuple[FunctionReward, Term]],
    ) -> None:
        self.ensemble, self.weight, self.functions = ensemble, weight, functions
        self.shift = 0.0

    def of(self, ensemble: Callable[[Rollout], Scores]) -> SummedRewards:
        """Return the same sum with another scorer of the ensemble, such as one for other prompts."""
        found = SummedRewards(ensemble, self.weight, self.functions)
        found.shift = self.shift
        return found

    def center(self, rollout: Rollout) -> float:
        """Set the shift to the mean reward of this rollout and return the standard deviation."""
        scores = self(rollout).scores + self.shift
        self.shift = float(scores.mean())
        return float(scores.std(unbiased=False))

    def __call__(self, rollout: Rollout) -> Scores:
        """Score every response of a rollout with the weighted sum of all terms."""
        found = self.ensemble(rollout)
        total, terms = self.weight * found.scores, {"ensemble": found.scores}
        for term, function in self.functions:
            # One process calls it for all, so that side effects (such as a paid request) happen once.
            given = collectives.from_lead(partial(called, term.source, function, rollout))
            numbers = [0.0 if value is None else value for value in given]
            values = torch.tensor(numbers, dtype=total.dtype, device=total.device)
            terms[term.term] = values
            total = total + term.weight * values
        # The functions were not called on the reference response.
        anchor = None if found.anchor is None or self.functions else self.weight * found.anchor - self.shift
        return replace(found, scores=total - self.shift, terms=terms, anchor=anchor)


def load_term(term: FunctionReward, columns: Callable[[], Columns] = dict) -> Term:
    """Load the function or server client of a configured reward; raises ConfigError on failure.

    `columns` gives the columns of the prompts. They are read only for a function that takes them.
    """
    if term.model is not None:
        return from_model(term)
    if term.url is not None:
        return RemoteReward(term.url, term.timeout, token_of(term))
    assert term.function is not None
    function = load_function(term.function)
    if takes_columns(function):
        return ColumnReward(term.function, function, columns, term.arguments)
    if term.arguments:
        raise ConfigError(
            f"ppo.rewards: {term.function} takes (prompts, responses, lengths), so `arguments` cannot be passed; give "
            "it a parameter `completions`, as TRL's reward functions have"
        )
    return function


def from_model(term: FunctionReward) -> LocalReward | PublishedReward:
    """Load a published reward model in process 0, which alone scores; the others get a stand-in."""
    if not collectives.leads():
        return LocalReward(lambda prompts, responses: [])
    assert term.model is not None
    return PublishedReward(term.model, find_device(term.device), term.dtype, term.batch_size)


def takes_columns(function: Callable[..., Any]) -> bool:
    """Return whether a function has TRL's signature, with a parameter `completions`.

    One of three parameters that ends in `lengths` or `tokens` has the other signature.
    """
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a function of a C extension
        return False
    old = len(names) == 3 and names[1] == "completions" and names[2] in ("lengths", "tokens")
    return "completions" in names and not old


def token_of(term: FunctionReward) -> str | None:
    """Return a server's token from the environment, if configured; ConfigError if it is not set."""
    if term.token_env is None:
        return None
    token = os.environ.get(term.token_env)
    if not token:
        raise ConfigError(
            f"ppo.rewards names token_env={term.token_env!r}, which is not set; set it to the token"
        )
    return token


def called(name: str, function: Term, rollout: Rollout) -> list[float | None]:
    """Return the function's rewards, one finite number for each response of the rollout.

    A function in TRL's signature may give None. Raises TrainingError if the function fails or returns
    anything else, so a failure is never scored.
    """
    values: list[Any]
    try:
        if isinstance(function, ColumnReward):
            values = list(function.scores(rollout))
        elif isinstance(function, RemoteReward | LocalReward | PublishedReward):
            values = function.scores(rollout.prompts, rollout.texts, rollout.ended)
        else:
            values = list(function([p.text for p in rollout.prompts], list(rollout.texts), rollout.lengths))
    except Exception as error:
        raise TrainingError(
            f"the reward function {name} failed: {type(error).__name__}: {error}; fix it, then run the same "
            "command again"
        ) from error
    if len(values) != len(rollout):
        raise TrainingError(
            f"the reward function {name} gave {len(values)} numbers for {len(rollout)} responses"
        )
    optional = isinstance(function, ColumnReward)
    for i, value in enumerate(values):
        if optional and value is None:
            continue
        number = None if isinstance(value, str) else number_of(value)
        if number is None or not math.isfinite(number):
            raise TrainingError(
                f"the reward function {name} gave {value!r} for response {i} ({rollout.texts[i][:60]!r}); it must "
                "give a finite number for every response"
            )
    return [None if v is None else float(v) for v in values]


def load_function(name: str) -> Function:
    """Import `module:name`, searching the Python path, then the current folder.

    Raises ConfigError if it cannot be imported or is not callable.
    """
    module, _, attribute = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        function: Function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"ppo.rewards names {name!r}, which cannot be imported ({error}); give module:function, installed or in "
            "the current folder"
        ) from error
    if not callable(function):
        raise ConfigError(
            f"ppo.rewards names {name!r}, which is not a function but a {type(function).__name__}"
        )
    return function


def source_of(name: str) -> Path | None:
    """Return the source file of a function's module, None if it has no file."""
    load_function(name)
    file = getattr(sys.modules[name.partition(":")[0]], "__file__", None)
    return Path(file) if file else None
