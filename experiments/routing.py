"""A judge where it is sure and people elsewhere, against people alone: reward accuracy and people's minutes.

usage: python experiments/routing.py --seeds 0 1 2 3 4 (options: see study.py)
A pool of pairs of the embedded model's answers. People are simulated annotators as a rehearsal has them; the judge's
log-odds are the difference in true worth, by a sharpness of its own, with noise and a lean to length. 300 comparisons
drawn at random have both labels; the rest goes as `burnish label route` says (5 % of what the judge keeps are checked
by people). Three members are trained on what comes of it; accuracy is by the true preference, on pairs of other
prompts. `fewer people` has as many people's labels as `agreement .8` needs, and no judge.
"""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
from members import DEPTH, margins, members
from study import Cell, Figures, Study, main, run_to

from burnish.commands.label_route import route
from burnish.data.store import LabelStore
from burnish.labels.consensus import consensus_of
from burnish.models.optim import USUAL, ladder
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import RunContext
from burnish.pipeline.select import as_pair
from burnish.records import Comparison, Label, Preference
from burnish.rehearse.annotators import SimulatedAnnotators
from burnish.rehearse.world import gold
from burnish.runs.directory import RunDirectory
from burnish.textstats import n_words

POOL, HELD_OUT, CALIBRATION = 1500, 1024, 300
SECONDS = 30.0  # of a person, for one comparison
SHARPNESS, NOISE, LENGTH = 3.0, 1.5, 0.03  # of the judge's log-odds: a unit of worth, sd, a word
ARMS: dict[str, Any] = {
    "people alone": {"target": None},
    "judge alone": {"target": 0.0},
    "agreement .75": {"target": 0.75},
    "agreement .8": {"target": 0.8},
    "agreement .85": {"target": 0.85},
    "fewer people": {"target": 0.8, "without judge": True},
}


def worth(c: Comparison) -> float:
    return gold(c.prompt, c.first.text) - gold(c.prompt, c.second.text)


def judged(c: Comparison, seed: int) -> Label:
    rng = random.Random(f"judge-{seed}-{c.id}")
    odds = (
        SHARPNESS * worth(c)
        + NOISE * rng.gauss(0, 1)
        + LENGTH * (n_words(c.first.text) - n_words(c.second.text))
    )
    return Label(c.id, "judge:simulated", 1 / (1 + math.exp(-odds)), "judge", cost=0.002)


def labelled(
    pool: list[Comparison], people: dict[str, Label], seed: int, settings: Any, room: Path
) -> tuple[dict[str, float], int]:
    """By comparison how far its first side is preferred, and how many labels people gave."""
    target = settings["target"]
    if target is None:
        return {c.id: people[c.id].preference for c in pool}, len(pool)
    if target == 0.0:
        return {c.id: judged(c, seed).preference for c in pool}, 0
    path, out = room / f"route-{seed}-{target}.sqlite", room / f"route-{seed}-{target}.jsonl"
    path.unlink(missing_ok=True)
    with LabelStore(path) as store:
        store.add_comparisons(pool)
        store.add_labels(judged(c, seed) for c in pool)
        store.add_labels(people[c.id] for c in pool[:CALIBRATION])
    given = {
        "judge": None,
        "check": 0.05,
        "price_judge": None,
        "price_person": 0.5,
        "people_each": 1,
        "out": out,
        "seed": seed,
    }
    route(path, target=target, **given)
    sent = [line.split('"comparison": "')[1][:16] for line in out.read_text().splitlines()]
    asked = [c.id for c in pool[:CALIBRATION]] + sent
    if settings.get("without judge"):
        return {i: people[i].preference for i in [c.id for c in pool][: len(asked)]}, len(asked)
    with LabelStore(path) as store:
        store.add_labels(people[i] for i in sent)
        # Whom people have answered goes by people.
        theirs = [
            label for label in store.labels() if label.source == "judge" and label.comparison_id not in asked
        ]
        ours = [label for label in store.labels() if label.source != "judge"]
        return dict(consensus_of([*theirs, *ours], "mean")), len(asked)


def measure(cell: Cell, room: Path) -> Figures:
    sets = [f"seed={cell.seed}", f"collect.n_pairs={POOL + HELD_OUT}", "data.n_prompts=4000"]
    place = RunContext.alone(RunDirectory.open(run_to(room, f"routing-{cell.seed}", sets, "collect")))
    config, seed = place.config, cell.seed
    everything = list(place.data.store.comparisons())
    place.data.close()
    groups = sorted({c.prompt.group for c in everything})
    held = set(random.Random(seed).sample(groups, len(groups) * 2 // 5))
    pool = [c for c in everything if c.prompt.group not in held][:POOL]
    unseen = [c for c in everything if c.prompt.group in held and worth(c)][:HELD_OUT]
    crowd = SimulatedAnnotators(gold, config.label.simulated, seed)
    people = {c.id: crowd.label(c, int(c.id, 16) % 8) for c in pool}
    said, asked = labelled(pool, people, seed, cell.settings, room)
    pairs = [chosen(c, said[c.id]) for c in pool if said.get(c.id, 0.5) != 0.5]
    right = [(said[c.id] > 0.5) == (worth(c) > 0) for c in pool if said.get(c.id, 0.5) != 0.5 and worth(c)]
    base = place.models.base.at(DEPTH, place.models.base.layers)
    rate = ladder(base)[USUAL]
    codec = place.models.codec
    heads = members(EncodedPairs(base, codec, pairs), config.reward, rate, seed)
    told = margins(heads, EncodedPairs(base, codec, [as_pair(c) for c in unseen]))
    ensemble = np.sign((told / told.std(0)).mean(1))
    return {
        "accuracy": float((ensemble == np.sign([worth(c) for c in unseen])).mean()),
        "labels right": float(np.mean(right)),
        "pairs": len(pairs),
        "people": asked,
        "minutes": asked * SECONDS / 60,
    }


def chosen(c: Comparison, p: float) -> Preference:
    pair = as_pair(c if p > 0.5 else Comparison(c.prompt, c.second, c.first))
    return pair


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "accuracy": "reward accuracy",
                "labels right": "labels right",
                "pairs": "pairs",
                "people": "people's labels",
                "minutes": "their minutes",
            },
            seeds=(0, 1, 2, 3, 4),
            against="people alone",
            compared=("accuracy", "minutes"),
        )
    )
