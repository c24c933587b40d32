"""Models of other sizes through the quickstart with nothing set: where KL ends against its target.

usage: python benchmarks/sizes.py [--steps 600]
Three story models are trained first, widths and depths apart by four times.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

SIZES = ((48, 2), (96, 4), (192, 8))  # width, layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=600)
    asked = parser.parse_args()
    print(
        "| width x layers | champion | examiner [95 %] | true preference | KL / target | reward accuracy | s |"
    )
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as room:
        for width, layers in SIZES:
            model, run = Path(room) / f"model-{width}", Path(room) / f"run-{width}"
            call(
                [
                    *("burnish.rehearse.build", "--hidden", str(width), "--layers", str(layers)),
                    *("--steps", str(asked.steps), "--out", str(model)),
                ]
            )
            call(["burnish.cli.main", "quickstart", "--set", f"model.path={model}", "--dir", str(run)])
            s = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            judged, ppo = s["evaluation"]["ppo"], s["ppo"]
            seconds = sum(stage["seconds"] or 0 for stage in s["stages"].values())
            print(
                f"| {width} x {layers} | {s['champion']} | {judged['win_rate']:.3f} [{judged['ci_low']:.3f}, "
                f"{judged['ci_high']:.3f}] | {s['gold']['ppo']['win_rate']:.3f} | {ppo['kl_final']:.2f} / "
                f"{ppo['kl_target']:g} | {s['reward']['accuracy']['value']:.3f} | {seconds:.0f} |",
                flush=True,
            )


def call(module: list[str]) -> None:
    """Run a module; exit code 10 says that nothing beat SFT, which is a row like any other."""
    done = subprocess.run([sys.executable, "-m", *module], check=False, capture_output=True, text=True)
    if done.returncode not in (0, 10):
        sys.exit(f"{' '.join(module)}: {done.stderr}")


if __name__ == "__main__":
    main()
