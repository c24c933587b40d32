"""The collect stage: pairs of responses sampled from the policy, to be labelled."""

from __future__ import annotations

from collections.abc import Sequence

from burnish.config.collect import CollectConfig
from burnish.models.logprobs import Policy
from burnish.models.sampling import sample_rollout
from burnish.pipeline.data import Data
from burnish.pipeline.journal import Journal
from burnish.pipeline.models import Models
from burnish.records import Comparison, Prompt, Response


def collect(models: Models, data: Data, journal: Journal, config: CollectConfig, seed: int) -> list[str]:
    """Sample pairs into the label store, a checkpoint after every chunk. Imported labels bring their own."""
    if data.label.source == "imported" or not config.n_pairs:
        return []
    prompts = data.splits.train
    policy = models.reference(config.temperature)
    found = journal.latest_checkpoint()
    for number, start in enumerate(range(0, config.n_pairs, config.batch_size)):
        if found and number < found.step:
            continue
        size = min(config.batch_size, config.n_pairs - start)
        chunk = [prompts[i % len(prompts)] for i in range(start, start + size)]
        comparisons, identical = sample_pairs(models, policy, chunk, config, seed, number)
        data.store.add_comparisons(comparisons)
        # What the store had before is not told: after a kill it may hold this chunk already.
        row = {"step": number + 1, "pairs": size, "identical": identical}
        journal.run.append("metrics/collect.jsonl", row)
        journal.checkpoint()
        journal.view.progress(start + size, config.n_pairs)
    return ["labels.sqlite"]


def sample_pairs(
    models: Models, policy: Policy, prompts: Sequence[Prompt], config: CollectConfig, seed: int, chunk: int
) -> tuple[list[Comparison], int]:
    """One comparison a prompt; pairs that came out identical are counted, for they can teach nothing."""
    rollout = sample_rollout(
        policy,
        models.codec,
        [p for p in prompts for _ in range(2)],
        max_tokens=models.config.max_response_tokens,
        batch_size=2 * config.batch_size,
        seed=seed,
        where=("collect", chunk),
    )
    answers = [Response(t, "policy", e) for t, e in zip(rollout.texts, rollout.ended, strict=True)]
    pairs = [Comparison(p, a, b) for p, a, b in zip(prompts, answers[::2], answers[1::2], strict=True)]
    different = [c for c in pairs if c.first.text != c.second.text]
    return different, len(pairs) - len(different)
