"""SIGKILL a run at random moments, start it again, and compare hashes with a run that was never stopped.

usage: python benchmarks/kill_resume.py [--config examples/short.yaml] [--kills 20] [--runs 20] [--seed 0]
Exits with 1 when any hash differs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from time import monotonic, sleep

from burnish.pipeline.run import fingerprint
from burnish.runs.directory import RunDirectory


def command(config: Path, folder: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "burnish.cli.main",
        "run",
        str(config),
        "--dir",
        str(folder),
        "--set",
        "threads=1",
    ]


def to_the_end(config: Path, folder: Path) -> float:
    """Seconds until the run is finished; exit code 10 (nothing beat SFT) is a finish too."""
    began = monotonic()
    done = subprocess.run(command(config, folder), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 10):
        sys.exit(f"the run failed with {done.returncode}: {done.stderr[-2000:]}")
    return monotonic() - began


def kill_once(config: Path, folder: Path, after: float) -> str:
    """Start, SIGKILL after so many seconds; which stage it was in (empty when it had finished or not begun)."""
    process = subprocess.Popen(command(config, folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    sleep(after)
    process.kill()
    process.wait()
    if not (folder / "run.yaml").exists():
        return "before the first stage"
    run = RunDirectory.open(folder)
    states = {name: run.stage_state(name) for name in run.stages()}
    if "running" in states.values():
        sys.exit(f"a killed run says that it is running: {states}")
    return next((n for n, s in states.items() if s == "interrupted"), f"between stages, after {len(states)}")


def main() -> None:
    """Compare and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, default=Path("examples/short.yaml"))
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    rng = random.Random(a.seed)
    with tempfile.TemporaryDirectory() as room:
        whole = to_the_end(a.config, Path(room) / "whole")
        expected = fingerprint(Path(room) / "whole")
        print(f"uninterrupted: {whole:.0f} s, {len(expected)} hashes")
        bad = 0
        for number in range(a.runs):
            folder = Path(room) / f"killed-{number}"
            places = []
            for _ in range(a.kills // a.runs):
                places.append(kill_once(a.config, folder, rng.uniform(0.15, 0.9) * whole))
            to_the_end(a.config, folder)
            found = fingerprint(folder)
            odd = [k for k in expected if expected[k] != found.get(k)]
            bad += bool(odd)
            print(
                f"run {number}: killed in {', '.join(places)}; {'differs: ' + ', '.join(odd) if odd else 'same'}"
            )
    print(f"{a.kills // a.runs * a.runs} kills, {a.runs} runs, {bad} differ")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
