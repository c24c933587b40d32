"""Regression sets (prompts with references, or lm-eval tasks), on which SFT must not win."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from pathlib import Path

from burnish.config.evaluate import EvaluateConfig, RegressionSet
from burnish.data.prompts import read_references
from burnish.distributed import collectives
from burnish.errors import ConfigError, DataError
from burnish.evaluation.champion import Held
from burnish.models.device import traits
from burnish.models.generate import sample_rollout
from burnish.models.logprobs import Policy, token_logprobs
from burnish.models.sequences import Sequences
from burnish.pipeline.context import Models
from burnish.records import Prompt
from burnish.stats import clustered_bootstrap

FEWEST = 8
Figures = tuple[list[float], list[float], list[Hashable]]  # the champion's, SFT's, cluster of each row


def measure_regression_sets(models: Models, folder: Path, config: EvaluateConfig, seed: int) -> list[Held]:
    """Measure SFT and the policy saved in `folder` on every regression set."""
    if not config.regression_sets:
        return []
    sft = models.reference(config.temperature)
    champion = models.saved_policy(folder)
    champion.temperature = sft.temperature
    return [measured(models, sft, champion, given, config, seed) for given in config.regression_sets]


def measured(
    models: Models, sft: Policy, champion: Policy, given: RegressionSet, config: EvaluateConfig, seed: int
) -> Held:
    """Measure one regression set; raise DataError if too few of its prompts fit."""
    if lacking := given.lacks():
        raise ConfigError(lacking)
    asked = on_task if given.task is not None else on_prompts
    ours, theirs, groups = asked(models, sft, champion, given, config, seed)
    apart = [a - b for a, b in zip(ours, theirs, strict=True)]
    difference = clustered_bootstrap(apart, groups, seed=seed % 2**32, confidence=config.confidence)
    return Held(given.name, sum(ours) / len(ours), sum(theirs) / len(theirs), difference, given.tolerance)


def on_task(
    models: Models, sft: Policy, champion: Policy, given: RegressionSet, config: EvaluateConfig, seed: int
) -> Figures:
    """Measure champion and SFT on each question of an lm-eval task."""
    from burnish.pipeline.lm_eval import marks_of  # an optional dependency

    # The harness is not distributed, so process 0 runs it for all.
    ours, theirs = collectives.from_lead(lambda: marks_of(models, [champion, sft], given, config))
    if len(ours) < FEWEST:
        raise DataError(
            f"lm-eval's task {given.task!r} has {len(ours)} questions, {FEWEST} are needed; raise limit"
        )
    return list(ours.values()), [theirs[question] for question in ours], list(ours)


def on_prompts(
    models: Models, sft: Policy, champion: Policy, given: RegressionSet, config: EvaluateConfig, seed: int
) -> Figures:
    """Measure champion and SFT on the user's own prompts with references."""
    rows = fitting(models, given)
    ours, theirs = (marks(models, policy, rows, given, config, seed) for policy in (champion, sft))
    return ours, theirs, [p.group for p in rows[0]]


def sets_of_looks(
    models: Models, config: EvaluateConfig, seed: int
) -> Callable[[Policy], dict[str, float]] | None:
    """Return a function that gives a policy's mean on each regression set of a file; None without one.

    The first `look_prompts` prompts of a file are used. Tasks of lm-eval are left out. Either would take
    longer than the updates between two looks.
    """
    few = config.look_prompts
    files = []
    for given in config.regression_sets:
        if given.file is not None:
            prompts, references = fitting(models, given)
            files.append((given, (prompts[:few], references[:few])))
    if not files:
        return None

    def measure(policy: Policy) -> dict[str, float]:
        found = {}
        for given, rows in files:
            values = marks(models, policy, rows, given, config, seed)
            found[f"regression_{given.name}_{given.measure}"] = sum(values) / len(values)
        return found

    return measure


def marks(
    models: Models,
    policy: Policy,
    rows: tuple[list[Prompt], list[str]],
    given: RegressionSet,
    config: EvaluateConfig,
    seed: int,
) -> list[float]:
    """Return a policy's mark for each prompt with its reference."""
    if given.measure == "likelihood":
        return likelihoods(models, policy, *rows)
    return found(models, policy, *rows, given, config, seed)


def fitting(models: Models, given: RegressionSet) -> tuple[list[Prompt], list[str]]:
    """Return the prompts of a file that fit into the model, and their references."""
    assert given.file is not None
    rows = read_references(given.file, given.limit)
    room = models.prompt_room
    fit = [(p, r) for p, r in rows if room is None or len(models.codec.encode_prompt(p)) <= room]
    if len(fit) < FEWEST:
        raise DataError(
            f"{given.file}: {len(fit)} of {len(rows)} prompts fit into the model, {FEWEST} are needed; give more, or "
            "shorter ones"
        )
    return [p for p, _ in fit], [r for _, r in fit]


def found(
    models: Models,
    policy: Policy,
    prompts: Sequence[Prompt],
    references: Sequence[str],
    given: RegressionSet,
    config: EvaluateConfig,
    seed: int,
) -> list[float]:
    """Return 1.0 for each sampled answer that contains (or equals) its reference, else 0.0."""
    rollout = sample_rollout(
        policy,
        models.codec,
        prompts,
        max_tokens=models.config.max_response_tokens,
        batch_size=config.batch_size,
        seed=seed,
        where=("guard set", str(given.file)),
    )
    pairs = [(plain(t), plain(r)) for t, r in zip(rollout.texts, references, strict=True)]
    return [float(r == t if given.measure == "exact" else r in t) for t, r in pairs]


def plain(text: str) -> str:
    """Casefold a text and collapse its white space."""
    return " ".join(text.casefold().split())


def likelihoods(
    models: Models, policy: Policy, prompts: Sequence[Prompt], references: Sequence[str]
) -> list[float]:
    """Return the mean log-probability per token of every reference, in nats, always at temperature 1."""
    policy, base = replace(policy, temperature=1.0), policy.top.base
    asked = [models.codec.encode_prompt(p) for p in prompts]
    said = [models.codec.encode_response(r, to=p) for p, r in zip(prompts, references, strict=True)]
    sequences = Sequences(base, asked, said, models.codec.pad_id)
    sums = sequences.read(
        lambda b: token_logprobs(policy, b).sum(1),
        traits(base.device).rows,
        range(len(sequences)),
        "regression sets",
    )
    return [float(s) / len(ids) for s, ids in zip(sums, said, strict=True)]
