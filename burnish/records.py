"""Records that the packages exchange, and the letters for tensor shapes.

Shapes: B batch, P prompt tokens, T response tokens, V vocabulary, K ensemble members. The file
imports no torch at run time, so labels, reports and the command line start fast.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import torch

Severity = Literal["info", "warning", "critical"]
Source = Literal["simulated", "imported", "human", "judge"]


_encode = json.JSONEncoder(ensure_ascii=False).encode


@lru_cache(maxsize=8192)  # storing a text needs its id many times
def content_id(*parts: str) -> str:
    """Return a 16-hex-digit id that depends only on the parts, so equal content is stored once."""
    return hashlib.sha256(_encode(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """Prompt for a model: plain `text`, or `messages` for the model's chat template.

    For a conversational prompt `text` is a readable rendering, used for display and splits only.
    """

    text: str
    messages: tuple[Message, ...] = ()
    _id: str = field(init=False, default="", repr=False, compare=False)

    @property
    def id(self) -> str:
        """Id of the content."""
        if not self._id:
            turns = (f"{m.role}\x1f{m.content}" for m in self.messages)
            object.__setattr__(self, "_id", content_id("prompt", self.text, *turns))
        return self._id

    @property
    def group(self) -> str:
        """Key of prompts that belong together: the first user message, normalised.

        It drops case, white space and punctuation. A group stays on one side of every split and
        counts once in every interval.
        """
        first = next((m.content for m in self.messages if m.role == "user"), self.text)
        return re.sub(r"[\W_]+", " ", first.casefold()).strip() or first

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> Prompt:
        """Return a conversational prompt with a readable rendering as its text."""
        text = "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in messages)
        return cls(text=text, messages=tuple(messages))


@dataclass(frozen=True, slots=True)
class Response:
    """Answer to a prompt.

    `ended` is False if the answer was cut off before its end-of-sequence token, None if unknown
    (imported text is taken as complete).
    """

    text: str
    source: str = "imported"
    ended: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Question to annotators: which of two responses to `prompt` is better.

    The id does not depend on the order of the responses, so the same question is never stored
    twice.
    """

    prompt: Prompt
    first: Response
    second: Response
    round: int = 0
    _id: str = field(init=False, default="", repr=False, compare=False)

    @property
    def id(self) -> str:
        """Id of the content, independent of the order of the responses."""
        if not self._id:
            sides = sorted((self.first.text, self.second.text))
            object.__setattr__(self, "_id", content_id("comparison", self.prompt.id, *sides))
        return self._id


@dataclass(frozen=True, slots=True)
class Label:
    """Answer of one annotator to a comparison.

    `preference` is the probability that the comparison's *first* response is the better one: 1
    first, 0 second, 0.5 tie. `strength` is free for graded answers; `cost` is in dollars.
    `guidelines` names the wording that the annotator followed, `swapped` says whether the second
    response was shown first. `at` is the time of the answer (ISO 8601; without it, the store's own
    time). None means unknown.
    """

    comparison_id: str
    annotator: str
    preference: float
    source: Source
    strength: float | None = None
    seconds: float | None = None
    cost: float = 0.0
    guidelines: str | None = None
    swapped: bool | None = None
    at: str | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Preference:
    """Labelled comparison for training; `chosen` wins with probability `confidence` (> 0.5).

    A cut-off answer (not `ended`) is always read without an end-of-sequence token. `strength` says how
    much better it is, as a share of the largest grade in the data; None: not graded.
    """

    prompt: Prompt
    chosen: str
    rejected: str
    confidence: float = 1.0
    comparison_id: str = ""
    chosen_ended: bool = True
    rejected_ended: bool = True
    strength: float | None = None


@dataclass(slots=True)
class Rollout:
    """Batch of sampled responses.

    `prompt_ids` and `response_ids` are ragged lists of token ids (the response includes its
    end-of-sequence token when `ended`). `sample_logprobs` and `sample_entropy` (B, T) float32
    belong to the distribution that each token was drawn from, in nats. They are 0 where
    `response_mask` (B, T) bool is False. `features` maps a number of base layers to the activations
    after these layers, one (tokens, D) a row. A row is None if this process does not keep it.
    """

    prompts: list[Prompt]
    prompt_ids: list[list[int]]
    response_ids: list[list[int]]
    texts: list[str]
    ended: list[bool]
    sample_logprobs: torch.Tensor
    sample_entropy: torch.Tensor
    response_mask: torch.Tensor
    features: dict[int, list[torch.Tensor | None]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Response lengths in tokens, including the end-of-sequence token."""
        return [len(ids) for ids in self.response_ids]


@dataclass(slots=True)
class Scores:
    """Scores of B responses by an ensemble.

    `scores` (B,) is the aggregate in units of the reference policy's standard deviation, `members`
    (B, K) the normalised scores. `ensemble_std` (B,) is the members' standard deviation of `r_k(x, y) -
    r_k(x, y_ref)` (nan-free; zeros for one member). `terms` (B,) are the rewards before their
    weights, if several are added up. `anchor` (B,) is the score of a reference response to the same
    prompt, if known.
    """

    scores: torch.Tensor
    members: torch.Tensor
    ensemble_std: torch.Tensor
    anchor: torch.Tensor | None = None
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)


RENAMED_FIGURES = {"spread": "ensemble_std"}
"""Names of figures in version 0.1.0, and their names now."""


def current_names(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of metrics with the names that figures have now."""
    return {RENAMED_FIGURES.get(name, name): value for name, value in row.items()}


@dataclass(frozen=True, slots=True)
class StepStats:
    """Figures of one update: `step` counts accepted updates, `attempt` restarts after roll-backs."""

    step: int
    attempt: int
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def as_row(self) -> dict[str, Any]:
        """Return the figures as a flat dict."""
        return {"step": self.step, "attempt": self.attempt, **self.values}


@dataclass(frozen=True, slots=True)
class Alert:
    """Observation of a monitor: `value` crossed `threshold`; `evidence` has the figures behind it."""

    name: str
    severity: Severity
    message: str
    step: int
    value: float
    threshold: float
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """Action of the pipeline, with its reason and the figures behind it."""

    action: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        """Return the fields as a dict."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Interval:
    """Point estimate with a confidence interval; `n` is the number of independent units."""

    value: float
    ci_low: float
    ci_high: float
    n: int
