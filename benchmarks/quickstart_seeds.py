"""The quickstart on several seeds: champion, examiner's and true win rates, KL against target, seconds.

usage: python benchmarks/quickstart_seeds.py [--seeds 0 1 2 3 4]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    """One row a seed; exits with 1 when a champion is SFT, a bound misses one half, or KL is over 25 % off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    a = parser.parse_args()
    print(
        "| seed | champion | examiner [95 %] | true preference [95 %] | KL / target | reward accuracy | s |"
    )
    print("|---|---|---|---|---|---|---|")
    misses = 0
    with tempfile.TemporaryDirectory() as room:
        for seed in a.seeds:
            folder = Path(room) / str(seed)
            call = [
                sys.executable,
                "-m",
                "burnish.cli",
                "quickstart",
                "--set",
                f"seed={seed}",
                "--dir",
                str(folder),
            ]
            subprocess.run(call, check=False, capture_output=True)
            s = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
            name = s["champion"]
            ours, gold, ppo = s["evaluation"][name], (s["gold"] or {}).get(name), s["ppo"]
            seconds = sum(stage["seconds"] or 0 for stage in s["stages"].values())
            if gold is None:
                misses += 1
                print(
                    f"| {seed} | {name} | | | {ppo['kl_final']:.2f} / {ppo['kl_target']:g} | | {seconds:.0f} |"
                )
                continue
            off = abs(ppo["kl_final"] / ppo["kl_target"] - 1) > 0.25 and not ppo["rollbacks"]
            misses += ours["ci_low"] <= 0.5 or gold["ci_low"] <= 0.5 or off
            print(
                f"| {seed} | {name} | {ours['win_rate']:.3f} [{ours['ci_low']:.3f}, {ours['ci_high']:.3f}] "
                f"| {gold['win_rate']:.3f} [{gold['ci_low']:.3f}, {gold['ci_high']:.3f}] "
                f"| {ppo['kl_final']:.2f} / {ppo['kl_target']:g} | {s['reward']['accuracy']['value']:.3f} "
                f"| {seconds:.0f} |",
                flush=True,
            )
    sys.exit(bool(misses))


if __name__ == "__main__":
    main()
