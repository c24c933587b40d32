"""DPO from SFT: on the labelled pairs, on a policy's own best and worst answers, or on both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
from safetensors.torch import save_file

from burnish.config.dpo import DPOConfig
from burnish.data.preferences import read_preferences, write_preferences
from burnish.distributed import collectives
from burnish.errors import TrainingError
from burnish.labels.agreement import flip_rate
from burnish.labels.consensus import votes_of, weigh
from burnish.models.artefacts import is_saved, save_policy
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.answers import OwnAnswers
from burnish.pipeline.context import Data, Journal, Models, fits
from burnish.pipeline.learning_rates import found_rate
from burnish.policy.dpo import DPO
from burnish.randomness import derive_seed
from burnish.records import Decision, Preference
from burnish.reward.ensemble import load_watcher

ON_POLICY = "on_policy_pairs.jsonl"
START = "align/start.safetensors"  # trained weights of DPO, where PPO starts from them
HEALTHY = "last_healthy"  # PPO's policy at its last healthy checkpoint, saved if the optimiser failed
UNKNOWN, MOST = 0.1, 0.4  # label smoothing if it cannot be estimated, and its upper limit


def run_dpo(
    models: Models,
    data: Data,
    own: OwnAnswers,
    journal: Journal,
    config: DPOConfig,
    outcome: dict[str, Any] | None,
    seed: int,
) -> dict[str, Any]:
    """Run DPO from SFT on labelled pairs, a policy's own answers (ranked by the ensemble), or both.

    `dpo.pairs` selects the source; "auto" depends on why PPO failed. Labelled pairs are those of the
    members. Own pairs are kept in `on_policy_pairs.jsonl`. Without an `outcome`, DPO runs before PPO, and
    its trained weights are also kept in the file START.
    """
    ppo = None if outcome is None else outcome["ppo"]
    how = pairs_after(ppo, config)
    pairs = clearest(data.parts["members"], config.pairs_per_prompt) if how != "on_policy" else []
    if how != "labels":
        healthy = journal.path / HEALTHY
        pairs += on_policy_pairs(models, own, journal, config, healthy if is_saved(healthy) else None, how)
    smoothing, why = smoothing_of(data, pairs, config)
    dpo = new_dpo(models, pairs, config, smoothing, seed)
    found = journal.latest_checkpoint()
    if found and found.state.get("dpo_step"):
        dpo.load(found.folder, found.state["dpo_step"])
        dpo.learning_rate = found.state.get("dpo_rate", dpo.learning_rate)  # older ones had a configured rate
    else:
        journal.decide(0, Decision("label_smoothing", why, {"job": "dpo", "smoothing": smoothing}))
    dpo.reference_sums = dpo.cache_reference()
    if not dpo.step:
        settle_rate(dpo, journal)
    for stats in dpo.updates():
        journal.log("dpo", stats)
        journal.view.progress(dpo.step, dpo.steps)
        if dpo.step % config.checkpoint_every == 0 or dpo.step == dpo.steps:
            state = {
                "phase": "start" if outcome is None else "dpo",
                "outcome": outcome,
                "dpo_step": dpo.step,
                "dpo_rate": dpo.learning_rate,
            }
            collectives.check_replicas(dpo.parameters, "DPO")
            journal.checkpoint(dpo.save, state)
    save_policy(dpo.policy.top, journal.path / "dpo", models.codec.tokenizer)
    if outcome is None:
        collectives.by_lead(partial(save_file, dpo.policy.top.trained_state(), journal.path / START))()
    return {"updates": dpo.step, "pairs": len(dpo.pairs), "pairs_from": how, "smoothing": smoothing}


def new_dpo(
    models: Models, pairs: Sequence[Preference], config: DPOConfig, smoothing: float, seed: int
) -> DPO:
    """Build DPO from the reference policy on these pairs; a rate of `auto` is still to be settled."""
    dpo = DPO(
        policy=models.new_policy(),
        reference=models.reference(),
        pairs=EncodedPairs(models.base, models.codec, pairs),
        config=config,
        learning_rate=0.0 if config.learning_rate == "auto" else config.learning_rate,
        seed=derive_seed(seed, "dpo"),
        smoothing=smoothing,
    )
    dpo.policy.temperature = dpo.reference.temperature = 1.0
    return dpo


def settle_rate(dpo: DPO, journal: Journal) -> None:
    """Find the learning rate by short trials if it is `auto`."""
    if dpo.config.learning_rate == "auto":
        dpo.learning_rate = found_rate(
            journal,
            "dpo",
            dpo.policy.top.base,
            dpo.pairs.groups,
            batch_size=dpo.config.batch_size,
            steps=dpo.steps,
            trial=dpo.trial_loss,
            seed=dpo.seed,
        )


def clearest(pairs: Sequence[Preference], most: int | None) -> list[Preference]:
    """Return at most `most` pairs of each prompt, in their order; None: all.

    Those come first whose responses differ most in wins less losses over the prompt's pairs (Copeland's
    score): for a ranking, the best against the worst. Equal ones keep their order.
    """
    if most is None:
        return list(pairs)
    score: Counter[tuple[str, str]] = Counter()
    of_prompt = defaultdict[str, list[int]](list)
    for i, pair in enumerate(pairs):
        of_prompt[pair.prompt.id].append(i)
        score[pair.prompt.id, pair.chosen] += 1
        score[pair.prompt.id, pair.rejected] -= 1

    def gap(i: int) -> int:
        pair = pairs[i]
        return score[pair.prompt.id, pair.chosen] - score[pair.prompt.id, pair.rejected]

    kept = [i for rows in of_prompt.values() for i in sorted(rows, key=gap, reverse=True)[:most]]
    return [pairs[i] for i in sorted(kept)]


def pairs_after(ppo: dict[str, Any] | None, config: DPOConfig) -> Literal["labels", "on_policy", "both"]:
    """Return the source of DPO's pairs, given how PPO ended; None: it has not run."""
    if config.pairs != "auto":
        return config.pairs
    if ppo is None:
        return "labels"
    return "both" if ppo["state"] == "given_up" and ppo.get("cause") == "optimiser" else "labels"


def smoothing_of(data: Data, pairs: Sequence[Preference], config: DPOConfig) -> tuple[float, str]:
    """Return the label smoothing and a text that explains it.

    A pair with several labels is wrong with probability min(p, 1 - p), where p is the posterior of
    Dawid and Skene's model. A pair with one label is wrong as often as a label is.
    """
    if not config.smooths:
        return 0.0, f"dpo: {config.loss} takes no label smoothing"
    if config.label_smoothing != "auto":
        return config.label_smoothing, f"dpo: label smoothing {config.label_smoothing:g}, as configured"
    votes = votes_of(collectives.from_lead(lambda: list(data.store.labels(at=data.snapshot))))
    weighed = weigh(votes, "dawid_skene")
    rate = flip_rate(votes, weighed.consensus) if weighed.overlap else None
    counts = np.bincount(votes.comparison, minlength=len(votes.ids))
    several = {votes.ids[i]: float(weighed.consensus[i]) for i in np.flatnonzero(counts > 1).tolist()}
    labelled = [p.comparison_id for p in pairs if p.comparison_id]
    if not labelled:
        return UNKNOWN, f"dpo: no pair that is trained on has a label of its own: label smoothing {UNKNOWN:g}"
    if rate is None or not several.keys() & set(labelled):
        text = f"no comparison has two labels, so how many are wrong is unknown: label smoothing {UNKNOWN:g}"
        return UNKNOWN, f"dpo: {text}"
    wrong = fmean(min(several[i], 1 - several[i]) if i in several else rate for i in labelled)
    found = min(wrong, MOST)
    return found, (
        f"dpo: label smoothing {found:.3f}: {wrong:.1%} of the pairs are expected to name the worse answer "
        f"({rate:.1%} of the labels)"
    )


def on_policy_pairs(
    models: Models, own: OwnAnswers, journal: Journal, config: DPOConfig, saved: Path | None, how: str
) -> list[Preference]:
    """Return pairs of the best and worst of a policy's answers to each prompt, sampled once per run.

    The ensemble ranks them. Pairs of a `saved` policy, which it has trained, must agree with the
    watcher. Answers that do not fit when their text is encoded again are left out.
    """
    file = journal.path / ON_POLICY
    # Process 0 checks for all: nothing else synchronises the processes before the file is written.
    if not collectives.from_lead(file.exists):
        watch = load_watcher(models.base, journal.path / "reward") if saved is not None else None
        look = None if watch is None else partial(watch.scores, pad_id=models.codec.pad_id)
        pairs = own.scored(config.max_prompts, config.samples_per_prompt, saved).pairs(look)
        if not pairs and how == "on_policy":
            raise TrainingError(
                f"the policy's {config.samples_per_prompt} answers to each of {config.max_prompts} prompts are all "
                "the same: there is nothing to prefer; raise ppo.temperature or dpo.samples_per_prompt, or set "
                "dpo.pairs: labels"
            )
        collectives.by_lead(partial(write_preferences, pairs, file))()
    found = read_preferences(file).pairs if file.stat().st_size else []
    return [
        p
        for p in found
        if fits(
            models.codec, models.config, p.prompt, (p.chosen, p.chosen_ended), (p.rejected, p.rejected_ended)
        )
    ]
