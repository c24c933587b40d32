"""`burnish evaluate overoptimization`: how far a run's reward can be optimised usefully."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from burnish.commands.reward_score import open_ensemble
from burnish.errors import RunError
from burnish.evaluation.overoptimization import Array, of_pool, of_run
from burnish.models.artefacts import is_saved, load_reward_model
from burnish.models.heads import raw_scores
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import reference_answers, sample_repeatedly
from burnish.pipeline.context import RunContext
from burnish.pipeline.guarded import OWN_PAIRS
from burnish.randomness import derive_seed
from burnish.records import Prompt, Rollout
from burnish.report.overoptimized import render_overoptimized
from burnish.reward.ensemble import load_watcher, scores_of_samples
from burnish.runs.files import write_json

Judge = Callable[[Rollout], Sequence[float]]
REPORT = "overoptimization.json"


def overoptimization(
    path: Path,
    *,
    prompts: int = 32,
    answers: int = 256,
    on_progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure the worth of best of n and of PPO's updates against the root of KL.

    Best of n chooses among `answers` answers of SFT to each held-out prompt. Worth is judged by judges
    that were not optimised against (the true preference of a rehearsal, the examiner, the watcher),
    with fitted curves. Writes overoptimization.json and its page, and returns their content. Raises
    RunError without such a judge.
    """
    place, ensemble = open_ensemble(path)
    try:
        judges = judges_of(place, path)
        if not judges:
            raise RunError(
                f"{path} has no judge that is not optimised against: its rewards have neither watcher nor examiner "
                "(reward.watcher_share, evaluate.examiner: reward_model)"
            )
        seed = derive_seed(place.config.seed, "overoptimization") % 2**32
        asked = [*place.data.splits.test, *place.data.splits.selection][:prompts]
        on_progress(f"{answers} answers of SFT to each of {len(asked)} prompts")
        size, where = place.config.evaluate.batch_size, "overoptimization"
        samples = sample_repeatedly(place.models, asked, answers, size, seed, where)
        reference = reference_answers(place.models, ensemble, asked, size, seed, where)
        on_progress("scoring")
        scores = scores_of_samples(ensemble, samples, reference, place.models.codec.pad_id)
        proxy = scores.T.double().cpu().numpy()
        worth = {name: np.array([list(judge(r)) for r in samples]).T for name, judge in judges.items()}
        report = {
            "run": place.config.name,
            "answers": answers,
            "kl_target": place.config.ppo.kl.target,
            "judges": list(judges),
            "pool": of_pool(proxy, worth, seed, place.config.evaluate.confidence),
            "ppo": of_ppo(place, worth, proxy, seed),
        }
    finally:
        place.data.close()
    report["offered"] = offered(report)
    write_json(path / REPORT, report)
    render_overoptimized(path)
    return report


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


def of_ppo(place: RunContext, worth: dict[str, Array], proxy: Array, seed: int) -> dict[str, Any] | None:
    """Return KL and gains of PPO's updates in order, or None if PPO made no update.

    Updates that were rolled back are left out. Gains are the proxy's, the watcher's, and the true
    preference's on the kept pairs. They are measured from SFT, in standard deviations over the pool.
    """
    rows = kept_updates(place.journal.run.read_rows("metrics/ppo.jsonl"))
    if not rows:
        return None
    sd = float(proxy.std())
    found: dict[str, Any] = {
        "kl": [row["kl"] for row in rows],
        "proxy": [(row["score"] - rows[0]["score"]) / sd for row in rows],
        "judges": {},
        "fits": {},
    }
    seen: dict[str, tuple[list[float], list[float]]] = {}
    watched = [row for row in rows if "watcher" in row]
    if "watcher" in worth and watched:
        spread = float(worth["watcher"].std())
        gains = [(row["watcher"] - float(worth["watcher"].mean())) / spread for row in watched]
        seen["watcher"] = ([row["kl"] for row in watched], gains)
    if place.data.gold is not None:
        seen["true preference"] = gold_of_pairs(place, rows, worth["true preference"])
    for name, (kl, gains) in seen.items():
        found["judges"][name] = {"kl": kl, "gain": gains}
        found["fits"][name] = of_run(kl, gains, seed)
    return found


def gold_of_pairs(
    place: RunContext, rows: Sequence[dict[str, Any]], pool: Array
) -> tuple[list[float], list[float]]:
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
    return [kl for kl, _ in known], scaled


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


def offered(report: dict[str, Any]) -> dict[str, Any] | None:
    """Return the KL at which worth peaks, or None if no curve has bent within reach.

    PPO's own curves come before those of best of n, and more trusted judges before others.
    """
    for source, held in (("ppo", report["ppo"]), ("best of n", report["pool"])):
        for judge in report["judges"]:
            fit = (held or {"fits": {}})["fits"].get(judge)
            if fit is not None and fit["kl"] is not None and fit["kl_interval"] is not None:
                return {"kl": fit["kl"], "interval": fit["kl_interval"], "judge": judge, "from": source}
    return None
