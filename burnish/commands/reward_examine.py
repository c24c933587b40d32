"""`burnish reward examine` and `stress`: tests of a run's reward ensemble, before or after PPO."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from burnish.commands.reward_score import open_ensemble
from burnish.data.store import LabelStore
from burnish.models.artefacts import is_saved
from burnish.models.generate import sample_rollout
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import reference_answers, sample_repeatedly
from burnish.pipeline.context import Data, RunContext
from burnish.pipeline.gate import stress_ensemble
from burnish.pipeline.guarded import OWN_PAIRS
from burnish.pipeline.select import as_pair
from burnish.randomness import derive_seed
from burnish.records import Comparison, Label, Message, Preference, Prompt, Response
from burnish.report.examined import render_examined
from burnish.reward import scrutiny
from burnish.reward.changes import PARAPHRASES
from burnish.reward.ensemble import RewardEnsemble, load_reference, load_watcher
from burnish.reward.examine import trivial_rules
from burnish.reward.slices import sections, slices
from burnish.runs.files import write_json
from burnish.stats import Array

STRESSED = "stressed.json"
OWN_STORE = "own_pairs.sqlite"
REWORDED = 150  # changes of wording of each kind that are tried


@dataclass
class Scored:
    """Pairs and the ensemble's scores of their answers, by row of `encoded`.

    `raw` (M, K): raw scores by member. `scores` (M,): scores as PPO gets them, except for a reference
    answer.
    """

    encoded: EncodedPairs
    raw: Array
    scores: Array

    @property
    def gaps(self) -> Array:
        """(N, K) raw score of the preferred answer minus that of the other."""
        return self.raw[self.encoded.chosen] - self.raw[self.encoded.rejected]

    @property
    def margin(self) -> Array:
        """(N,) score of the preferred answer minus that of the other, in reference standard deviations."""
        return self.scores[self.encoded.chosen] - self.scores[self.encoded.rejected]


def examine_run(
    path: Path,
    *,
    on: str | None = None,
    split: str = "train",
    own_pairs: int = 256,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Examine a run's ensemble on its validation pairs, or on those of a file or `datasets` name.

    Writes examined.json (examined_on.json) and its page, and returns the content. Pairs of the policy's
    own answers go to own_pairs.sqlite; labels in that store are used the next time.
    """
    place, ensemble = open_ensemble(path)
    seed, confidence = place.config.seed, place.config.evaluate.confidence
    data = place.data
    labels: list[Label] = []
    subsets: list[str] = []
    if on is None:
        pairs = data.parts["validation"]
        ids = {p.comparison_id for p in pairs}
        labels = [x for x in data.store.labels(at=data.snapshot) if x.comparison_id in ids]
    else:
        read = data.read(on, split)
        pairs, subsets = read.pairs, read.subsets
    on_progress(f"examining {len(ensemble.members)} members on {len(pairs)} pairs")
    scored = score_pairs(ensemble, place, pairs)
    groups = [p.prompt.group for p in pairs]
    gaps, margin, sd = scored.gaps, scored.margin, np.asarray(ensemble.sd.double().cpu())
    first = {c.id: c.first.text for c in data.store.comparisons()} if labels else {}
    rules = trivial_rules(pairs, first)
    whole = scrutiny.accuracy(margin > 0, groups, confidence)
    lengths = scored.encoded.sequences.response_lengths
    rows = np.stack([scored.encoded.chosen, scored.encoded.rejected], 1)
    calibrated = scrutiny.reliability(gaps, margin, groups)
    on_progress("rewording answers")
    reworded = scrutiny.paraphrased(
        margin, reword(ensemble, place, scored, derive_seed(seed, "reword")), groups, confidence
    )
    own = None
    if on is None:
        on_progress("asking about the policy's own answers")
        own = own_answers(place, ensemble, pairs, margin, whole, own_pairs, confidence)
    parts = {
        "accuracy": scrutiny.beats_rules(whole, rules),
        "calibration": scrutiny.is_calibrated(calibrated),
        "wording": reworded,
        **({"own answers": own} if own else {}),
    }
    outcome, reasons = scrutiny.verdict(parts)
    parted = slices(pairs, labels, seed)
    if len(subsets) == len(pairs):
        parted["subset"] = subsets
    report = {
        "run": place.config.name,
        "on": on or "validation",
        "pairs": len(pairs),
        "outcome": outcome,
        "reasons": reasons,
        "accuracy": whole,
        "members": [scrutiny.accuracy(gaps[:, k] > 0, groups, confidence) for k in range(gaps.shape[1])],
        "baselines": rules,
        "slices": scrutiny.by_slice(margin, parted, groups, confidence),
        "sections": sections(subsets, (margin > 0).tolist()) if len(subsets) == len(pairs) else None,
        "calibration": calibrated,
        "length": scrutiny.length_link(scored.scores, lengths, rows, margin),
        "disagreement": scrutiny.disagreement(gaps, sd, margin, groups, seed, confidence),
        "diversity": scrutiny.diversity(gaps, sd),
        "wording": reworded,
        "own": own,
    }
    name = "examined" if on is None else "examined_on"
    write_json(path / f"{name}.json", report)
    render_examined(path, name)
    data.close()
    return report


def stress_run(
    path: Path,
    *,
    answers: int = 256,
    best_of: int = 256,
    prompts: int = 16,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Stress-test a run's ensemble with the battery and with best-of-n.

    The battery changes `answers` answers of SFT. Best-of-n chooses among `best_of` answers to each of
    some prompts. All prompts are held out. Writes stressed.json and the page, and returns the content.
    """
    place, ensemble = open_ensemble(path)
    models, config = place.models, place.config
    seed, size = derive_seed(config.seed, "stress"), config.evaluate.batch_size
    asked = [*place.data.splits.selection, *place.data.splits.test]
    on_progress(f"{min(answers, len(asked))} answers of SFT for the battery")
    once = sample_repeatedly(models, asked[:answers], 1, size, seed, "battery")[0]
    references = (
        reference_answers(models, ensemble, asked[:answers], size, seed, "battery"),
        reference_answers(models, ensemble, asked[-prompts:], size, seed, "best") if best_of > 1 else None,
    )
    on_progress(f"{best_of} answers to each of {min(prompts, len(asked))} prompts for best-of-n")
    samples = sample_repeatedly(models, asked[-prompts:], best_of, size, seed, "best") if best_of > 1 else []
    judge, worth = None, None
    gold = place.data.gold
    if gold is not None:
        judge, worth = (
            "the true preference",
            lambda r: [gold(p, t) for p, t in zip(r.prompts, r.texts, strict=True)],
        )
    elif (watcher := load_watcher(models.base, path / "reward")) is not None and watcher.armed:
        judge, worth = "the watcher", lambda r: watcher.scores(r, models.codec.pad_id).tolist()
    on_progress("stressing")
    report = stress_ensemble(
        models,
        ensemble,
        load_reference(ensemble, path / "reward")[1],
        once,
        samples,
        references=references,
        kl_target=config.ppo.kl.target,
        missing_eos_penalty=config.ppo.missing_eos_penalty,
        seed=seed,
        worth=worth,
    )
    report |= {"run": config.name, "worth": judge}
    write_json(path / STRESSED, report)
    render_examined(path)
    place.data.close()
    return report


def score_pairs(ensemble: RewardEnsemble, place: RunContext, pairs: Sequence[Preference]) -> Scored:
    """Score every answer of the pairs once."""
    encoded = EncodedPairs(ensemble.base, place.models.codec, pairs)
    raw = ensemble.raw(encoded.sequences)
    scores = ensemble.corrected(ensemble.mean_normalised(raw), encoded.sequences)
    return Scored(encoded, np.asarray(raw.double().cpu()), np.asarray(scores.double().cpu()))


def reword(
    ensemble: RewardEnsemble, place: RunContext, scored: Scored, seed: int
) -> list[tuple[int, str, float]]:
    """Return (pair, kind, margin afterwards) of changes that keep the meaning of one side of a pair."""
    codec, encoded = place.models.codec, scored.encoded
    limit = place.models.config.max_response_tokens
    tried: list[tuple[int, str, bool, list[int]]] = []
    for kind, change in PARAPHRASES.items():
        rng = random.Random(f"{seed}-{kind}")
        sides = [(i, better) for i in range(len(encoded)) for better in (True, False)]
        rng.shuffle(sides)
        taken = 0
        for i, better in sides:
            pair = encoded.pairs[i]
            text, ended = (pair.chosen, pair.chosen_ended) if better else (pair.rejected, pair.rejected_ended)
            new = change(text)
            if new == text:
                continue
            ids = codec.encode_response(new, end=ended, to=pair.prompt)
            row = (encoded.chosen if better else encoded.rejected)[i]
            if len(ids) > limit or ids == list(encoded.sequences.response_ids[row]):
                continue
            tried.append((i, kind, better, ids))
            taken += 1
            if taken == REWORDED:
                break
    if not tried:
        return []
    prompts = [encoded.sequences.prompt_ids[encoded.chosen[i]] for i, *_ in tried]
    sequences = Sequences(ensemble.base, prompts, [ids for *_, ids in tried], codec.pad_id)
    after = ensemble.corrected(ensemble.mean_normalised(ensemble.raw(sequences)), sequences).tolist()
    found = []
    for (i, kind, better, _), score in zip(tried, after, strict=True):
        row = (encoded.chosen if better else encoded.rejected)[i]
        shift = score - float(scored.scores[row])
        found.append((i, kind, float(scored.margin[i]) + (shift if better else -shift)))
    return found


def own_answers(
    place: RunContext,
    ensemble: RewardEnsemble,
    validation: Sequence[Preference],
    margin: Array,
    by_labels: Mapping[str, Any],
    n: int,
    confidence: float,
) -> dict[str, Any] | None:
    """Measure the ensemble on pairs that the policy wrote during PPO and after it.

    The judge is one that the ensemble was not trained on: the true preference of a rehearsal, or labels
    in own_pairs.sqlite. Returns None before PPO.
    """
    run = place.journal.run
    kept = {"while PPO ran": [_kept(row) for row in run.read_rows(OWN_PAIRS)]}
    if n and is_saved(run.path / "ppo"):
        kept["when PPO had finished"] = final_pairs(place, n)
    # Keep each comparison once; drop those with two equal answers.
    kept = {when: [c for c in rows if c.first.text != c.second.text] for when, rows in kept.items()}
    kept = {when: list({c.id: c for c in rows}.values()) for when, rows in kept.items() if rows}
    if not kept:
        return None
    known = judged_pairs(place.data, run.path, [c for rows in kept.values() for c in rows])
    right = {}
    for when, rows in kept.items():
        clear = [c for c in rows if known.get(c.id, 0.5) != 0.5]
        better = np.array([known[c.id] > 0.5 for c in clear], dtype=bool)
        scored = score_pairs(ensemble, place, [as_pair(c) for c in clear]).margin if clear else np.zeros(0)
        # A margin of 0 names no winner and counts as wrong.
        right[when] = (np.where(better, scored > 0, scored < 0), [c.prompt.group for c in clear])
    gold = place.data.gold
    standard: Mapping[str, Any] = by_labels
    if gold is not None:
        apart = np.array([gold(p.prompt, p.chosen) - gold(p.prompt, p.rejected) for p in validation])
        rows_there = np.flatnonzero(apart)
        if len(rows_there):
            hits = np.where(apart > 0, margin > 0, margin < 0)[rows_there]
            there = [validation[int(i)].prompt.group for i in rows_there]
            standard = scrutiny.accuracy(hits, there, confidence)
    judge = "the true preference" if gold is not None else f"labels in {OWN_STORE}"
    return scrutiny.on_own_answers(standard, right, confidence) | {"judge": judge}


def judged_pairs(data: Data, path: Path, pairs: Sequence[Comparison]) -> dict[str, float]:
    """Return a mapping from comparison id to the preference for the first answer.

    Without a true preference, the comparisons are added to own_pairs.sqlite, and its labels are used.
    The commands of `burnish label` accept this store like any other.
    """
    gold = data.gold
    if gold is not None:
        return {
            c.id: 0.5 + 0.5 * float(np.sign(gold(c.prompt, c.first.text) - gold(c.prompt, c.second.text)))
            for c in pairs
        }
    with LabelStore(path / OWN_STORE) as store:
        store.add_comparisons(pairs)
        same = {c.id: store.stored(c).first.text == c.first.text for c in pairs}
        given: dict[str, list[float]] = {}
        for label in store.labels():
            given.setdefault(label.comparison_id, []).append(label.preference)
    means = {i: float(np.mean(values)) for i, values in given.items() if i in same}
    return {i: mean if same[i] else 1 - mean for i, mean in means.items()}


def final_pairs(place: RunContext, n: int) -> list[Comparison]:
    """Sample two answers of PPO's final policy to each of `n` held-out prompts."""
    models = place.models
    asked = [*place.data.splits.selection, *place.data.splits.test][:n]
    rollout = sample_rollout(
        models.saved_policy(place.journal.path / "ppo"),
        models.codec,
        [prompt for prompt in asked for _ in range(2)],
        max_tokens=models.config.max_response_tokens,
        batch_size=place.config.evaluate.batch_size,
        seed=derive_seed(place.config.seed, "examine"),
        where=("own pairs",),
    )
    sides = [Response(t, "policy", e) for t, e in zip(rollout.texts, rollout.ended, strict=True)]
    return [Comparison(rollout.prompts[i], sides[i], sides[i + 1]) for i in range(0, len(rollout), 2)]


def _kept(row: Mapping[str, Any]) -> Comparison:
    prompt = Prompt(row["prompt"], tuple(Message(*m) for m in row["messages"]))
    first, second = (Response(row[s], "policy", row[f"{s}_ended"]) for s in ("first", "second"))
    return Comparison(prompt, first, second)
