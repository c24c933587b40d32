"""Runs on the pretend device, each in a process of its own (tests/pretend_run.py)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
KINDS = ("operations", "waits", "uploads")


def table(phases: dict[str, Any]) -> str:
    """The counts of every phase, one line each."""
    lines = [
        f"{name:12} " + " ".join(f"{p[kind]:9.2f} {kind}" for kind in KINDS) + f" a {p['unit']}"
        for name, p in phases.items()
    ]
    return "\n".join(lines)


def pretended_run(layers: str, dtype: str = "float32", processes: int = 1) -> list[dict[str, Any]]:
    """Return what every process of a run on the pretend device has found; raise AssertionError if it failed."""
    call = [sys.executable, "-m", "tests.pretend_run", layers, "--dtype", dtype, "--json", "--processes"]
    done = subprocess.run([*call, str(processes)], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found
