"""What regularises a reward model of a real one: SmolLM2-135M-Instruct on rankings of its own answers by an AI judge.

usage: python experiments/feedback.py (options: see study.py; needs .cache/smollm2 and real data, and says so)
Three members read the mean over the response after 16 of 30 layers, as probes of examples/smollm2_ai_feedback.yaml say,
and train the two layers below; each arm one setting away from that file's. Two thirds of the prompts teach, the others
are held out; every seed splits anew.
"""

from __future__ import annotations

import random
from functools import lru_cache
from pathlib import Path

from regularisers import ARMS as REHEARSED, COLUMNS, figures
from study import HERE, Cell, Figures, Study, main, run_to

from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import RunContext
from burnish.pipeline.run import set_determinism
from burnish.runs.directory import RunDirectory

EXAMPLE = HERE.parent / "examples" / "smollm2_ai_feedback.yaml"
DEPTH, LAYERS, RATE = 16, "top:2", 4.6e-4
PAIRS = 2600  # of 5,797: what two cores do in an hour
USUAL = {"epochs": 2, "batch_size": 8, "micro_batch": 64}
SAME = (
    *(
        "defaults",
        "no dropout",
        "dropout 0.3",
        "weight decay 0.1",
        "no label smoothing",
        "label smoothing 0.2",
    ),
    *("margin 1", "no centring", "BSR 0.1", "one head to begin with"),
)
ARMS = {
    **{name: REHEARSED[name] for name in SAME},
    "one epoch": {"epochs": 1},
    "four epochs": {"epochs": 4},
    "four epochs, early stopping": {"epochs": 4, "early_stopping": 0.15},
    "odin": {"length": "odin"},
}


@lru_cache(maxsize=1)
def pairs_of(room: Path, seed: int) -> tuple[EncodedPairs, EncodedPairs]:
    """Pairs to learn from, and pairs of other prompts."""
    run = RunDirectory.open(run_to(room, "feedback", [f"label.max_pairs={PAIRS}"], "label", config=EXAMPLE))
    set_determinism(run.config)
    place = RunContext.alone(run)
    pairs = place.data.imported.pairs
    place.data.close()
    prompts = sorted({p.prompt.group for p in pairs})
    held = set(random.Random(seed).sample(prompts, len(prompts) // 3))
    base = place.models.base.at(DEPTH, LAYERS)
    known, unseen = (
        EncodedPairs(base, place.models.codec, [p for p in pairs if (p.prompt.group in held) == apart])
        for apart in (False, True)
    )
    return known, unseen


def measure(cell: Cell, room: Path) -> Figures:
    """Accuracy and calibration of one setting."""
    known, unseen = pairs_of(room, cell.seed)
    found = figures({**USUAL, **cell.settings}, known, unseen, RATE, cell.seed)
    del found["margin"]
    return found


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={name: told for name, told in COLUMNS.items() if name != "true"},
            seeds=(0, 1),
            against="defaults",
            compared=("accuracy",),
        )
    )
