"""How long D-optimal selection of 1,000 from 100,000 comparisons takes, features given; and a label store of 100,000
comparisons with 300,000 labels: in, agreement, out.

  python benchmarks/selection.py
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

from burnish.labels.design import d_optimal

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "then",
    "it",
    "went",
    "home",
    "to",
    "sleep",
    "while",
    "birds",
    "sang",
    "in",
    "trees",
]


def select(width: int) -> float:
    rng = np.random.default_rng(width)
    features = (rng.normal(size=(100_000, width)) / np.sqrt(1 + np.arange(width))).astype(np.float32)
    began = perf_counter()
    d_optimal(features, rng.uniform(0.01, 0.25, 100_000), 1000, groups=[str(i // 2) for i in range(100_000)])
    return perf_counter() - began


def write_labels(path: Path) -> None:
    """Three of 40 annotators, right in 55 to 95 % of cases, on each of 100,000 comparisons of 10 to 60 words."""
    rng = random.Random(0)
    accuracy = [rng.uniform(0.55, 0.95) for _ in range(40)]
    with path.open("w", encoding="utf-8") as out:
        for i in range(100_000):
            a, b = (" ".join(rng.choices(WORDS, k=rng.randint(10, 60))) for _ in range(2))
            first = rng.random() < 0.5
            for who in rng.sample(range(40), 3):
                row = {
                    "prompt": f"question {i} about something",
                    "responses": [f"{a} {i}", b],
                    "preference": float(first == (rng.random() < accuracy[who])),
                    "annotator": f"w{who}",
                    "shown": [0, 1] if rng.random() < 0.5 else [1, 0],
                    "seconds": rng.uniform(5, 60),
                    "cost": 0.1,
                }
                out.write(json.dumps(row) + "\n")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        room = Path(folder)
        write_labels(room / "labels.jsonl")
        whole = 0.0
        for command in (
            ["load", "labels.sqlite", "labels.jsonl"],
            ["agree", "labels.sqlite"],
            ["dump", "labels.sqlite", "pairs.jsonl", "--as", "pairs"],
        ):
            began = perf_counter()
            program = [sys.executable, "-m", "burnish.cli.main", "label", *command]
            subprocess.run(program, cwd=room, check=True, stdout=subprocess.DEVNULL)
            took = perf_counter() - began
            whole += took
            print(f"label {command[0]}: {took:.1f} s")
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        print(f"together {whole:.1f} s, at most {peak:.0f} MiB")
    for width in (256, 576):
        print(f"D-optimal, 1,000 of 100,000, {width} features: {select(width):.1f} s")


if __name__ == "__main__":
    main()
