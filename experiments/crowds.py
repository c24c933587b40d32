"""Labels of a crowd: planted spammers and biased annotators found, nobody else accused, and what weighing everybody is
worth against the mean. A crowd of 12 answers 1,200 comparisons, three each; no model is trained.

usage: python experiments/crowds.py --seeds 0 1 2 3 4 (options: see study.py)
A cell is ten crowds. `right` is how often the consensus has the better side, ties half.
"""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from study import Cell, Study, main

from burnish.commands.label_agree import agreement
from burnish.data.store import LabelStore
from burnish.labels.consensus import consensus_of
from burnish.records import Comparison, Label, Prompt, Response

CROWDS, COMPARISONS, SIZE, EACH = 10, 1200, 12, 3
ARMS: dict[str, dict[str, Any]] = {
    "alike, .75": {"accuracy": [0.75, 0.75]},
    "alike, .65": {"accuracy": [0.65, 0.65]},
    "from .55 to .95": {"accuracy": [0.55, 0.95]},
    "two spammers": {"accuracy": [0.75, 0.75], "odd": {"spam": 2}},
    "two who always take a side": {"accuracy": [0.75, 0.75], "odd": {"side": 2}},
    "two who lean to length": {"accuracy": [0.75, 0.75], "odd": {"length": 2}},
    "two who tire": {"accuracy": [0.75, 0.75], "odd": {"tires": 2}},
    "four spammers": {"accuracy": [0.75, 0.75], "odd": {"spam": 4}},
}
NAMED = {"spam": "spammer", "side": "spammer", "length": "length", "tires": "drift"}


def crowd(settings: Any, seed: int) -> tuple[list[Comparison], list[Label], list[bool], dict[str, str]]:
    """Comparisons, labels, whether the first side is better, and who is odd in which way."""
    rng = random.Random(f"crowd-{seed}")
    low, high = settings["accuracy"]
    skill = {f"a{k}": low + (high - low) * k / (SIZE - 1) for k in range(SIZE)}
    kinds = [kind for kind, n in settings.get("odd", {}).items() for _ in range(n)]
    odd = dict(zip(rng.sample(sorted(skill), len(kinds)), kinds, strict=True))
    asked, labels, truth = [], [], []
    for q in range(COMPARISONS):
        first_longer, first_better = rng.random() < 0.5, rng.random() < 0.5
        texts = [
            f"{side} {q}" + " and more" * (longer + 1)
            for side, longer in (("one", first_longer), ("two", not first_longer))
        ]
        c = Comparison(Prompt(f"question {seed} {q}"), *map(Response, texts))
        asked.append(c)
        truth.append(first_better)
        for who in rng.sample(sorted(skill), EACH):
            swapped = rng.random() < 0.5
            says = first_better == (rng.random() < skill[who])
            kind = odd.get(who)
            if kind == "spam" or (kind == "tires" and q > COMPARISONS / 2):
                says = rng.random() < 0.5
            elif kind == "side":
                says = not swapped
            elif kind == "length" and rng.random() < 0.4:
                says = first_longer
            labels.append(Label(c.id, who, float(says), "human", swapped=swapped))
    return asked, labels, truth, odd


def measure(cell: Cell, room: Path) -> dict[str, Any]:
    found = planted = accused = fine = 0
    right = {"mean": 0.0, "dawid_skene": 0.0}
    for number in range(CROWDS):
        asked, labels, truth, odd = crowd(cell.settings, 1000 * cell.seed + number)
        with TemporaryDirectory() as folder:
            path = Path(folder) / "l.sqlite"
            with LabelStore(path) as store:
                store.add_comparisons(asked)
                store.add_labels(labels)
            rows = agreement(path)["annotators"]
        for row in rows:
            kind = odd.get(row["annotator"])
            if kind is None:
                fine += 1
                accused += bool(row["flags"])
            else:
                planted += 1
                found += NAMED[kind] in row["flags"]
        for how in right:
            said = consensus_of(labels, how)  # type: ignore[arg-type]
            hits = [
                0.5 if said[c.id] == 0.5 else (said[c.id] > 0.5) == t
                for c, t in zip(asked, truth, strict=True)
            ]
            right[how] += sum(hits) / len(hits) / CROWDS
    return {
        "found": found / planted if planted else None,
        "accused": accused / fine,
        "mean": right["mean"],
        "weighed": right["dawid_skene"],
        "gain": right["dawid_skene"] - right["mean"],
    }


if __name__ == "__main__":
    main(
        Study(
            file=__file__,
            about=__doc__ or "",
            arms=ARMS,
            measure=measure,
            columns={
                "found": "planted found",
                "accused": "others flagged",
                "mean": "mean right",
                "weighed": "weighed right",
                "gain": "gain of weighing",
            },
            seeds=(0, 1, 2, 3, 4),
        )
    )
