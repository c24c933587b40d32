"""A run's models at a page's service: what the reward makes of answers and why, and what both policies say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from burnish.checkpoints import read_json
from burnish.data.text import Unusable, text_of
from burnish.errors import BurnishError, DataError
from burnish.pipeline.chat import Chat, parse
from burnish.pipeline.explain import explain
from burnish.pipeline.scoring import Scorer, score_texts


def judged(path: Path, prompt: str, responses: Sequence[str]) -> dict[str, Any]:
    """Of every response its scores, and why it has them, or why that cannot be told."""
    asked = parse(prompt)
    try:
        rows = [(asked, text_of(response), True) for response in responses]
    except Unusable as reason:
        raise DataError(f"an answer cannot be read: {reason}") from None
    found = []
    for row, response in zip(score_texts(path, rows, scorer(path, stamp(path))), responses, strict=True):
        try:
            why: dict[str, Any] = asdict(explain(path, asked, response))
        except BurnishError as error:
            why = {"error": str(error)}
        found.append({**row, "response": response, "why": why})
    return {"answers": found}


def both(path: Path, line: str, number: int) -> dict[str, str]:
    """What SFT and the champion say to a prompt, or SFT and the candidate that came nearest to beating it; another
    `number` draws other answers."""
    found = read_json(path / "evaluation.json")
    against = found["selected"] if found["champion"] == "sft" else found["champion"]
    return chat(path, against, stamp(path)).say(line, number)


def stamp(path: Path) -> float:
    """When a run's models were last made; another run in the same folder has another."""
    files = [path / "reward" / "ensemble.json", path / "evaluation.json"]
    return max((file.stat().st_mtime for file in files if file.exists()), default=0.0)


@lru_cache(maxsize=1)
def scorer(path: Path, made: float) -> Scorer:
    """The reward models that were asked last, kept loaded."""
    return Scorer(path)


@lru_cache(maxsize=1)
def chat(path: Path, against: str, made: float) -> Chat:
    """The policies that were asked last, kept loaded."""
    return Chat(path, None, against)
