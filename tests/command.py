"""The command line, called in the process of the test or started as a process of its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch

from burnish.cli import main

ROOT = Path(__file__).parents[1]
MODULE = (sys.executable, "-m", "burnish.cli.main")


def burnish(
    *args: str, cwd: Path = ROOT, check: bool = True, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Call `burnish` with these arguments in this process, through the entry point that makes exit codes and messages.
    Raises AssertionError for another exit code than 0 and 10, unless `check` is off."""
    out, err = io.StringIO(), io.StringIO()
    text = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
    with (
        as_before(),
        chdir(cwd),
        patch.object(sys, "argv", ["burnish", *args]),
        patch.object(sys, "stdin", text),
        redirect_stdout(out),
        redirect_stderr(err),
    ):
        try:
            main.main()
        except SystemExit as end:
            code = end.code
    assert isinstance(code, int), code
    if check and code not in (0, 10):
        raise AssertionError(f"{args} ended with {code}:\n{err.getvalue()}")
    return subprocess.CompletedProcess(args, code, out.getvalue(), err.getvalue())


@contextmanager
def as_before() -> Iterator[None]:
    """Restore what a command changes in its process: the signal handler, torch's threads and determinism, variables,
    the path of imports."""
    handler = signal.getsignal(signal.SIGINT)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    variables = dict(os.environ)
    state = dict(main.STATE)
    path = list(sys.path)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        os.environ.clear()
        os.environ.update(variables)
        main.STATE.clear()
        main.STATE.update(state)
        sys.path[:] = path


def begun(*args: str, cwd: Path = ROOT, quiet: bool = False) -> subprocess.Popen[str]:
    """Start `burnish` with these arguments as a process of its own, one thread, Ctrl-C as in a shell. Its output is
    read through pipes, or dropped where a test is `quiet`: nobody empties the pipes of a process that is killed."""
    stream = subprocess.DEVNULL if quiet else subprocess.PIPE
    return subprocess.Popen(
        [*MODULE, *args],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=stream,
        stderr=stream,
        text=True,
        # A shell may have started the tests with Ctrl-C ignored; children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
