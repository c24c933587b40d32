"""The collect stage: pairs of responses sampled from the policy, to be labelled."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from burnish.config.collect import CollectConfig
from burnish.config.select import SelectConfig
from burnish.data.store import LabelStore, Snapshot
from burnish.distributed import collectives
from burnish.labels.select import choose
from burnish.models.generate import sample_rollout
from burnish.models.logprobs import Policy
from burnish.models.memory import give_back
from burnish.pipeline.context import SNAPSHOT, Data, Journal, Models, label_store_of
from burnish.pipeline.rounds import aligned, asked_before, followed, pairs_of_round
from burnish.pipeline.select import usable, worth
from burnish.records import Comparison, Decision, Prompt, Response
from burnish.reward.ensemble import RewardEnsemble, load_ensemble, prepare
from burnish.runs.directory import RunDirectory, read_jsonl
from burnish.runs.files import atomic_write, read_json


def collect(
    models: Models,
    data: Data,
    journal: Journal,
    config: CollectConfig,
    select: SelectConfig,
    rounds: int,
    seed: int,
) -> list[str]:
    """Sample pairs of responses into the label store, with a checkpoint after every chunk.

    Imported labels need none. A run that follows another samples more than is labelled and selects.
    """
    if data.label.source == "imported" or not config.n_pairs:
        return []
    earlier = followed(journal.run)
    if earlier is not None:
        outputs = collect_more(
            models, data, journal, RunDirectory.open(earlier), config, select, rounds, seed
        )
        give_back()  # frees the base that read the candidates before the next stages start
        return outputs
    prompts = data.splits.train
    policy = models.reference(config.temperature)
    found = journal.latest_checkpoint()
    for number, start in enumerate(range(0, config.n_pairs, config.batch_size)):
        if found and number < found.step:
            continue
        size = min(config.batch_size, config.n_pairs - start)
        chunk = [prompts[i % len(prompts)] for i in range(start, start + size)]
        comparisons, identical = sample_pairs(models, policy, chunk, config, seed, ("collect", number))
        keep_comparisons(data, comparisons)
        # Counts sampled pairs, not pairs new to the store: after a kill it may hold this chunk already.
        row = {"step": number + 1, "pairs": size, "identical": identical}
        journal.run.append("metrics/collect.jsonl", row)
        journal.checkpoint()
        journal.view.progress(start + size, config.n_pairs)
    return ["labels.sqlite"]


@collectives.by_lead
def keep_comparisons(data: Data, comparisons: Sequence[Comparison]) -> None:
    """Add comparisons to the label store, in process 0 only."""
    data.store.add_comparisons(comparisons)


def sample_pairs(
    models: Models,
    policy: Policy,
    prompts: Sequence[Prompt],
    config: CollectConfig,
    seed: int,
    where: tuple[str | int, ...],
) -> tuple[list[Comparison], int]:
    """Sample one comparison for each prompt; count and drop identical pairs, which teach nothing."""
    rollout = sample_rollout(
        policy,
        models.codec,
        [p for p in prompts for _ in range(2)],
        max_tokens=models.config.max_response_tokens,
        batch_size=2 * config.batch_size,
        seed=seed,
        where=where,
    )
    answers = [Response(t, "policy", e) for t, e in zip(rollout.texts, rollout.ended, strict=True)]
    pairs = [Comparison(p, a, b) for p, a, b in zip(prompts, answers[::2], answers[1::2], strict=True)]
    different = [c for c in pairs if c.first.text != c.second.text]
    return different, len(pairs) - len(different)


SELECTED = "selected.jsonl"  # in a run: the comparisons that were chosen, and why
CANDIDATES = "candidates.jsonl"


def collect_more(
    models: Models,
    data: Data,
    journal: Journal,
    earlier: RunDirectory,
    config: CollectConfig,
    select: SelectConfig,
    rounds: int,
    seed: int,
) -> list[str]:
    """Sample candidates from the newest policy and select those to be labelled in a later round.

    Comparisons for the members are selected where the earlier ensemble's members disagree, except for
    a random share. Those for watcher, validation and examiner measure, so they are drawn at random.
    """
    known = collectives.from_lead(lambda: take_over(data, earlier))
    number = 1 + max((c.round for c in known), default=-1)
    wanted = pairs_of_round(config, rounds, rounds)
    # A separate base, so that reading it here changes no figure of later stages.
    models = replace(models)
    prepare(models.base, earlier.path / "reward")
    ensemble = load_ensemble(models.base, earlier.path / "reward")
    folder = aligned(earlier.path)
    policy = models.reference() if folder is None else models.saved_policy(folder)
    policy.temperature = config.temperature
    sampled = sample_candidates(
        models, data, journal, policy, config, select.candidates * wanted, number, seed
    )
    asked = {c.id for c in known}
    candidates = usable(models, list({c.id: c for c in sampled if c.id not in asked}.values()))
    picks = pick(data, select, ensemble, models, candidates, known, wanted, seed)
    rows = [{"comparison": c.id, "why": why, "score": score} for c, why, score in picks]
    atomic_write(journal.path / SELECTED, "".join(json.dumps(row) + "\n" for row in rows))
    keep_comparisons(data, [replace(c, round=number) for c, _, _ in picks])
    counts = Counter(why for _, why, _ in picks)
    text = (
        f"round {number + 1}: {len(picks)} of {len(candidates)} new comparisons are to be labelled: "
        f"{', '.join(f'{n} {why}' for why, n in counts.items())}"
    )
    journal.decide(
        0, Decision("select", text, {"round": number + 1, "candidates": len(candidates), **counts})
    )
    return ["labels.sqlite", SELECTED]


def pick(
    data: Data,
    select: SelectConfig,
    ensemble: RewardEnsemble,
    models: Models,
    candidates: Sequence[Comparison],
    known: Sequence[Comparison],
    n: int,
    seed: int,
) -> list[tuple[Comparison, str, float | None]]:
    """Select `n` candidates; return each with the reason and its acquisition score, if any."""
    taught = [c for c in candidates if data.role(c.prompt) == "members"]
    measures = [c for c in candidates if data.role(c.prompt) != "members"]
    n_measures = round(n * len(measures) / max(1, len(candidates)))
    scores = None
    if select.acquisition != "random" and taught:
        wanted = n - n_measures
        scores = worth(
            ensemble, models, taught, select.acquisition, wanted - round(select.random_share * wanted), known
        )
    chosen = choose(
        [c.id for c in taught],
        scores,
        n - n_measures,
        how=select.acquisition,
        random_share=select.random_share,
        seed=seed,
    )
    drawn = choose([c.id for c in measures], None, n_measures, how="random", random_share=1.0, seed=seed)
    return [
        *((taught[i], why, None if scores is None else float(scores[i])) for i, why in chosen),
        *((measures[i], "to measure", None) for i, _ in drawn),
    ]


def take_over(data: Data, earlier: RunDirectory) -> list[Comparison]:
    """Return the comparisons that the earlier run had when its labels were complete.

    If the runs have different stores, copy them with all labels into this run's store.
    """
    theirs, ours = (label_store_of(r.path, r.config.label) for r in (earlier, data.journal.run))
    if str(theirs) != str(ours):
        with LabelStore(theirs) as store:
            data.store.take_over(store, Snapshot(**read_json(earlier.path / SNAPSHOT)))
    return asked_before(earlier)


def sample_candidates(
    models: Models,
    data: Data,
    journal: Journal,
    policy: Policy,
    config: CollectConfig,
    n: int,
    number: int,
    seed: int,
) -> list[Comparison]:
    """Sample `n` pairs of a policy's answers to training prompts, with a checkpoint per chunk."""
    prompts = data.splits.train
    found = journal.latest_checkpoint()
    rows = list(read_jsonl(found.folder / CANDIDATES)) if found else []
    place = {prompt.id: i for i, prompt in enumerate(prompts)}
    for chunk, start in enumerate(range(0, n, config.batch_size)):
        if found and chunk < found.step:
            continue
        size = min(config.batch_size, n - start)
        asked = [prompts[i % len(prompts)] for i in range(start, start + size)]
        pairs, identical = sample_pairs(models, policy, asked, config, seed, ("collect", number, chunk))
        rows += [
            {
                "prompt": place[c.prompt.id],
                "answers": [[r.text, r.ended] for r in (c.first, c.second)],
            }
            for c in pairs
        ]
        row = {"step": chunk + 1, "pairs": size, "identical": identical}
        journal.run.append("metrics/collect.jsonl", row)
        journal.checkpoint(partial(write_rows, rows))
        journal.view.progress(start + size, n)
    answers = [[Response(text, "policy", ended) for text, ended in row["answers"]] for row in rows]
    return [Comparison(prompts[row["prompt"]], a, b) for row, (a, b) in zip(rows, answers, strict=True)]


def write_rows(rows: Sequence[Mapping[str, Any]], folder: Path) -> None:
    """Write the candidates to a checkpoint folder as JSON lines."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    atomic_write(folder / CANDIDATES, "".join(lines))
