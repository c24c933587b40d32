"""The records that rooms hand to each other, and the shape alphabet.

Shapes: B batch, P prompt tokens, T response tokens, V vocabulary, K ensemble members.
Nothing here imports torch at run time, so that labels, reports and the command line start light.
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


@lru_cache(maxsize=8192)  # ids are asked for again and again while a text is on its way into a store
def content_id(*parts: str) -> str:
    """A 16-hex-digit id that depends on the parts alone, so that the same content is stored once."""
    return hashlib.sha256(_encode(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a dialogue; `role` is `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked: plain `text`, or `messages` that go through the model's chat template.

    For a conversational prompt `text` is a readable rendering, used for display and splits only.
    """

    text: str
    messages: tuple[Message, ...] = ()
    _id: str = field(init=False, default="", repr=False, compare=False)

    @property
    def id(self) -> str:
        if not self._id:
            turns = (f"{m.role}\x1f{m.content}" for m in self.messages)
            object.__setattr__(self, "_id", content_id("prompt", self.text, *turns))
        return self._id

    @property
    def group(self) -> str:
        """What must stay on one side of every split and counts once in every interval: the first thing a user says,
        without case, white space and punctuation. Dialogues that begin alike belong together."""
        first = next((m.content for m in self.messages if m.role == "user"), self.text)
        return re.sub(r"[\W_]+", " ", first.casefold()).strip() or first

    @classmethod
    def from_messages(cls, messages: Sequence[Message]) -> Prompt:
        text = "\n\n".join(f"{m.role.capitalize()}: {m.content}" for m in messages)
        return cls(text=text, messages=tuple(messages))


@dataclass(frozen=True, slots=True)
class Response:
    """One answer to a prompt. `ended` is False when the answer was cut off before its end-of-sequence
    token, None when unknown (imported text is taken as complete)."""

    text: str
    source: str = "imported"
    ended: bool | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """A question put to annotators: which of two responses to `prompt` is better?

    The id does not depend on which response stands first, so the same question is never stored twice.
    """

    prompt: Prompt
    first: Response
    second: Response
    round: int = 0
    _id: str = field(init=False, default="", repr=False, compare=False)

    @property
    def id(self) -> str:
        if not self._id:
            sides = sorted((self.first.text, self.second.text))
            object.__setattr__(self, "_id", content_id("comparison", self.prompt.id, *sides))
        return self._id


@dataclass(frozen=True, slots=True)
class Label:
    """One annotator's answer. `preference` is the probability that the comparison's *first* response is
    the better one: 1 first, 0 second, 0.5 tie. `strength` is free for graded answers; `cost` in dollars; `guidelines`
    names the wording it was given under, `swapped` whether the second response was shown first, `at` when it was given
    (ISO 8601; the store's own time without); None where that is not known."""

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
    """A labelled comparison ready for training: `chosen` is preferred with probability `confidence` (> 0.5). An
    answer that was cut off, not `ended`, is read without an end-of-sequence token wherever it is read."""

    prompt: Prompt
    chosen: str
    rejected: str
    confidence: float = 1.0
    comparison_id: str = ""
    chosen_ended: bool = True
    rejected_ended: bool = True


@dataclass(slots=True)
class Rollout:
    """A batch of sampled responses.

    `prompt_ids` and `response_ids` are ragged lists of token ids (the response includes its end-of-sequence
    token when `ended`); `sample_logprobs` and `sample_entropy` (B, T) float32 are those of the distribution each
    token was drawn from, in nats, 0 where `response_mask` (B, T) bool is False; `features` are activations of the
    base that was sampled, one (tokens, D) a row, by how many of its layers lie below; None for rows of which this
    process keeps none.
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
        """Response lengths in tokens, the end-of-sequence token included."""
        return [len(ids) for ids in self.response_ids]


@dataclass(slots=True)
class Scores:
    """What an ensemble says of B responses.

    `scores` (B,) is the aggregate in units of the reference policy's standard deviation, `members` (B, K) the
    normalised scores, `spread` (B,) the members' standard deviation of `r_k(x, y) - r_k(x, y_ref)` (nan-free;
    zeros for one member). Where several rewards are added up, `terms` (B,) are these, before their weights. `anchor`
    (B,) is the score of a reference response to the same prompt, where it is known.
    """

    scores: torch.Tensor
    members: torch.Tensor
    spread: torch.Tensor
    anchor: torch.Tensor | None = None
    terms: Mapping[str, torch.Tensor] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class StepStats:
    """The numbers of one update: `step` counts accepted updates, `attempt` the restarts after a roll-back."""

    step: int
    attempt: int
    values: Mapping[str, float]

    def __getitem__(self, name: str) -> float:
        return self.values[name]

    def as_row(self) -> dict[str, Any]:
        return {"step": self.step, "attempt": self.attempt, **self.values}


@dataclass(frozen=True, slots=True)
class Alert:
    """Something a monitor saw. `value` crossed `threshold`; `evidence` holds the figures it was seen in."""

    name: str
    severity: Severity
    message: str
    step: int
    value: float
    threshold: float
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Decision:
    """Something the pipeline did, with the figures it was decided on."""

    action: str
    reason: str
    evidence: Mapping[str, Any] = field(default_factory=dict)

    def as_row(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Interval:
    """A point estimate with a confidence interval; `n` is the number of independent units."""

    value: float
    ci_low: float
    ci_high: float
    n: int
