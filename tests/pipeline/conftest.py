"""One short run, made once, that the end-to-end tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def burnish(
    *args: str, cwd: Path = ROOT, check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own, one thread."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "burnish.cli", *args],
        cwd=cwd,
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    if check and done.returncode not in (0, 10):
        raise AssertionError(f"{args} ended with {done.returncode}:\n{done.stderr}")
    return done


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """examples/short.yaml, carried out."""
    folder = tmp_path_factory.mktemp("runs") / "short"
    burnish("run", "examples/short.yaml", "--dir", str(folder), "--set", "threads=1")
    return folder
