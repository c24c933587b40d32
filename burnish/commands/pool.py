"""A pool of SFT's answers to held-out prompts, scored by a run's rewards and judges."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch

from burnish.commands.reward_score import open_ensemble
from burnish.errors import RunError
from burnish.evaluation.overoptimization import Array
from burnish.models.artefacts import is_saved, load_reward_model
from burnish.models.heads import raw_scores
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import reference_answers, repeated, sample_answers
from burnish.pipeline.context import RunContext
from burnish.pipeline.guarded import OWN_PAIRS
from burnish.randomness import derive_seed
from burnish.records import Prompt, Rollout
from burnish.reward.ensemble import RewardEnsemble, load_watcher, reference_scores

Judge = Callable[[Rollout], Sequence[float]]


@dataclass(frozen=True)
class Pool:
    """N answers of SFT to each of M held-out prompts.

    `proxy` (M, N) are the ensemble's scores and `worth` those of the judges that were not optimised
    against, the most trusted first. `reference` holds the answers that a relative ensemble compares
    with, as normalised scores (M, K).
    """

    place: RunContext
    ensemble: RewardEnsemble
    prompts: list[Prompt]
    judges: dict[str, Judge]
    proxy: Array
    worth: dict[str, Array]
    reference: torch.Tensor | None
    seed: int

    def by_ensemble(self, rollout: Rollout) -> Array:
        """Return the ensemble's scores (M, N) of N answers to every prompt, in the order of prompts."""
        pad_id = self.place.models.codec.pad_id
        return by_ensemble(self.ensemble, rollout, self.reference, pad_id, len(self.prompts))

    def by_judges(self, rollout: Rollout) -> dict[str, Array]:
        """Return each judge's scores (M, N) of such a rollout."""
        return by_judges(self.judges, rollout, len(self.prompts))

    @property
    def level(self) -> float:
        """The ensemble's mean score of SFT's answers to training prompts.

        A plain mean of members is normalised to 0 on them. For other scores the pool's own mean is used.
        """
        plain = not self.ensemble.relative and self.ensemble.length is None
        return 0.0 if plain else float(self.proxy.mean())


@contextmanager
def pool_of(
    path: Path,
    prompts: int,
    answers: int,
    on_progress: Callable[[str], None],
    *,
    needs_judge: bool = False,
) -> Iterator[Pool]:
    """Sample and score `answers` answers of SFT to each of at most `prompts` held-out prompts of a run.

    Two calls with the same arguments give the same pool. Closes the run's label store at the end. With
    `needs_judge`, raises RunError if the run has no judge that was not optimised against.
    """
    place, ensemble = open_ensemble(path)
    try:
        judges = judges_of(place, path)
        if needs_judge and not judges:
            raise RunError(
                f"{path} has no judge that is not optimised against: its rewards have neither watcher nor examiner "
                "(reward.watcher_share, evaluate.examiner: reward_model)"
            )
        seed = derive_seed(place.config.seed, "overoptimization") % 2**32
        asked = [*place.data.splits.test, *place.data.splits.selection][:prompts]
        on_progress(f"{answers} answers of SFT to each of {len(asked)} prompts")
        size, where = place.config.evaluate.batch_size, "overoptimization"
        rollout = sample_answers(place.models, repeated(asked, answers), size, seed, where)
        pad_id = place.models.codec.pad_id
        compared = reference_answers(place.models, ensemble, asked, size, seed, where)
        reference = reference_scores(ensemble, compared, pad_id)
        on_progress("scoring")
        yield Pool(
            place=place,
            ensemble=ensemble,
            prompts=asked,
            judges=judges,
            proxy=by_ensemble(ensemble, rollout, reference, pad_id, len(asked)),
            worth=by_judges(judges, rollout, len(asked)),
            reference=reference,
            seed=seed,
        )
    finally:
        place.data.close()


def by_ensemble(
    ensemble: RewardEnsemble, rollout: Rollout, reference: torch.Tensor | None, pad_id: int, prompts: int
) -> Array:
    """Return the scores (M, N) of N answers to each of M `prompts`; `reference` (M, K) as in `Pool`."""
    if reference is not None:
        reference = reference.repeat_interleave(len(rollout) // prompts, 0)
    scores = ensemble.score(Sequences.of(ensemble.base, rollout, pad_id), reference).scores
    found: Array = scores.double().cpu().numpy()
    return found.reshape(prompts, -1)


def by_judges(judges: Mapping[str, Judge], rollout: Rollout, prompts: int) -> dict[str, Array]:
    """Return each judge's scores (M, N) of N answers to each of `prompts` prompts."""
    return {name: np.array(list(judge(rollout))).reshape(prompts, -1) for name, judge in judges.items()}


def judges_of(place: RunContext, path: Path) -> dict[str, Judge]:
    """Return the judges that were not optimised against, the most trusted first."""
    found: dict[str, Judge] = {}
    gold, pad_id, base = place.data.gold, place.models.codec.pad_id, place.models.base
    if gold is not None:
        found["true preference"] = lambda r: [gold(p, t) for p, t in zip(r.prompts, r.texts, strict=True)]
    if is_saved(path / "reward" / "examiner"):
        model = load_reward_model(base, path / "reward" / "examiner")
        found["examiner"] = lambda r: raw_scores(model, Sequences.of(model.top.base, r, pad_id)).tolist()
    watcher = load_watcher(base, path / "reward")
    if watcher is not None:
        found["watcher"] = lambda r: watcher.scores(r, pad_id).tolist()
    return found


def gains_of_updates(pool: Pool) -> dict[str, Any] | None:
    """Return KL and gains of PPO's updates in order, or None if PPO made no update.

    Updates that were rolled back are left out. Gains are the proxy's, the watcher's, and the true
    preference's on the kept pairs. They are measured from SFT, in standard deviations over the pool.
    """
    place = pool.place
    rows = kept_updates(place.journal.run.read_rows("metrics/ppo.jsonl"))
    if not rows:
        return None
    sd = float(pool.proxy.std())
    found: dict[str, Any] = {
        "kl": [row["kl"] for row in rows],
        "proxy": [(row["score"] - pool.level) / sd for row in rows],
        "judges": {},
    }
    watched = [row for row in rows if "watcher" in row]
    if "watcher" in pool.worth and watched:
        worth = pool.worth["watcher"]
        gains = [(row["watcher"] - float(worth.mean())) / float(worth.std()) for row in watched]
        found["judges"]["watcher"] = {"kl": [row["kl"] for row in watched], "gain": gains}
    if place.data.gold is not None:
        found["judges"]["true preference"] = gold_of_pairs(place, rows, pool.worth["true preference"])
    return found


def gold_of_pairs(place: RunContext, rows: Sequence[dict[str, Any]], pool: Array) -> dict[str, list[float]]:
    """Return KL and the true preference's mean gain of the kept pairs, by update.

    The KL is that of the next update, which measured the policy that wrote the pairs.
    """
    gold = place.data.gold
    assert gold is not None
    by_tick: dict[int, list[float]] = {}
    for pair in place.journal.run.read_rows(OWN_PAIRS):
        own = [gold(Prompt(pair["prompt"]), pair[side]) for side in ("first", "second")]
        by_tick.setdefault(pair["tick"], []).extend(own)
    after = kl_after(rows, place.journal.run.read_rows("timing/ppo.jsonl"))
    known = [(after[tick], golds) for tick, golds in by_tick.items() if tick in after]
    scaled = [(mean(golds) - float(pool.mean())) / float(pool.std()) for _, golds in known]
    return {"kl": [kl for kl, _ in known], "gain": scaled}


def kept_updates(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the updates of the last policy; a roll-back drops those after its checkpoint."""
    kept: list[dict[str, Any]] = []
    for row in rows:
        while kept and kept[-1]["step"] >= row["step"]:
            kept.pop()
        kept.append(row)
    return kept


def kl_after(rows: Sequence[dict[str, Any]], timing: Sequence[dict[str, Any]]) -> dict[int, float]:
    """Return a mapping from tick to the KL of the policy after that update.

    The next update measured it. Only updates that were not rolled back have an entry. Ticks also count
    updates that diverged and therefore have no row.
    """
    kept = {(row["step"], row["attempt"]): i for i, row in enumerate(rows)}
    places = {row["tick"]: kept.get((row["step"], row["attempt"])) for row in timing}
    return {tick: rows[i + 1]["kl"] for tick, i in places.items() if i is not None and i + 1 < len(rows)}
