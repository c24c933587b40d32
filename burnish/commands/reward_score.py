"""Use of a run's reward ensemble: scores of texts, and comparisons worth a label."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from burnish.data.store import LabelStore, Place, shown
from burnish.data.text import Unusable, numbered, parse_json, prompt_of, reply_of, text_of
from burnish.errors import DataError, RunError
from burnish.labels.select import How, choose, is_reserved, labelled, unlabelled
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Models, RunContext, fits
from burnish.pipeline.run import set_determinism
from burnish.pipeline.select import usable, worth
from burnish.records import Prompt
from burnish.reward.ensemble import RewardEnsemble, load_ensemble, prepare
from burnish.runs.directory import RunDirectory
from burnish.runs.files import atomic_write

AT_ONCE = 64

Answer = tuple[Prompt, str, bool]
"""A prompt, a response, and whether it has ended."""


def open_ensemble(path: Path, *, average: bool = False) -> tuple[RunContext, RewardEnsemble]:
    """Open a run and its reward ensemble, or one model with the average of its members' weights.

    Raises RunError if there is none yet.
    """
    run = RunDirectory.open(path)
    if not (path / "reward" / "ensemble.json").exists():
        raise RunError(f"{path} has no reward ensemble yet; run `burnish run --until reward`")
    set_determinism(run.config)
    place = RunContext.alone(run)
    prepare(place.models.base, path / "reward")
    return place, load_ensemble(place.models.base, path / "reward", average=average)


class Scorer:
    """Reward models of a run, loaded once, for texts that arrive later."""

    def __init__(self, path: Path, *, average: bool = False) -> None:
        self.place, self.ensemble = open_ensemble(path, average=average)

    def check(self, rows: Sequence[Answer], first: int = 1, *, cut: bool = False) -> None:
        """Raise DataError for the first unusable row, counted from `first`.

        A row is unusable if it is too long, or has nothing to read. With `cut` only the length of its
        prompt is checked.
        """
        codec, limits = self.place.models.codec, self.place.models.config
        for number, (prompt, text, ended) in enumerate(rows, first):
            if not ended and not codec.encode_response(text, end=False):
                raise DataError(
                    f"row {number} is an empty response that has not ended: there is nothing to read"
                )
            if not fits(codec, limits, prompt, *([] if cut else [(text, ended)])):
                raise DataError(
                    f"row {number} has more tokens than model.max_prompt_tokens={limits.max_prompt_tokens} and "
                    f"model.max_response_tokens={limits.max_response_tokens} allow; shorten it"
                )

    def score(self, rows: Sequence[Answer]) -> list[dict[str, Any]]:
        """Return the ensemble's score, the members' scores, their standard deviation and the tokens of every answer.

        Scores are in standard deviations of the policy's own answers. A response that is too long is read
        up to the limit.
        """
        return scored(self.ensemble, self.place.models, rows)


def scored(ensemble: RewardEnsemble, models: Models, rows: Sequence[Answer]) -> list[dict[str, Any]]:
    """Return score, members' scores, standard deviation and tokens of every answer, as `Scorer.score` does."""
    codec, limit = models.codec, models.config.max_response_tokens
    prompts = [codec.encode_prompt(p) for p, _, _ in rows]
    responses = [codec.encode_response(text, end=ended, to=p)[:limit] for p, text, ended in rows]
    sequences = Sequences(ensemble.base, prompts, responses, codec.pad_id)
    members = ensemble.normalised(sequences)
    # Without a reference answer, scores are means over members, whatever aggregation PPO used.
    scores = ensemble.corrected(members.mean(1), sequences)
    return [
        {
            "score": float(scores[i]),
            "members": [float(m) for m in members[i]],
            "ensemble_std": float(members[i].std(unbiased=False)),
            "tokens": len(responses[i]),
        }
        for i in range(len(rows))
    ]


def score_texts(path: Path, rows: Sequence[Answer], scorer: Scorer | None = None) -> Iterator[dict[str, Any]]:
    """Yield the result of `Scorer.score` for every answer."""
    scorer = scorer or Scorer(path)
    for start in range(0, len(rows), AT_ONCE):
        part = rows[start : start + AT_ONCE]
        scorer.check(part, start + 1)
        yield from scorer.score(part)


def select_comparisons(
    path: Path,
    store: Place,
    out: Path,
    *,
    n: int,
    how: How,
    random_share: float,
    reserve: float,
    seed: int,
) -> dict[str, Any]:
    """Write comparisons that are worth a label to `out`, one per line with the reason."""
    with LabelStore(store) as labels:
        pool = [c for c in unlabelled(labels) if is_reserved(c.id, reserve) == (how == "reserved")]
        past = list(labelled(labels)) if how == "d_optimal" else []
    if not pool:
        raise DataError(f"{shown(store)} has no comparison without a label to choose from; collect more")
    scores = None
    if how not in ("random", "reserved"):
        place, ensemble = open_ensemble(path)
        whole = len(pool)
        pool = usable(place.models, pool)
        if not pool:
            raise DataError(f"none of {whole} comparisons fits the lengths that {path} was trained with")
        scores = worth(ensemble, place.models, pool, how, n - round(random_share * n), past)
    chosen = choose([c.id for c in pool], scores, n, how=how, random_share=random_share, seed=seed)
    lines = [
        {"comparison": pool[i].id, "why": why, "score": None if scores is None else float(scores[i])}
        for i, why in chosen
    ]
    atomic_write(out, "".join(json.dumps(line) + "\n" for line in lines))
    by_score = sum(why == how for _, why in chosen)
    return {"path": str(out), "pool": len(pool), "selected": len(chosen), "by_score": by_score, "how": how}


def answer_of(row: Any) -> Answer:
    """Return the prompt, the response and `ended` (default true) of a row.

    Prompt and response are text or messages. Raises Unusable for any other row.
    """
    if not isinstance(row, Mapping):
        raise Unusable("not an object with prompt and response")
    ended = row.get("ended", True)
    if not isinstance(ended, bool):
        raise Unusable("ended is neither true nor false")
    return prompt_of(row.get("prompt")), reply_of(row.get("response")), ended


def read_answers(text: str, prompt: str | None) -> list[Answer]:
    """Return the answers in JSON lines or a JSON array with `prompt`, `response` (and `ended`).

    With `prompt` given, every line is a response to it. Raises DataError naming the line that cannot be
    used.
    """
    rows: list[Answer] = []
    for number, line in numbered(text) if prompt is None else enumerate(text.split("\n"), 1):
        try:
            if prompt is None:
                rows.append(answer_of(parse_json(line) if isinstance(line, str) else line))
            elif line.strip():
                rows.append((prompt_of(prompt), text_of(line), True))
        except Unusable as reason:
            raise DataError(
                f"line {number}: {reason}; give JSON lines with prompt and response, or --prompt and lines"
            ) from None
    if not rows:
        raise DataError("there is nothing to score; give JSON lines with prompt and response")
    return rows


def as_table(rows: Sequence[dict[str, Any]]) -> str:
    """Return scores as lines of text."""
    lines = ["score   std     tokens  members"]
    for row in rows:
        members = "  ".join(f"{m:+.2f}" for m in row["members"])
        lines.append(f"{row['score']:+.2f}   {row['ensemble_std']:.2f}    {row['tokens']:<6}  {members}")
    return "\n".join(lines)
