"""Ctrl-C that Python would ignore."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import signal, sys, time
from burnish.cli import main

class Destroyed:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

def app(**_):
    gone = Destroyed()
    del gone
    for _ in range(100):
        time.sleep(0.05)
    return 0

main.app = app
main.main()
"""


def test_an_interrupt_within_a_destructor_is_raised_after_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 130, done.stderr
    assert "continues from the last checkpoint" in done.stderr
    assert "Traceback" not in done.stderr
