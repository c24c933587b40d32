"""Verified rewards for `ppo.rewards`: functions of the responses and of columns of the prompts' file.

They have TRL's signature, `f(completions, column, ...) -> list[float | None]`, and need no reward model. Name one as
`burnish.rewards:math_answer`. Parameters that are no columns are set with `arguments`.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Sequence
from typing import Any

Completions = Sequence[str] | Sequence[Sequence[dict[str, str]]]
"""Responses as text, or as lists that hold one message where prompts are conversations."""


def texts(completions: Completions) -> list[str]:
    """Return the text of each completion."""
    return [c if isinstance(c, str) else c[-1]["content"] for c in completions]


def regex(completions: Completions, pattern: str | Sequence[str | None]) -> list[float | None]:
    """Return 1 for each response in which the pattern is found, else 0; a dot matches line breaks.

    `pattern` is one for all, as an argument, or a column; None where a row has none.
    """
    patterns = [pattern] * len(completions) if isinstance(pattern, str) else pattern
    return [
        None if given is None else float(re.search(given, text, re.DOTALL) is not None)
        for text, given in zip(texts(completions), patterns, strict=True)
    ]


def length_range(completions: Completions, least: int = 0, most: int | None = None) -> list[float]:
    """Return 1 for each response whose number of words lies within the limits, else 0."""
    counts = [len(text.split()) for text in texts(completions)]
    return [float(n >= least and (most is None or n <= most)) for n in counts]


def json_schema(completions: Completions, schema: Any) -> list[float | None]:
    """Return 1 for each response that is JSON valid under a schema, else 0; a code fence around it is removed.

    `schema` is one schema for all, as an argument, or a column of schemas (objects or JSON text); None where
    a row has none. NaN and infinity are not JSON. Needs the package jsonschema (`pip install 'burnish[verify]'`).
    """
    from jsonschema import Draft202012Validator

    schemas = schema if isinstance(schema, list) else [schema] * len(completions)
    found: list[float | None] = []
    for text, given in zip(texts(completions), schemas, strict=True):
        if given is None:
            found.append(None)
            continue
        check = Draft202012Validator(json.loads(given) if isinstance(given, str) else given)
        fenced = re.fullmatch(r"\s*```(?:json)?\n(.*)```\s*", text, re.DOTALL)
        try:
            value = json.loads(fenced[1] if fenced else text, parse_constant=_no_number)
        except (ValueError, RecursionError):
            found.append(0.0)
            continue
        found.append(float(check.is_valid(value)))
    return found


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def math_answer(completions: Completions, answer: Sequence[Any]) -> list[float | None]:
    """Return 1 for each response whose final answer equals the column `answer`, else 0.

    Both are read as LaTeX or plain expressions by math-verify, so 1/2 equals 0.5. None where the known
    answer cannot be read. Needs the package math-verify (`pip install 'burnish[verify]'`).
    """
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    # math-verify limits its time by signals, which only the main thread may use.
    main = threading.current_thread() is threading.main_thread()
    limit = {} if main else {"parsing_timeout": None}
    how = (LatexExtractionConfig(), ExprExtractionConfig())
    found: list[float | None] = []
    for text, known in zip(texts(completions), answer, strict=True):
        gold = parse(str(known), extraction_config=how, **limit)
        if not gold:
            found.append(None)
            continue
        given = parse(text, extraction_config=how, **limit)
        more = {} if main else {"timeout_seconds": None}
        found.append(float(bool(given) and verify(gold, given, **more)))
    return found
