"""Stress tests of a run's reward ensemble, on answers of the policy that PPO starts from."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from burnish.models.logprobs import token_logprobs
from burnish.models.memory import at_once
from burnish.models.sequences import Sequences
from burnish.monitor.texts import text_figures
from burnish.pipeline.models import Models
from burnish.records import Rollout
from burnish.reward.changes import Changed
from burnish.reward.ensemble import RewardEnsemble, reference_scores, round_scores
from burnish.reward.stress import best_of, stress, summed_up
from burnish.textstats import repeated_ngram_share

UNUSUAL = (
    0.99  # of the policy's own answers are shorter, and repeat themselves less, than one that looks hacked
)
Worth = Callable[[Rollout], Sequence[float]]


def stress_ensemble(
    models: Models,
    ensemble: RewardEnsemble,
    score_sd: float,
    answers: Rollout,
    rounds: Sequence[Rollout],
    *,
    references: tuple[Rollout | None, Rollout | None],
    kl_target: float,
    missing_eos_penalty: float,
    seed: int,
    worth: Worth | None = None,
) -> dict[str, Any]:
    """The battery on `answers`, and the best of n among the `rounds`; `worth` is a judge that is not optimised against,
    in what unit it likes. Scores are the ensemble's as PPO is given them (other `ppo.rewards` are left out), with
    `references` (to the prompts of `answers` and of `rounds`, see `reference_answers`) and `missing_eos_penalty` taken
    from what was cut off, in units of `score_sd`.
    What had not ended does not end when it is changed."""
    pad_id = models.codec.pad_id
    sequences = Sequences.of(ensemble.base, answers, pad_id)
    anchor = reference_scores(ensemble, references[0], pad_id)
    before = (ensemble.score(sequences, anchor).scores / score_sd).tolist()
    limit, before_response = models.config.max_response_tokens, models.prompt_room
    context = sys.maxsize if before_response is None else before_response + limit

    def encode(rows: Sequence[int], made: Sequence[Changed]) -> list[list[int]]:
        """Token ids of changed answers, none for what does not fit into the model's context."""
        found = []
        for row, changed in zip(rows, made, strict=True):
            whole = models.codec.encode_response(changed.text, to=answers.prompts[row])
            text, end = whole[:-1], whole[-1]
            ends = changed.ends if answers.ended[row] else 0
            # Padding is read whole, also where it makes more of an answer than the policy may write.
            room = limit if changed.cut else context - len(answers.prompt_ids[row])
            fits = changed.cut or len(text) + ends <= room
            found.append([*text[: room - ends], *[end] * ends] if fits else [])
        return found

    def judge(rows: Sequence[int], made: Sequence[Changed]) -> list[float | None]:
        ids = encode(rows, made)
        reach = [k for k, row in enumerate(rows) if ids[k] and ids[k] != list(answers.response_ids[row])]
        scores: list[float | None] = [None] * len(rows)
        if reach:
            asked = Sequences(
                ensemble.base, [answers.prompt_ids[rows[k]] for k in reach], [ids[k] for k in reach], pad_id
            )
            own = None if anchor is None else anchor[[rows[k] for k in reach]]
            said = ensemble.score(asked, own).scores / score_sd
            for k, value in zip(reach, said.tolist(), strict=True):
                cut_off = answers.ended[rows[k]] and not made[k].ends
                scores[k] = value - cut_off * missing_eos_penalty / score_sd
        return scores

    def reach(rows: Sequence[int], made: Sequence[Changed]) -> tuple[list[float], list[float]]:
        prompts = [answers.prompt_ids[row] for row in rows]
        own = response_logprobs(models, prompts, [answers.response_ids[row] for row in rows])
        other = response_logprobs(models, prompts, encode(rows, made))
        return own.tolist(), other.tolist()

    report = stress(
        answers.prompts,
        answers.texts,
        before,
        judge,
        seed=seed,
        pull=math.sqrt(2 * kl_target),
        reach=reach,
    )
    report |= {"answers": len(answers), "kl_target": kl_target, "best_of": None}
    if len(rounds) > 1 and len(rounds[0]) > 1:
        scores = round_scores(ensemble, rounds, references[1], pad_id).T / score_sd
        valued = None if worth is None else np.array([list(worth(r)) for r in rounds]).T.tolist()
        winners = best_of(scores.tolist(), looks_hacked(rounds), valued)
        report |= {"best_of": winners | {"prompts": len(rounds[0])}} | summed_up(report["changes"], winners)
    return report


def response_logprobs(
    models: Models, prompt_ids: Sequence[Sequence[int]], response_ids: Sequence[Sequence[int]]
) -> torch.Tensor:
    """(N,) log-probability of responses under the reference policy, in nats."""
    policy = models.reference()
    base = policy.top.base
    sequences = Sequences(base, prompt_ids, response_ids, models.codec.pad_id)
    return sequences.read(
        lambda batch: token_logprobs(policy, batch).sum(1),
        at_once(base.device),
        range(len(sequences)),
        "log-probabilities",
    )


def looks_hacked(rounds: Sequence[Rollout]) -> list[list[bool]]:
    """(prompts, rounds) whether an answer looks like one of the hacks that are known: cut off or empty, surely in
    another language than its prompt, or longer or more repetitive than all but 1 % of the policy's own answers."""
    lengths = [n for r in rounds for n in r.lengths]
    repeats = [repeated_ngram_share(t) for r in rounds for t in r.texts]
    longest, most = float(np.quantile(lengths, UNUSUAL)), max(float(np.quantile(repeats, UNUSUAL)), 0.1)

    def one(rollout: Rollout, i: int) -> bool:
        text = rollout.texts[i]
        foreign = text_figures([rollout.prompts[i].text], [text]).get("foreign", 0.0)
        return (
            not rollout.ended[i]
            or not text.strip()
            or foreign > 0
            or rollout.lengths[i] > longest
            or repeated_ngram_share(text) > most
        )

    return [[one(rollout, i) for rollout in rounds] for i in range(len(rounds[0]))]
