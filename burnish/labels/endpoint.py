"""A judge behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import openai

from burnish.config.judge import JudgeConfig
from burnish.errors import ConfigError
from burnish.labels.ledger import Answer, Vote

LETTERS: dict[str, Vote] = {"A": "first", "B": "second", "C": "tie"}
VERDICT = re.compile(r"^[\s*_\"'(]*([ABC])(?=$|[\s.):,;*_\"'-]*$|[.):,;]|\s*\n)")
THOUGHT = re.compile(r"^.*</think>", re.DOTALL)
WHOLE = (  # replies that are a verdict and nothing else
    re.compile(r"\[\[([ABC])\]\]"),
    re.compile(r"\$*\\boxed\{(?:\\text\{)?([ABC])\}?\}\$*"),
    re.compile(
        r"[*_\"']*(?:final )?(?:answer|verdict|choice)[*_\"']*\s*(?:is)?\s*:?\s*[*_\"'(]*([ABC])[*_\"').]*",
        re.IGNORECASE,
    ),
    re.compile(r"\{\s*\"(?:verdict|answer|choice)\"\s*:\s*\"([ABC])\"\s*\}"),
)
NO_MONEY = ("insufficient_quota", "insufficient credit", "insufficient balance", "insufficient funds")
NOT_COMPUTED = -1000.0  # some servers give such a number for tokens they did not compute
SURE = 1e-6  # least probability of a letter that is not among the alternatives
LEAST_MASS = 0.5  # total probability that the letters need at the first token
TOP = 20  # alternatives requested for each token
HOPELESS = (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError)


class EndpointJudge:
    """Judge that sends each question once to a chat completions endpoint.

    A failed request gives an abstention that says whether a retry may help.
    """

    def __init__(self, config: JudgeConfig) -> None:
        if config.model is None:
            raise ConfigError("judge.model is not set; name the model that the endpoint is to use")
        self.config = config
        self.model = config.model
        self.odds = config.verdict == "log_odds"
        key = os.environ.get(config.api_key_env)
        local = (config.endpoint or "").startswith(("http://127.0.0.1", "http://localhost"))
        if key is None and not local:
            raise ConfigError(
                f"judge.endpoint={config.endpoint!r} needs a key: set the environment variable {config.api_key_env}, "
                "or name another in judge.api_key_env"
            )
        self.client = openai.AsyncOpenAI(
            base_url=config.endpoint,
            api_key=key or "none",
            timeout=config.timeout,
            max_retries=0,  # the caller retries, because every attempt is recorded in the ledger
        )

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.model

    @property
    def settings(self) -> str:
        """Settings that affect the answers."""
        return f"{self.config.endpoint} {self.config.verdict} {self.config.max_tokens}"

    async def close(self) -> None:
        """Close the connections; no question can be asked afterwards."""
        await self.client.close()

    async def ask(self, question: str) -> Answer:
        """Return the verdict on one question; raise ConfigError if no question can be answered."""
        extra: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP} if self.odds else {}
        try:
            reply = await self.client.chat.completions.create(
                model=self.model,
                messages=[{"role": "user", "content": question}],
                temperature=0.0,
                max_tokens=self.config.max_tokens,
                **extra,
            )
        except HOPELESS as error:
            raise ConfigError(
                f"{self.config.endpoint} does not accept {self.model!r} ({error.status_code}: {_first_line(error)}); "
                "look at judge.model, judge.endpoint and the key"
            ) from error
        except openai.APIStatusError as error:
            if out_of_money(error):
                raise ConfigError(
                    f"{self.config.endpoint} says that there is no money left ({error.status_code}: "
                    f"{_first_line(error)}); top up the account and start the same command again: what was answered is "
                    "kept"
                ) from error
            if isinstance(error, openai.BadRequestError):
                return await self._refused(error, question, asked_for_odds=bool(extra))
            return Answer(why=f"status {error.status_code}", again=True)
        except openai.APITimeoutError:
            return Answer(why="time-out", again=True, billed=None)
        except openai.APIConnectionError:
            return Answer(why="no connection", again=True, billed=None)
        except (openai.APIError, ValueError, KeyError, TypeError, AttributeError):
            return Answer(why="malformed reply", again=True, billed=None)
        return read_reply(reply)

    async def _refused(self, error: openai.APIStatusError, question: str, *, asked_for_odds: bool) -> Answer:
        """Handle a refused request: without log-probabilities, ask again and use votes from then on."""
        if asked_for_odds and "logprob" in str(error).lower():
            self.odds = False  # from here on
            return await self.ask(question)
        # Ask again in the next run: the endpoint may have refused the settings, not the question.
        return Answer(why=f"the endpoint refused the question ({_first_line(error)})", again=True, final=True)


def out_of_money(error: openai.APIStatusError) -> bool:
    """Check whether an error says that the account is empty, so that no other try helps."""
    said = f"{getattr(error, 'code', None) or ''} {error}".lower()
    return error.status_code == 402 or (
        error.status_code in (400, 403, 429) and any(w in said for w in NO_MONEY)
    )


def read_reply(reply: Any) -> Answer:
    """Read the verdict of a chat completion.

    It has log-odds if there are log-probabilities of the verdict letters, and a vote if the text
    has a clear one. Without either, or if the reply is malformed, it is an abstention.
    """
    try:
        return _read_reply(reply)
    except (AttributeError, IndexError, KeyError, OverflowError, TypeError, ValueError):
        return Answer(why="malformed reply", again=True, billed=None)


def _read_reply(reply: Any) -> Answer:
    choices = getattr(reply, "choices", None)
    if not choices:
        return Answer(why="malformed reply", again=True, billed=None)
    usage = getattr(reply, "usage", None)
    used = [int(getattr(usage, name, 0) or 0) for name in ("prompt_tokens", "completion_tokens")]
    billed = Answer(tokens_in=used[0], tokens_out=used[1])
    message = choices[0].message
    if getattr(message, "refusal", None) or choices[0].finish_reason == "content_filter":
        return replace(billed, why="refused")
    said = "" if message.content is None else spoken(message.content)
    vote = verdict_of(said)
    logprobs = getattr(choices[0], "logprobs", None)
    content = getattr(logprobs, "content", None) or []
    odds = log_odds(alternatives(content[0])) if content else None
    if vote is None and odds is None:
        return replace(billed, why="unreadable verdict")
    return replace(billed, log_odds=odds, vote=vote)


def spoken(content: Any) -> str:
    """Return the text of a message: a string, or the text parts of a list."""
    if isinstance(content, str):
        return content
    parts = [p if isinstance(p, dict) else vars(p) for p in content]
    return "".join(str(p["text"]) for p in parts if p.get("type") == "text")


def verdict_of(text: str) -> Vote | None:
    """Return the verdict of a reply; None if there is no clear one.

    Reasoning (`<think>`) and a code fence around the reply are removed first.
    """
    text = THOUGHT.sub("", text).strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.strip("`").partition("\n")[2].strip() or text.strip("`").strip()
    found = VERDICT.match(text) or next((m for m in (p.fullmatch(text) for p in WHOLE) if m), None)
    return LETTERS[found[1].upper()] if found else None


def alternatives(token: Any) -> list[tuple[str, float]]:
    """Return the alternatives of a token with their log-probabilities.

    The token itself is returned if there are none. Values that the server did not compute or that
    are not numbers are left out.
    """
    given = getattr(token, "top_logprobs", None) or [token]
    numbers = [(str(t.token), t.logprob) for t in given if isinstance(t.logprob, int | float)]
    return [(t, float(p)) for t, p in numbers if math.isfinite(p) and p > NOT_COMPUTED]


def log_odds(alternatives: Sequence[tuple[str, float]]) -> float | None:
    """Return the log-odds of A against B over all spellings among a token's alternatives.

    A tie (C) counts half for each. A letter that is not among them gets no more than the least
    likely one. Return None if the three together have less than `LEAST_MASS`: then the reply is not
    a verdict.
    """
    mass = {
        letter: [p for token, p in alternatives if token.strip(" *_\"'\u2581\u0120\n") == letter]
        for letter in "ABC"
    }
    known = [p for values in mass.values() for p in values]
    if not known or math.exp(_log_sum(known)) < LEAST_MASS:
        return None
    left = 1 - math.exp(_log_sum([p for _, p in alternatives]))
    least = max(min(math.exp(min(p for _, p in alternatives)), left), SURE)
    a, b, c = (math.exp(_log_sum(mass[letter])) if mass[letter] else 0.0 for letter in "ABC")
    return math.log(max(a, least) + c / 2) - math.log(max(b, least) + c / 2)


def _log_sum(values: Sequence[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
