"""Explanation of a score: every token's contribution, and the most similar labelled answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from burnish.commands.reward_score import open_ensemble
from burnish.errors import BurnishError, ConfigError
from burnish.models.batches import CPU, Batch
from burnish.models.heads import ScalarHead
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.models.standalone import Member
from burnish.pipeline.context import RunContext
from burnish.pipeline.report import copy_whole_reward_model
from burnish.records import Prompt
from burnish.report.embed import render
from burnish.reward.ensemble import scorers
from burnish.runs.files import atomic_write

STEPS = (32, 128, 512)  # steps of the path, tried until contributions add up
TOLERANCE = 0.02  # of a reference standard deviation, or of the explained difference if larger
NEAREST = 5


@dataclass(frozen=True)
class Explained:
    """Explanation of a score, in reference standard deviations.

    `baseline`: score of the same prompt with an empty answer of as many tokens. `contributions`: what
    every token of the response adds to the difference. `gap`: what is missing from their sum.
    """

    score: float
    baseline: float
    tokens: list[str]
    contributions: list[float]
    gap: float
    nearest: list[dict[str, Any]]


def explain(path: Path, prompt: Prompt, response: str) -> Explained:
    """Explain a score by integrated gradients (Sundararajan et al. 2017) of the members' mean.

    The path is the straight line from padding to the response's embeddings; the prompt stays as it is.
    Completeness (their axiom: contributions add up to the difference) is checked. If it fails, more
    steps are taken. Raises BurnishError if it still fails.
    """
    place, ensemble = open_ensemble(path)
    codec = place.models.codec
    prompt_ids = codec.encode_prompt(prompt)
    response_ids = codec.encode_response(response, to=prompt)
    ids = torch.tensor([[*prompt_ids, *response_ids]], device=CPU)
    empty = torch.tensor([[*prompt_ids, *[codec.pad_id] * len(response_ids)]], device=CPU)
    total = torch.zeros(len(response_ids), device=CPU)
    scores, baselines, gap = 0.0, 0.0, 0.0
    with TemporaryDirectory() as room:
        for k, name in enumerate(scorers(path / "reward")):
            folder = Path(room) / name
            copy_whole_reward_model(place.models, path / "reward" / folder.name, folder)
            mean, sd = float(ensemble.mean[k]), float(ensemble.sd[k])
            found, ends, off = contributions(Member(folder), ids, empty, len(prompt_ids), sd)
            share = 1 / len(ensemble.members)
            total += found / sd * share
            scores += (ends[0] - mean) / sd * share
            baselines += (ends[1] - mean) / sd * share
            gap += off / sd * share
    tokens = [str(codec.tokenizer.decode([i])) for i in response_ids]
    nearest = alike(place, ensemble.members[0], prompt_ids, response_ids)
    return Explained(scores, baselines, tokens, total.tolist(), gap, nearest)


def contributions(
    member: Member, ids: torch.Tensor, empty: torch.Tensor, start: int, sd: float
) -> tuple[torch.Tensor, tuple[float, float], float]:
    """Return (T,) raw contributions from token `start` on, the raw scores at both ends, and the gap."""
    try:
        from captum.attr import LayerIntegratedGradients
    except ImportError:
        raise ConfigError("explaining a score needs captum; install burnish[explain]") from None
    forward = raw_score_of(member, start)
    method = LayerIntegratedGradients(forward, member.model.get_input_embeddings())
    with torch.no_grad():
        ends = float(forward(ids)), float(forward(empty))
    wanted = ends[0] - ends[1]
    found = torch.zeros(0, device=CPU)
    for steps in STEPS:
        found = (
            method.attribute(ids, baselines=empty, n_steps=steps, internal_batch_size=16).sum(-1)[0].detach()
        )
        off = float(found.sum()) - wanted
        if abs(off) <= TOLERANCE * max(abs(wanted), sd):
            return found[start:], ends, off
    raise BurnishError(
        f"contributions add up to {float(found.sum()) / sd:.3f}, the scores differ by {wanted / sd:.3f} standard "
        f"deviations, after {STEPS[-1]} steps: this score cannot be explained token by token"
    )


def raw_score_of(member: Member, start: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function from ids (B, L) to raw scores (B,); responses begin at column `start`."""

    def forward(ids: torch.Tensor) -> torch.Tensor:
        if member.weight is None:
            return member.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[:, 0]
        hidden = member.model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        return hidden[:, start:].mean(1) @ member.weight

    return forward


@torch.no_grad()
def alike(
    place: RunContext, member: ScalarHead, prompt_ids: list[int], response_ids: list[int]
) -> list[dict[str, Any]]:
    """Return the labelled answers that a member reads most alike, by cosine, and their sides."""
    pairs = EncodedPairs(member.top.base, place.models.codec, place.data.parts["members"])
    rows = range(len(pairs.sequences))

    def read(batch: Batch) -> torch.Tensor:
        return member.pooled(batch)

    known = torch.cat([read(batch) for _, batch in pairs.sequences.batches(32)])
    order = [row for chosen, _ in pairs.sequences.batches(32) for row in chosen]
    ours = read(
        Sequences(member.top.base, [prompt_ids], [response_ids], place.models.codec.pad_id).batch([0])
    )
    likeness = torch.cosine_similarity(known, ours)
    by_row = {row: float(value) for row, value in zip(order, likeness, strict=True)}
    sides = {row: ("chosen", p) for row, p in zip(pairs.chosen, pairs.pairs, strict=True)}
    sides |= {
        row: ("rejected", p) for row, p in zip(pairs.rejected, pairs.pairs, strict=True) if row not in sides
    }
    found = []
    for row in sorted(rows, key=lambda r: -by_row[r])[:NEAREST]:
        side, pair = sides[row]
        text = pair.chosen if side == "chosen" else pair.rejected
        found.append({"likeness": by_row[row], "was": side, "prompt": pair.prompt.text, "response": text})
    return found


def write_page(explained: Explained, prompt: str, path: Path) -> None:
    """Write the explanation as a page: blue tokens raise the score, orange ones lower it."""
    most = max((abs(c) for c in explained.contributions), default=1.0) or 1.0
    spans = [
        {
            "text": token,
            "value": value,
            "colour": "0,114,178" if value > 0 else "213,94,0",
            "alpha": abs(value) / most,
        }
        for token, value in zip(explained.tokens, explained.contributions, strict=True)
    ]
    atomic_write(path, render("explain.html", explained=explained, spans=spans, prompt=prompt))
