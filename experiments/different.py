"""Are three reward models that read at different places worth more than three at one place, or one of the same cost?

usage: python experiments/different.py (options: see study.py; needs .cache/smollm2 and real data, and says so)
SmolLM2-135M-Instruct on rankings of its own answers by an AI judge. A seed is one of five folds by prompt: four teach,
one is held out. Linear probes on the pairs choose the places once for all folds. `one, three times the steps` costs
what three members cost.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from feedback import EXAMPLE, LAYERS, RATE, USUAL
from members import margins, members
from study import Cell, Figures, Study, main, run_to

from burnish.config.reward import RewardConfig
from burnish.models.heads import Reading
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import RunContext
from burnish.pipeline.run import set_determinism
from burnish.randomness import derive_seed
from burnish.reward.probe import choose_different, probe, probed_depths
from burnish.reward.scrutiny import diversity
from burnish.runs.directory import RunDirectory

FOLDS = 5
PAIRS = 1500  # of 5,797, so that a fold takes minutes on two cores
ARMS = {
    "three at one place": {"members": 3},
    "three at different places": {"members": 3, "readings": "different"},
    "one": {"members": 1},
    "one, three times the steps": {"members": 1, "epochs": 3 * USUAL["epochs"]},
}


@lru_cache(maxsize=1)
def everything(room: Path) -> tuple[list[Reading], dict[Reading, EncodedPairs], dict[str, int]]:
    """The places of three members, all pairs encoded at each, and the fold of each prompt."""
    run = RunDirectory.open(run_to(room, "different", [f"label.max_pairs={PAIRS}"], "label", config=EXAMPLE))
    set_determinism(run.config)
    place = RunContext.alone(run)
    pairs = place.data.imported.pairs
    place.data.close()
    base = place.models.base
    encoded = EncodedPairs(base, place.models.codec, pairs)
    seed = derive_seed(run.config.seed, "probe")
    found = probe(base, encoded, probed_depths(base, LAYERS), ["mean", "last"], seed)
    readings = [p.reading for p in choose_different(found, 3)]
    at = {r: EncodedPairs(base.at(r.depth, LAYERS), place.models.codec, pairs) for r in readings}
    prompts = sorted({p.prompt.group for p in pairs})
    random.Random(0).shuffle(prompts)
    return readings, at, {prompt: i % FOLDS for i, prompt in enumerate(prompts)}


def measure(cell: Cell, room: Path) -> Figures:
    """Accuracy on the held-out fold, and how much the members' errors correlate."""
    readings, at, folds = everything(room)
    settings: dict[str, Any] = {**USUAL, **cell.settings}
    different = settings.get("readings") == "different"
    groups = [readings[:1]] if not different else [[reading] for reading in readings]
    said = []
    for number, (reading,) in enumerate(groups):
        pairs = at[reading]
        known, unseen = (
            pairs.only([i for i, group in enumerate(pairs.groups) if (folds[group] == cell.seed) == apart])
            for apart in (False, True)
        )
        config = RewardConfig(**settings).model_copy(update={"members": 1} if different else {})
        heads = members(known, config, RATE, cell.seed + FOLDS * number, reading.pooling)
        said.append(margins(heads, unseen))
    margin = np.concatenate(said, 1)
    sd = margin.std(0)
    apart = diversity(margin, sd)
    return {
        "accuracy": float(((margin / sd).mean(1) > 0).mean()),
        "single": float((margin > 0).mean()),
        "error_correlation": None if apart is None else apart["error_correlation"],
        "places": "; ".join(f"{r.pooling} at {r.depth}" for r in (readings if different else readings[:1])),
    }


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "accuracy": "accuracy",
                "single": "one member's",
                "error_correlation": "errors correlate",
                "places": "read at",
            },
            seeds=range(FOLDS),
            against="three at one place",
            compared=("accuracy", "error_correlation"),
        )
    )
