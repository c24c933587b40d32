"""Settings of a run that takes seconds: too little of everything to show more than that each stage works."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.command import burnish

SMALL = [
    "threads=1",
    "ppo.updates=3",
    "ppo.batch_size=8",
    "ppo.epochs=1",
    "ppo.checkpoint_every=2",
    "ppo.gate=ignored",  # with so few labels
    "dpo.when=never",
    "evaluate.n_selection=8",
    "evaluate.n_test=8",
    "evaluate.kl_prompts=16",
    "evaluate.best_of_n=1",
    "reward.reference_samples=32",
    "monitor.trackers=[]",
    "monitor.sample_every=1",
]


def run(tmp_path: Path, *sets: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Carry out a run in the folder `r` below this one, with these settings besides."""
    args = [a for s in (*SMALL, *sets) for a in ("--set", s)]
    return burnish("run", "--dir", str(tmp_path / "r"), *args, check=check)
