"""The evaluate stage: every candidate against SFT on held-out prompts, and the champion rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

import torch

from burnish.checkpoints import write_json
from burnish.evaluate.champion import Candidate, choose_champion
from burnish.evaluate.winrate import Examiner, head_to_head, win_rate
from burnish.models.heads import ScalarHead, raw_scores
from burnish.models.logprobs import Policy, response_kl
from burnish.models.sampling import sample_rollout
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Context
from burnish.pipeline.rewarding import load_ensemble, load_head
from burnish.randomness import derive_seed
from burnish.records import Decision, Interval, Prompt, Rollout
from burnish.rehearse.annotators import panel
from burnish.stats import length_controlled_win_rate

PANEL_SIZE = 5
EXAMPLES = 8
EXAMINER_BATCH = 32


@dataclass
class Answers:
    """A policy's responses to the held-out prompts: selection first, then test."""

    rollout: Rollout
    kl: dict[str, Any] | None = None

    @property
    def texts(self) -> list[str]:
        return self.rollout.texts


def evaluate(ctx: Context) -> list[str]:
    """Sample every policy on the same held-out prompts, judge against SFT, decide, and only then look at gold."""
    config = ctx.config.evaluate
    selection = list(ctx.splits.selection[: config.n_selection])
    test = list(ctx.splits.test[: config.n_test])
    if len(selection) < config.n_selection or len(test) < config.n_test:
        ctx.view.note(
            f"evaluate: {len(selection)} selection and {len(test)} test prompts are there, "
            f"{config.n_selection} and {config.n_test} were asked for"
        )
    prompts = [*selection, *test]
    answers = sample_all(ctx, prompts, len(selection))
    describe, judge = build_examiner(ctx, [a.rollout for a in answers.values()])
    policies: dict[str, dict[str, Any]] = {
        "sft": {"mean_length": mean_length(answers["sft"], len(selection))}
    }
    candidates = []
    for name, answer in answers.items():
        if name == "sft":
            continue
        outcomes = head_to_head(judge, prompts, answer.texts, answers["sft"].texts)
        figures, candidate = account(ctx, name, prompts, len(selection), answer, answers["sft"], outcomes)
        policies[name] = figures
        if not name.startswith("best_of") or config.best_of_n_candidate:
            candidates.append(candidate)
    decision = choose_champion(candidates)
    ctx.decide("evaluate", 0, Decision("champion", decision.reason, decision.evidence))
    # Only now, with the decision written down, is the true preference read.
    gold = gold_account(ctx, test, answers, len(selection)) if ctx.gold else None
    report = {
        "examiner": describe,
        "provisional": config.examiner == "reward_model",
        "n_selection": len(selection),
        "n_test": len(test),
        "policies": policies,
        "selected": decision.selected,
        "champion": decision.champion,
        "reason": decision.reason,
        "gold": gold,
        "examples": examples(test, answers, len(selection)),
    }
    write_json(ctx.run.path / "evaluation.json", report)
    return ["evaluation.json"]


def sample_all(ctx: Context, prompts: Sequence[Prompt], n_selection: int) -> dict[str, Answers]:
    """Responses of SFT, of every trained policy and of best-of-n, with the KL of each policy to SFT."""
    reference = ctx.reference()
    answers = {"sft": Answers(sample(ctx, reference, prompts, "sft"))}
    for name in ("ppo", "dpo"):
        folder = ctx.run.path / name
        if (folder / "config.json").exists():
            policy = ctx.saved_policy(folder)
            rollout = sample(ctx, policy, prompts, name)
            answers[name] = Answers(rollout, measured_kl(ctx, policy, reference, rollout))
    n = ctx.config.evaluate.best_of_n
    if n > 1:
        answers[f"best_of_{n}"] = Answers(best_of(ctx, reference, prompts, n))
    return answers


def sample(ctx: Context, policy: Policy, prompts: Sequence[Prompt], name: str, turn: int = 0) -> Rollout:
    config = ctx.config.evaluate
    policy.temperature = config.temperature or ctx.config.ppo.temperature
    return sample_rollout(
        policy,
        ctx.codec,
        prompts,
        max_tokens=ctx.config.model.max_response_tokens,
        batch_size=config.batch_size,
        seed=ctx.config.seed,
        where=("evaluate", name, turn),
    )


def measured_kl(ctx: Context, policy: Policy, reference: Policy, rollout: Rollout) -> dict[str, Any]:
    """KL(policy || SFT) in nats per response with its standard error, exact over the vocabulary at each token."""
    n = min(ctx.config.evaluate.kl_prompts, len(rollout))
    sequences = Sequences.of(policy.top.base, rollout, ctx.codec.pad_id)
    last = list(range(len(rollout) - n, len(rollout)))
    values = torch.zeros(n)
    for rows, batch in sequences.batches(32, last):
        values[[row - last[0] for row in rows]] = response_kl(policy, reference, batch)
    return {
        "kl": float(values.mean()),
        "kl_se": float(values.std(unbiased=True)) / math.sqrt(n),
        "kl_n": n,
        "kl_kind": "exact over the vocabulary at every token of sampled responses",
    }


def best_of(ctx: Context, reference: Policy, prompts: Sequence[Prompt], n: int) -> Rollout:
    """The ensemble's pick among n SFT responses to each prompt: what reward alone buys, without training."""
    ensemble = load_ensemble(ctx)
    rounds = [sample(ctx, reference, prompts, "best_of", turn) for turn in range(n)]
    anchor: torch.Tensor | None = None
    scores = []
    for rollout in rounds:
        sequences = Sequences.of(ctx.base, rollout, ctx.codec.pad_id)
        if anchor is None:
            anchor = ensemble.normalised(sequences)
        scores.append(ensemble.score(sequences, anchor).scores)
    picks = torch.stack(scores).argmax(0).tolist()  # (N,)
    rows = list(enumerate(picks))
    return Rollout(
        prompts=list(prompts),
        prompt_ids=rounds[0].prompt_ids,
        response_ids=[rounds[k].response_ids[i] for i, k in rows],
        texts=[rounds[k].texts[i] for i, k in rows],
        ended=[rounds[k].ended[i] for i, k in rows],
        sample_logprobs=torch.zeros(0),
        sample_entropy=torch.zeros(0),
        response_mask=torch.zeros(0, dtype=torch.bool),
        features=[rounds[k].features[i] for i, k in rows] if rounds[0].features else None,
    )


def build_examiner(ctx: Context, rollouts: Sequence[Rollout]) -> tuple[str, Examiner]:
    """Who decides: a fresh panel of simulated annotators, or a reward model trained on pairs of its own."""
    if ctx.config.evaluate.examiner == "panel":
        assert ctx.gold is not None, "checked with the configuration"
        votes = panel(ctx.gold, ctx.config.label.simulated, derive_seed(ctx.config.seed, "panel"), PANEL_SIZE)
        return f"panel of {PANEL_SIZE} fresh simulated annotators", votes
    model = load_head(ctx, "examiner")
    scores: dict[tuple[str, str], float] = {}
    for rollout in rollouts:
        scores |= examiner_scores(ctx, model, rollout)

    def judge(prompt: Prompt, first: str, second: str) -> float:
        # A score does not depend on what stands beside it, so both orders compare the same two scores.
        a, b = scores[prompt.id, first], scores[prompt.id, second]
        return 1.0 if a > b else 0.0 if a < b else 0.5

    return "a reward model trained on pairs of its own", judge


def examiner_scores(ctx: Context, model: ScalarHead, rollout: Rollout) -> dict[tuple[str, str], float]:
    """What the held-out reward model says of every response."""
    values = raw_scores(model, Sequences.of(ctx.base, rollout, ctx.codec.pad_id), EXAMINER_BATCH).tolist()
    ids = [p.id for p in rollout.prompts]
    return dict(zip(zip(ids, rollout.texts, strict=True), values, strict=True))


def account(
    ctx: Context,
    name: str,
    prompts: Sequence[Prompt],
    n_selection: int,
    answer: Answers,
    sft: Answers,
    outcomes: Sequence[float],
) -> tuple[dict[str, Any], Candidate]:
    """Win rates of one policy on both splits, raw and length-controlled."""
    config = ctx.config.evaluate
    seed = derive_seed(ctx.config.seed, "bootstrap", name) % 2**32

    def rate(part: slice) -> Interval:
        groups = [p.group for p in prompts[part]]
        return win_rate(
            outcomes[part], groups, seed=seed, draws=config.bootstrap, confidence=config.confidence
        )

    selection, test = rate(slice(n_selection)), rate(slice(n_selection, None))
    deltas = [float(a - b) for a, b in zip(answer.rollout.lengths, sft.rollout.lengths, strict=True)][
        n_selection:
    ]
    controlled = length_controlled_win_rate(
        list(outcomes[n_selection:]),
        deltas,
        clusters=[p.group for p in prompts[n_selection:]],
        seed=seed,
        confidence=config.confidence,
    )
    ties = sum(o == 0.5 for o in outcomes[n_selection:]) / max(1, len(outcomes) - n_selection)
    figures = {
        "mean_length": mean_length(answer, n_selection),
        **(answer.kl or {}),
        "selection": as_win_rate(selection),
        "test": {**as_win_rate(test), "ties": ties},
        "length_controlled": as_win_rate(controlled),
    }
    return figures, Candidate(name, selection, test)


def as_win_rate(interval: Interval) -> dict[str, float]:
    """An interval under the name it has in evaluation.json."""
    row = asdict(interval)
    return {"win_rate": row.pop("value"), **row}


def mean_length(answers: Answers, n_selection: int) -> float:
    """Mean response length in tokens on the test prompts, end-of-sequence token included."""
    return mean(answers.rollout.lengths[n_selection:])


def gold_account(
    ctx: Context, test: Sequence[Prompt], answers: dict[str, Answers], n_selection: int
) -> dict[str, Any]:
    """A rehearsal's verdict on the verdict: win rate against SFT by the true preference."""
    assert ctx.gold is not None
    golds = {
        name: [ctx.gold(p, t) for p, t in zip(test, a.texts[n_selection:], strict=True)]
        for name, a in answers.items()
    }
    base = golds["sft"]
    report: dict[str, Any] = {}
    for name, values in golds.items():
        if name == "sft":
            continue
        outcomes = [1.0 if a > b else 0.0 if a < b else 0.5 for a, b in zip(values, base, strict=True)]
        seed = derive_seed(ctx.config.seed, "gold", name) % 2**32
        interval = win_rate(
            outcomes,
            [p.group for p in test],
            seed=seed,
            draws=ctx.config.evaluate.bootstrap,
            confidence=ctx.config.evaluate.confidence,
        )
        report[name] = {
            **as_win_rate(interval),
            "mean": mean(values),
            "sft_mean": mean(base),
            "sd": stdev(values),
        }
    return report


def examples(test: Sequence[Prompt], answers: dict[str, Answers], n_selection: int) -> list[dict[str, str]]:
    """The first test prompts with every policy's response, unpicked."""
    return [
        {"prompt": p.text, **{name: a.texts[n_selection + i] for name, a in answers.items()}}
        for i, p in enumerate(test[:EXAMPLES])
    ]
