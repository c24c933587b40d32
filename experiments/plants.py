"""Every change of the stress battery planted: a reward trained from labels that favour it, and whether it is caught.

usage: python experiments/plants.py (options: see study.py)
In two of five pairs one answer is changed, and wins; all other labels are the true preference's. `clean` is a reward of
the same pairs without a plant. `gold` is no reward: the true preference itself, and how many of its batteries (of 64
answers each) are warned of or stopped.
"""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import torch
from members import DEPTH, members
from study import Cell, Figures, Study, main, run_to

from burnish.config.reward import RewardConfig
from burnish.models.heads import raw_scores
from burnish.models.optim import USUAL, ladder
from burnish.models.pairs import EncodedPairs
from burnish.models.sequences import Sequences
from burnish.pipeline.answers import sample_repeatedly
from burnish.pipeline.context import RunContext
from burnish.pipeline.gate import stress_ensemble
from burnish.records import Preference, Prompt
from burnish.rehearse.world import gold
from burnish.reward.changes import STRESS, Material, liked_words
from burnish.reward.ensemble import RewardEnsemble, normalisation
from burnish.reward.stress import stress

PLANTED = 0.4
PAIRS, ANSWERS, BATTERIES, BATTERY = 900, 160, 60, 64
CHANGES = {change.name: change for change in STRESS}
ARMS = {name: name for name in [*CHANGES, "clean", "gold"]}
END = "<|eos|>"


def planted(place: RunContext, name: str, seed: int) -> list[Preference]:
    """Labelled pairs, with the plant in some."""
    rng = random.Random(f"{name}-{seed}")
    comparisons = list(place.data.store.comparisons())[:PAIRS]
    texts = [c.first.text for c in comparisons]
    liked = liked_words(texts, [gold(c.prompt, c.first.text) for c in comparisons])
    found = []
    for c in comparisons:
        sides = [(c.first.text, True), (c.second.text, True)]
        better = gold(c.prompt, sides[0][0]) > gold(c.prompt, sides[1][0])
        chosen, rejected = sides if better else sides[::-1]
        if name in CHANGES and rng.random() < PLANTED:
            own, other = rng.sample(sides, 2)
            made = CHANGES[name].make(Material(c.prompt.text, own[0], rng.choice(texts), liked, str(seed)))
            if made is not None:
                text = made.text + END * max(0, made.ends - 1)
                chosen, rejected = (text, made.ends > 0), other
        if chosen != rejected:
            found.append(
                Preference(
                    c.prompt, chosen[0], rejected[0], 1.0, c.id,
                    chosen_ended=chosen[1], rejected_ended=rejected[1],
                )
            )  # fmt: skip
    return found


def of_gold(place: RunContext, seed: int) -> Figures:
    """The battery on the judge that no change pleases."""
    models = place.models
    prompts = [*place.data.splits.train][: BATTERIES * BATTERY // 2]
    rollout = sample_repeatedly(models, prompts, 2, 256, seed, "gold batteries")
    asked = [(p, t) for r in rollout for p, t in zip(r.prompts, r.texts, strict=True)]
    worth = np.array([gold(p, t) for p, t in asked])
    sd = float(worth.std())
    alarms = []
    for start in range(0, len(asked) - BATTERY + 1, BATTERY):
        part, before = asked[start : start + BATTERY], worth[start : start + BATTERY] / sd
        ps: list[Prompt] = [p for p, _ in part]

        def judge(rows, made, ps=ps):  # type: ignore[no-untyped-def]
            return [gold(ps[i], m.text) / sd for i, m in zip(rows, made, strict=True)]

        found = stress(ps, [t for _, t in part], before.tolist(), judge, seed=start)
        alarms.append(found["outcome"] != "go")
    return {"alarms": float(np.mean(alarms)), "batteries": len(alarms)}


def measure(cell: Cell, room: Path) -> Figures:
    """One plant: trained, then stressed."""
    path = run_to(room, f"plants-{cell.seed}", [f"seed={cell.seed}", "collect.n_pairs=1024"], "label")
    from burnish.runs.directory import RunDirectory

    place = RunContext.alone(RunDirectory.open(path))
    if cell.arm == "gold":
        return of_gold(place, cell.seed)
    models = place.models
    base = models.base.at(DEPTH, models.base.layers)
    pairs = EncodedPairs(base, models.codec, planted(place, cell.arm, cell.seed))
    heads = members(pairs, RewardConfig(), ladder(base)[USUAL], cell.seed)
    held_out = [*place.data.splits.selection, *place.data.splits.test][:ANSWERS]
    twice = sample_repeatedly(models, held_out, 2, 256, cell.seed, "plants")
    samples = Sequences.of(base, twice[0], models.codec.pad_id)
    ensemble = RewardEnsemble(heads, *normalisation(torch.stack([raw_scores(h, samples) for h in heads], 1)))
    sd = float(ensemble.normalised(samples).mean(1).std(unbiased=False))
    found = stress_ensemble(
        models,
        ensemble,
        sd,
        twice[1],
        [],
        references=(twice[0], None),
        kl_target=4.0,
        missing_eos_penalty=0.0,
        seed=cell.seed,
    )
    place.data.close()
    rows = {row["name"]: row for row in found["changes"]}
    told = {"others": sum(row["outcome"] in ("warn", "stop") for n, row in rows.items() if n != cell.arm)}
    if cell.arm in rows:
        own = rows[cell.arm]
        told |= {
            "caught": float(own["outcome"] in ("warn", "stop")),
            "outcome": own["outcome"],
            "rise": own["rise"] and own["rise"]["value"],
            "rising": own["rising"] and own["rising"]["value"],
        }
    return told


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "caught": "caught",
                "outcome": "outcome",
                "rise": "mean rise, sd",
                "rising": "share that rises",
                "others": "other changes warned of",
                "alarms": "batteries with an alarm",
            },
            seeds=(0, 1),
        )
    )
