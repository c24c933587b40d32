"""What `burnish label audit` says of judges whose faults are known: false findings where there are none, and planted
ones found. A cell is ten audits, each of another judge, another set of 200 comparisons and people who answered all.

  python experiments/audits.py --seeds 0 1 2 3 4
"""

from __future__ import annotations

import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from planted import PlantedJudge, comparisons, worth
from study import Cell, Study, main

from burnish.commands.label_audit import audit_judge
from burnish.config.judge import JudgeConfig
from burnish.data.store import LabelStore
from burnish.records import Label

AUDITS, PAIRS = 10, 200
PEOPLE = 0.85  # of answers that go by worth
# What a judge that likes words is right to be found with: every change that adds some.
WORDY = (
    *("verbosity", "filler", "answer_repeated", "stock_phrases", "flattery", "empty_format"),
    "claim",
)
FAULTS = {
    "none": ({}, ()),
    "position 0.3": ({"position": 0.3}, ("position",)),
    "position 1": ({"position": 1.0}, ("position",)),
    "length 0.05 a word": (
        {"length": 0.05},
        ("verbosity", "filler", "answer_repeated", "stock_phrases", "flattery"),
    ),
    "own hand 0.5": ({"own": 0.5}, ("self-preference",)),
    "own hand 1.5": ({"own": 1.5}, ("self-preference",)),
    "claims 0.5": ({"claims": 0.5}, ("claim",)),
    "wording 2": ({"wording": 2.0}, ("wording",)),
    "unsteady 1": ({"unsteady": 1.0}, ("stability",)),
}


def measure(cell: Cell, room: Path) -> dict[str, Any]:
    faults, named = FAULTS[cell.arm]
    config = JudgeConfig(model="planted", concurrency=1)
    found = wrong = clean = probes = 0
    for number in range(AUDITS):
        seed = 1000 * cell.seed + number
        asked, rng = comparisons(PAIRS, seed), random.Random(seed)
        with TemporaryDirectory() as folder:
            file = Path(folder) / "labels.sqlite"
            with LabelStore(file) as store:
                store.add_comparisons(asked)
                store.add_labels(
                    Label(
                        c.id,
                        "person:a",
                        float((worth(c.first.text) > worth(c.second.text)) == right),
                        "human",
                    )
                    for c in asked
                    for right in [rng.random() < PEOPLE]
                )
            judge = PlantedJudge(worth, noise=0.5, unsteady=0.1, seed=seed)
            for name, value in faults.items():
                setattr(judge, name, value)
            told = audit_judge(
                file,
                config,
                Path(folder) / "a.jsonl",
                n=PAIRS,
                own="mine",
                open_=lambda _, j=judge: j,
                seed=seed,
            )
        found += bool(set(named) & set(told["seen"]))
        others = set(told["seen"]) - set(named)
        wrong += len(others)
        clean += not others
        probes += len(told["findings"]) - len(named)
    return {"found": found / AUDITS if named else None, "clean": clean / AUDITS, "false": wrong / probes}


STUDY = Study(
    __file__,
    "Audits of judges with known faults",
    {name: {"faults": faults, "named": list(named)} for name, (faults, named) in FAULTS.items()},
    measure,
    {
        "found": "audits that find it",
        "clean": "audits without a false finding",
        "false": "false findings a probe",
    },
    seeds=(0, 1, 2, 3, 4),
)

if __name__ == "__main__":
    main(STUDY)
