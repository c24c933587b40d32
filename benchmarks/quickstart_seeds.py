"""The quickstart on several seeds: champion, examiner's and true win rates, KL against target, seconds.

usage: python benchmarks/quickstart_seeds.py [--seeds 0 1 2 3 4] [--set KEY=VALUE ...] [--against KEY=VALUE ...]
With --against every seed is run a second time with those settings, and the paired differences are printed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

HEAD = "| seed | champion | examiner [95 %] | true preference [95 %] | KL / target | reward accuracy | s |"


def run(seed: int, sets: list[str], folder: Path) -> dict[str, Any]:
    """The summary of one quickstart."""
    given = [part for pair in (f"seed={seed}", *sets) for part in ("--set", pair)]
    call = [sys.executable, "-m", "burnish.cli.main", "quickstart", *given, "--dir", str(folder)]
    subprocess.run(
        call, check=False, capture_output=True
    )  # 10 says that nothing beat SFT: a row like any other
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def seconds(s: dict[str, Any]) -> float:
    return sum(stage["seconds"] or 0 for stage in s["stages"].values())


def judged(figures: dict[str, Any] | None) -> str:
    if figures is None or figures["win_rate"] is None:
        return ""
    return f"{figures['win_rate']:.3f} [{figures['ci_low']:.3f}, {figures['ci_high']:.3f}]"


def row(seed: int, s: dict[str, Any]) -> str:
    name, ppo = s["champion"], s["ppo"]
    kl = "given up" if ppo["kl_final"] is None else f"{ppo['kl_final']:.2f} / {ppo['kl_target']:g}"
    return (
        f"| {seed} | {name} | {judged(s['evaluation'][name])} | {judged(s['gold'].get(name))} | {kl} "
        f"| {s['reward']['accuracy']['value']:.3f} | {seconds(s):.0f} |"
    )


def missed(s: dict[str, Any]) -> bool:
    """Whether the champion is SFT, a lower bound is not above one half, or KL is over 25 % off its target."""
    name, ppo = s["champion"], s["ppo"]
    if name == "sft" or min(s["evaluation"][name]["ci_low"], s["gold"][name]["ci_low"]) <= 0.5:
        return True
    return not ppo["rollbacks"] and abs(ppo["kl_final"] / ppo["kl_target"] - 1) > 0.25


def differences(first: list[dict[str, Any]], second: list[dict[str, Any]]) -> list[str]:
    """Paired by seed, PPO's figures: mean of first minus second with a 95 % interval (Student's t)."""
    lines = []
    for what, read in (
        ("true win rate", lambda s: s["gold"]["ppo"]["win_rate"]),
        ("examiner's win rate", lambda s: s["evaluation"]["ppo"]["win_rate"]),
        ("reward accuracy", lambda s: s["reward"]["accuracy"]["value"]),
        ("final KL", lambda s: s["ppo"]["kl_final"]),
        ("seconds", seconds),
    ):
        d = np.array([read(a) - read(b) for a, b in zip(first, second, strict=True)])
        half = stats.t.ppf(0.975, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d))
        lines.append(
            f"{what}: {d.mean():+.4f} [{d.mean() - half:+.4f}, {d.mean() + half:+.4f}], {len(d)} seeds"
        )
    return lines


def main() -> None:
    """One row a seed; exits with 1 when a row misses what the quickstart promises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--set", nargs="+", default=[])
    parser.add_argument("--against", nargs="+", default=[])
    a = parser.parse_args()
    print(HEAD + "\n" + "|---" * HEAD.count(" |") + "|")
    arms: list[list[dict[str, Any]]] = [[], []]
    with tempfile.TemporaryDirectory() as room:
        for seed in a.seeds:
            for number, sets in enumerate((a.set, [*a.set, *a.against])[: 1 + bool(a.against)]):
                arms[number].append(run(seed, sets, Path(room) / f"{seed}-{number}"))
                print(row(seed, arms[number][-1]), flush=True)
    if a.against:
        print("\n".join(differences(*arms)))
    sys.exit(any(missed(s) for s in arms[0]))


if __name__ == "__main__":
    main()
