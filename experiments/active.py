"""Labels chosen where reward models disagree against labels drawn at random: accuracy by number of labels.

usage: python experiments/active.py (options: see study.py)
A pool of pairs of the embedded model's answers is labelled by simulated annotators as asked. Every arm starts from the
same random labels; before each step three members are trained on what is labelled and choose what is labelled next,
30 % at random. Accuracy is by the true preference, on pairs of prompts that the pool does not have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import numpy as np
from members import DEPTH, margins, members
from study import Cell, Figures, Study, main, run_to

from burnish.labels.design import d_optimal
from burnish.labels.select import How, acquisition, choose
from burnish.models.heads import ScalarHead, read_features
from burnish.models.optim import USUAL, ladder
from burnish.models.pairs import EncodedPairs
from burnish.pipeline.context import RunContext
from burnish.records import Preference
from burnish.rehearse.world import gold
from burnish.runs.directory import RunDirectory

POOL, HELD_OUT = 1536, 1024
STEPS = (128, 256, 512, 1024)
RANDOM_SHARE = 0.3
ARMS = {how: how for how in get_args(How) if how != "reserved"}


def truth(pair: Preference) -> float:
    return gold(pair.prompt, pair.chosen) - gold(pair.prompt, pair.rejected)


def worth(
    heads: Sequence[ScalarHead], known: EncodedPairs, rest: list[int], labelled: list[int], how: How, n: int
) -> np.ndarray:
    """(N,) how much a label of each of the rest is worth, as `burnish label select` has it."""
    if how != "d_optimal":
        return acquisition(margins(heads, known.only(rest)), how)
    chosen, rejected = known.sides(read_features(heads[0], known.sequences))
    features = (chosen - rejected).float().numpy()
    p = 1 / (1 + np.exp(-margins(heads, known).clip(-50, 50))).mean(1)
    past = features[labelled] * np.sqrt(p * (1 - p))[labelled, None]
    wanted = n - round(RANDOM_SHARE * n)
    picked, gains = d_optimal(features[rest], (p * (1 - p))[rest], wanted, past=past)
    scores = np.zeros(len(rest))
    scores[picked] = gains
    return scores


def measure(cell: Cell, room: Path) -> Figures:
    """Accuracy by number of labels."""
    sets = [f"seed={cell.seed}", f"collect.n_pairs={POOL + HELD_OUT}", "data.n_prompts=4000"]
    place = RunContext.alone(RunDirectory.open(run_to(room, f"active-{cell.seed}", sets, "label")))
    config, how, seed = place.config.reward, cell.settings, cell.seed
    pairs = place.data.store.preferences()
    place.data.close()
    held = {p.prompt.group for p in pairs[::3]}
    pool = [p for p in pairs if p.prompt.group not in held][:POOL]
    base = place.models.base.at(DEPTH, place.models.base.layers)
    rate = ladder(base)[USUAL]
    known = EncodedPairs(base, place.models.codec, pool)
    told = [p for p in pairs if p.prompt.group in held and truth(p)][:HELD_OUT]
    unseen = EncodedPairs(base, place.models.codec, told)
    right = np.sign([truth(p) for p in told])
    ids = [p.comparison_id for p in pool]
    labelled = [i for i, _ in choose(ids, None, STEPS[0], how="random", random_share=1.0, seed=seed)]
    found = {}
    for number, wanted in enumerate(STEPS):
        heads = members(known.only(labelled), config, rate, seed)
        said = margins(heads, unseen)
        found[f"at {wanted}"] = float((np.sign((said / said.std(0)).mean(1)) == right).mean())
        if number + 1 == len(STEPS):
            break
        rest = sorted(set(range(len(pool))) - set(labelled))
        scores = (
            None if how == "random" else worth(heads, known, rest, labelled, how, STEPS[number + 1] - wanted)
        )
        picked = choose(
            [ids[i] for i in rest],
            scores,
            STEPS[number + 1] - wanted,
            how=how,
            random_share=RANDOM_SHARE,
            seed=seed + number,
        )
        labelled = [*labelled, *(rest[i] for i, _ in picked)]
    return found


if __name__ == "__main__":
    columns = {f"at {n}": f"{n} labels" for n in STEPS}
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns=columns,
            against="random",
            compared=tuple(columns)[-1:],
        )
    )
