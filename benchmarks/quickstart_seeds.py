"""The quickstart on several seeds, by `burnish sweep`: its table, and an exit code of 1 if a seed misses a promise.

usage: python benchmarks/quickstart_seeds.py [--seeds 0-4] [--set KEY=V1,V2 ...]
With several values of a key, every seed is run with each, and differences to the first are paired by seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from burnish.commands.sweep import seeds_of, sweep
from burnish.report.sweep import as_report
from burnish.report.text_report import as_text


def missed(s: dict[str, Any]) -> bool:
    """Whether the champion is SFT, a lower bound is not above one half, or KL is over 25 % off its target."""
    name, ppo = s["champion"], s["ppo"]
    if name == "sft" or min(s["evaluation"][name]["ci_low"], s["gold"][name]["ci_low"]) <= 0.5:
        return True
    return not ppo["rollbacks"] and abs(ppo["kl_final"] / ppo["kl_target"] - 1) > 0.25


def main() -> None:
    """Print the table of all seeds; exit with 1 when a run fails, or misses what the quickstart promises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--set", nargs="+", default=[])
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as room:
        table = sweep(None, Path(room) / "quickstart", seeds_of(a.seeds), ["name=quickstart", *a.set])
        print(as_text(as_report(table)))
        runs = [run for cell in table["cells"].values() for run in cell["runs"]]
        summaries = [
            json.loads((Path(run["run"]) / "summary.json").read_text()) for run in runs if not run["failed"]
        ]
    sys.exit(len(summaries) < len(runs) or any(missed(s) for s in summaries))


if __name__ == "__main__":
    main()
