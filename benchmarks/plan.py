"""What `burnish plan` says against what a run takes: peak memory by stage and seconds, in every mode of training.

    python benchmarks/plan.py                      # the embedded model, five modes
    python benchmarks/plan.py --config FILE --set KEY=VALUE --modes auto lora --longest 300

A run's peak is the kernel's own figure (VmHWM, which is reset when a stage begins): Linux only. What has not ended
after `--longest` seconds is told as far as it came.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from burnish.commands.plan.time_estimate import FALLBACK

MODES = ("top:1", "top:2", "all", "lora", "lora_top:2")
MIB = 1 << 20


def planned(config: Path, sets: list[str]) -> dict[str, Any]:
    """What `burnish plan` tells, of a process of its own: the program counts itself."""
    arguments = [part for key in sets for part in ("--set", key)]
    told = subprocess.run(
        [sys.executable, "-m", "burnish.cli.main", "plan", str(config), "--json", *arguments],
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return dict(json.loads(told.stdout))


def measured(config: Path, sets: list[str], folder: Path, longest: float) -> dict[str, dict[str, float]]:
    """By stage, the peak in MiB and the seconds of a run."""
    arguments = [part for key in sets for part in ("--set", key)]
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "burnish.cli.main",
            "run",
            str(config),
            "--dir",
            str(folder),
            "--force",
            *arguments,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    peaks: dict[str, float] = {}
    stage, began = "loading", time.monotonic()
    manifest = folder / "manifest.json"
    while run.poll() is None and time.monotonic() - began < longest:
        found = re.search(r"VmHWM:\s+(\d+)", _read(Path(f"/proc/{run.pid}/status")))
        if found:
            peaks[stage] = max(peaks.get(stage, 0.0), int(found[1]) / 1024)
        stages = json.loads(_read(manifest) or '{"stages": {}}')["stages"]
        now = next((name for name, entry in stages.items() if entry["state"] == "running"), stage)
        if now != stage and now not in ("sft", "label"):
            stage = now
            Path(f"/proc/{run.pid}/clear_refs").write_text("5")
        time.sleep(0.1)
    run.kill()
    run.wait()
    stages = json.loads(_read(manifest) or '{"stages": {}}')["stages"]
    return {
        name: {
            "peak": peak,
            **({"seconds": stages[name]["seconds"]} if "seconds" in stages.get(name, {}) else {}),
        }
        for name, peak in peaks.items()
    }


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def main() -> None:
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--config", type=Path, default=Path("examples/short.yaml"))
    ask.add_argument("--set", dest="sets", action="append", default=[])
    ask.add_argument("--modes", nargs="+", default=list(MODES))
    ask.add_argument("--longest", type=float, default=600.0)
    asked = ask.parse_args()
    print(
        f"{'mode':<12}{'stage':<12}{'planned MiB':>12}{'measured':>10}{'ratio':>7}{'planned s':>11}{'measured':>10}"
    )
    with tempfile.TemporaryDirectory() as room:
        for mode in asked.modes:
            sets = [*asked.sets, f"model.layers={mode}"]
            ahead = planned(asked.config, sets)
            found = measured(asked.config, sets, Path(room) / mode.replace(":", ""), asked.longest)
            for name, stage in ahead["memory"].items():
                if name in found:
                    _tell(mode, name, stage["peak"], _seconds(ahead["seconds"], name), found[name])
            whole = sum(seconds for name, seconds in ahead["seconds"].items() if name != FALLBACK)
            _tell(mode, "run", ahead["peak"], whole, _whole(found))


def _seconds(seconds: dict[str, float], stage: str) -> float:
    """Of a stage with what is done in it besides."""
    return sum(s for name, s in seconds.items() if name.split(" (")[0] == stage and name != FALLBACK)


def _whole(found: dict[str, dict[str, float]]) -> dict[str, Any]:
    return {
        "peak": max(row["peak"] for row in found.values()),
        "seconds": sum(row.get("seconds", 0.0) for row in found.values()),
    }


def _tell(mode: str, name: str, peak: float, seconds: float, found: dict[str, float]) -> None:
    took = f"{found['seconds']:>10.1f}" if "seconds" in found else f"{'-':>10}"
    there = peak / MIB
    ratio = there / found["peak"]
    print(
        f"{mode:<12}{name:<12}{there:>12.0f}{found['peak']:>10.0f}{ratio:>7.2f}{seconds:>11.1f}{took}",
        flush=True,
    )


if __name__ == "__main__":
    main()
